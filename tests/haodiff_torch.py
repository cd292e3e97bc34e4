"""HAODiff in PyTorch, small and random, with the published names: what the tests hold ours against.

Written from the description of the published files. Attributes are named so that `state_dict()` has
the files' names, with the buffers, duplicates and training-only layers that the files have too.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from convert import randomise
from make_weights import Networks
from safetensors.torch import save_file
from torch import nn

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])[None, :, None, None]
SWINIR = {
    "img_size": 512,
    "patch_size": 1,
    "in_chans": 3,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 1],
    "window_size": 8,
    "mlp_ratio": 2.0,
    "upscale": 4,
    "downsample": True,
    "ape": True,
    "img_range": 1.0,
    "resi_connection": "1conv",
    "branch_num": 3,
    "pretrained_swinir": "experiments/pretrained.pth",
}
PERFORMER = {
    "dim_head": 4,
    "embed_dim": 32,
    "mid_tokens": 64,
    "out_tokens": 5,
    "num_layers": 2,
    "num_heads_performer": 2,
    "num_heads_pool": 2,
    "light_changer": False,
}
FEATURES = 7  # random ones of a Performer


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class Window(nn.Module):
    def __init__(self, dim: int, heads: int, side: int):
        super().__init__()
        self.heads, self.side = heads, side
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")).flatten(1)
        delta = places[:, :, None] - places[:, None] + side - 1
        self.register_buffer("relative_position_index", delta[0] * (2 * side - 1) + delta[1])
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask):
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask.repeat(n // len(mask), 1, 1)[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(n, -1, -1, -1))
        return self.proj(out.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, side: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Window(dim, heads, window)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 2 * dim), "fc2": nn.Linear(2 * dim, dim)})
        mask = None
        if shift:
            # Numbered by where a pixel was before the shift; unlike numbers do not see each other.
            ends = torch.tensor([side - window, side - shift]) - 1
            edges = torch.bucketize(torch.arange(side), ends)
            where = self.cut((edges[:, None] * 3 + edges)[None, :, :, None].float())[..., 0]
            mask = torch.where(where[:, :, None] == where[:, None], 0.0, -100.0)
        self.register_buffer("attn_mask", mask)

    def cut(self, x):
        b, h, w, c = x.shape
        s = self.window
        return x.view(b, h // s, s, w // s, s, c).transpose(2, 3).reshape(-1, s * s, c)

    def forward(self, x):
        b, h, w, c = x.shape
        s = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = self.attn(self.cut(y), self.attn_mask)
        y = y.view(b, h // s, w // s, s, s, c).transpose(2, 3).reshape(x.shape)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class RSTB(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, window: int, side: int):
        super().__init__()
        blocks = [Block(dim, heads, window, side, i % 2 * window // 2) for i in range(depth)]
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.conv = conv(dim, dim)

    def forward(self, x):
        y = x
        for block in self.residual_group["blocks"]:
            y = block(y)
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Down(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv_before_downsample = nn.Sequential(conv(3, dim), nn.LeakyReLU())
        self.conv_down1, self.conv_down2 = conv(dim, dim, 2), conv(dim, dim, 2)
        self.conv_last = conv(dim, dim)

    def forward(self, x):
        x = self.conv_before_downsample(x)
        return self.conv_last(self.conv_down2(self.conv_down1(x)))


class Up(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.conv_after_body = conv(dim, dim)
        self.conv_before_upsample = nn.Sequential(conv(dim, dim), nn.LeakyReLU())
        self.conv_up1, self.conv_up2, self.conv_hr = (conv(dim, dim) for _ in "123")
        self.conv_last = conv(dim, out)

    def forward(self, x):
        x = self.conv_before_upsample(self.conv_after_body(x))
        for layer in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(layer(F.interpolate(x, scale_factor=2)), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


class Extractor(nn.Module):
    def __init__(self, kw: dict, upsamplers: bool = False):
        super().__init__()
        dim, side = kw["embed_dim"], kw["img_size"] // kw["upscale"]
        half = len(kw["depths"]) // 2
        groups = list(zip(kw["depths"], kw["num_heads"], strict=True))

        def make(part):
            return nn.ModuleList(RSTB(dim, *group, kw["window_size"], side) for group in part)

        self.conv_first = Down(dim)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, side**2, dim))
        self.layers = make(groups[:half])
        self.branches = nn.ModuleList(make(groups[half:]) for _ in range(3))
        self.norm = nn.LayerNorm(dim)
        if upsamplers:
            self.upsamplers = nn.ModuleList(Up(dim, out) for out in (3, 3, 1))

    def middle(self, x):
        e = self.patch_embed["norm"](self.conv_first(x - MEAN).permute(0, 2, 3, 1))
        z = e + self.absolute_pos_embed.view(1, *e.shape[1:])
        for layer in self.layers:
            z = layer(z)
        return z + e

    def forward(self, x):
        middle, found = self.middle(x), []
        for branch in self.branches:
            y = middle
            for layer in branch:
                y = layer(y)
            found.append(self.norm(y))
        return found

    def reconstruct(self, x):
        middle = self.middle(x)
        maps = [(y + middle).permute(0, 3, 1, 2) for y in self(x)]
        out = [up(y) for up, y in zip(self.upsamplers, maps, strict=True)]
        return out[0] + MEAN, out[1] + MEAN, out[2]


def favor_of_numpy(q, k, v, w):
    """FAVOR+ of one head (T, d), in float64."""
    m, d = w.shape

    def features(x, axes):
        x = x * d**-0.25
        dash = x @ w.T
        dash = dash - dash.max(axes, keepdims=True)
        return (np.exp(dash - (x**2).sum(-1, keepdims=True) / 2) + 1e-4) / math.sqrt(m)

    phi_q, phi_k = features(q, (-1,)), features(k, (-2, -1))
    return phi_q @ (phi_k.T @ v) / (phi_q @ phi_k.sum(0))[:, None]


class Fast(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("projection_matrix", torch.zeros(FEATURES, width))

    def forward(self, q, k, v):
        w = self.projection_matrix.double().numpy()
        heads = zip(*(x.double().flatten(0, 1).numpy() for x in (q, k, v)), strict=True)
        found = [favor_of_numpy(*head, w) for head in heads]
        return torch.tensor(np.stack(found), dtype=torch.float32).view(v.shape)


class Attend(nn.Module):
    def __init__(self, dim: int, heads: int, width: int):
        super().__init__()
        self.heads, self.fast_attention = heads, Fast(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, heads * width) for _ in "qkv")
        self.to_out = nn.Linear(heads * width, dim)

    def forward(self, x):
        b, t, _ = x.shape
        parts = (project(x) for project in (self.to_q, self.to_k, self.to_v))
        heads = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in parts)
        return self.to_out(self.fast_attention(*heads).transpose(1, 2).reshape(b, t, -1))


class Feed(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fn = nn.ModuleDict({"w1": nn.Linear(dim, 4 * dim), "w2": nn.Linear(4 * dim, dim)})

    def forward(self, x):
        return self.fn["w2"](F.gelu(self.fn["w1"](x)))


class Residual(nn.Module):
    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return x + self.fn(self.norm(x))


class Encoder(nn.Module):
    def __init__(self, dim: int, kw: dict):
        super().__init__()
        heads, width = kw["num_heads_performer"], kw["dim_head"]
        layers = [
            nn.ModuleList([Residual(dim, Attend(dim, heads, width)), Residual(dim, Feed(dim))])
            for _ in range(kw["num_layers"])
        ]
        self.net = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        # The library keeps the network a second time in what would redraw its projections.
        self.proj_updater = nn.ModuleDict({"instance": self.net})
        self.proj_updater.register_buffer("calls_since_last_redraw", torch.tensor(0))

    def forward(self, x):
        for attention, feed in self.net["layers"]:
            x = feed(attention(x))
        return x


class Embedder(nn.Module):
    def __init__(self, dim: int, inputs: int, side: int, kw: dict):
        super().__init__()
        width = kw["embed_dim"]
        self.side = side
        self.proj1 = nn.Linear(inputs, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side**2, dim))
        self.encoder = Encoder(dim, kw)
        self.linear_embed = nn.Linear(64 * dim, width)
        self.query_tokens = nn.Parameter(torch.zeros(1, kw["out_tokens"], width))
        self.attn_pool = nn.MultiheadAttention(width, kw["num_heads_pool"], batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        b = len(x)
        x = self.encoder(self.proj1(x.flatten(1, 2)) + self.pos_embed)
        x = x.transpose(1, 2).reshape(b, -1, self.side, self.side)
        x = self.linear_embed(F.unfold(x, 8, stride=8).transpose(1, 2))
        query = self.query_tokens.expand(b, -1, -1)
        return self.norm(self.attn_pool(query, x, x, need_weights=False)[0])


class Generator(nn.Module):
    """(negative, positive) prompts of pictures (B, 3, H, W) in [-1, 1]."""

    def __init__(self, swinir: dict = SWINIR, performer: dict = PERFORMER):
        super().__init__()
        dim, self.size = swinir["embed_dim"], swinir["img_size"]
        side, width = self.size // swinir["upscale"], performer["embed_dim"]
        self.feature_extractor = Extractor(swinir)
        self.main_performer = Embedder(dim, dim, side, performer)
        self.aux_performer = Embedder(dim, 2 * dim, side, performer)
        self.embedding_changer1 = nn.Sequential(nn.Linear(width, 8), nn.SiLU(), nn.Linear(8, 16))
        self.embedding_changer2 = nn.Linear(performer["out_tokens"] * width, 4)

    def forward(self, x):
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        first, *others = self.feature_extractor(x)
        return self.aux_performer(torch.cat(others, -1)), self.main_performer(first)


def generator(seed: int = 5, **sizes) -> Generator:
    """With random weights and projections."""
    made = randomise(Generator(SWINIR | sizes), seed)
    for name, buffer in made.named_buffers():
        if name.endswith("projection_matrix") and "updater" not in name:
            rng = torch.Generator().manual_seed(len(name))
            buffer.copy_(torch.randn(buffer.shape, generator=rng))
    return made.eval().requires_grad_(False)


def checkpoint(net: Generator) -> dict:
    return {
        "model_state_dict": net.state_dict(),
        "swinir_kwargs": dict(SWINIR),
        "performer_kwargs": dict(PERFORMER),
    }


def lora(nets: Networks, rank: int = 2) -> dict[str, torch.Tensor]:
    """Random factors of every kernel of the U-Net, by peft's names, scaled to matter."""
    rng, made = torch.Generator().manual_seed(9), {}
    for name, module in nets.unet.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        out, into, *window = module.weight.shape
        ones = (1,) * len(window)
        fan_in = module.weight[0].numel()
        a = torch.randn((rank, into, *window), generator=rng) / fan_in**0.5
        b = 0.3 * torch.randn((out, rank, *ones), generator=rng)
        made |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
    return made


