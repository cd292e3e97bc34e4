"""HAODiff's dual-prompt generator in PyTorch, with the published names: an independent reference.

Written from the description of the published files. Attributes are named so that `state_dict()` has
the files' names, with the buffers, duplicates and training-only layers that the files have too. Its
groups of Swin blocks are SwinIR's.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.swinir_torch import MEAN, RSTB, conv


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
            sizes = kw["window_size"], 2 * dim, side
            return nn.ModuleList(RSTB(dim, *group, *sizes) for group in part)

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
    def __init__(self, width: int, features: int):
        super().__init__()
        self.register_buffer("projection_matrix", torch.zeros(features, width))

    def forward(self, q, k, v):
        w = self.projection_matrix.double().numpy()
        heads = zip(*(x.double().flatten(0, 1).numpy() for x in (q, k, v)), strict=True)
        found = [favor_of_numpy(*head, w) for head in heads]
        return torch.tensor(np.stack(found), dtype=torch.float32).view(v.shape)


class Attend(nn.Module):
    def __init__(self, dim: int, heads: int, width: int, features: int):
        super().__init__()
        self.heads, self.fast_attention = heads, Fast(width, features)
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
        features = int(width * math.log(width)) or 1
        layers = [
            nn.ModuleList(
                [Residual(dim, Attend(dim, heads, width, features)), Residual(dim, Feed(dim))]
            )
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

    def __init__(self, swinir: dict, performer: dict):
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