def with_lora(nets: Networks, factors: dict[str, torch.Tensor], alpha: float | None = None) -> None:
    """Add the factors to the weights of `nets.unet`, in place."""
    for name, module in nets.unet.named_modules():
        if (key := f"unet.{name}.lora_A.weight") in factors:
            a, b = factors[key], factors[f"unet.{name}.lora_B.weight"]
            scale = 1.0 if alpha is None else alpha / len(a)
            module.weight.data += scale * (b.flatten(1) @ a.flatten(1)).view(module.weight.shape)


def folder(path: Path, net: Generator, factors: dict[str, torch.Tensor]) -> Path:
    """The two published files."""
    path.mkdir()
    torch.save(checkpoint(net), path / "img_encoder_weights.pth")
    save_file(factors, path / "pytorch_lora_weights.safetensors")
    return path


def restored(nets: Networks, net: Generator, lq: torch.Tensor, guidance: float) -> torch.Tensor:
    """The published inference in one pass, of the posterior's mean, not clamped to 8 bits."""
    negative, positive = net(lq)
    z = nets.vae.encode(lq).latent_dist.mean * nets.vae.config.scaling_factor
    t = torch.full((len(z),), 199)
    eps = [nets.unet(z, t, encoder_hidden_states=p).sample for p in (negative, positive)]
    guided = eps[0] + guidance * (eps[1] - eps[0])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = float(torch.cumprod(1 - betas, 0)[199])
    z = (z - (1 - bar) ** 0.5 * guided) / bar**0.5
    return nets.vae.decode(z / nets.vae.config.scaling_factor).sample.clamp(-1, 1)
