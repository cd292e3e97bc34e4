"""What the networks are compared with: PyTorch implementations by others, of the same sizes.

U-Net and VAE are diffusers', Swin, CLIP and BERT's layers transformers', adapters peft's, HFIE is
PyTorch's multi-head attention. RAM's use of BERT and LPIPS are written here, from their papers'
code. Each `..._state` gives a reference's weights under the names of this project.
"""

from typing import Any

import diffusers
import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.models.bert import modeling_bert as bert

from benchmarks.convert import Path, convert, nchw

State = dict[str, Tensor]


def fast_device() -> torch.device:
    """The GPU where there is one, set for speed as one sets it; else the CPU.

    Products in float32 are TF32's, as they are JAX's by default, and cuDNN tries its algorithms.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")


UNET_PATTERNS = """to_k to_q to_v to_out.0 conv conv1 conv2 conv_in conv_shortcut conv_out proj_out
proj_in ff.net.2 ff.net.0.proj""".split()  # OSEDiff's
VAE_PATTERNS = "conv1 conv2 conv_in conv_shortcut conv conv_out to_k to_q to_v to_out.0".split()
SWIN_NAMES = [
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    ("encoder.layers", "layers"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.relative_position_bias.", "attn."),
    ("attention.o_proj", "attn.proj"),
    ("attention.qkv", "attn.qkv"),
    ("layernorm.", "norm."),
]


def unet(plan: dict[str, Any]) -> diffusers.UNet2DConditionModel:
    """diffusers' U-Net of our arguments."""
    rest = {k: v for k, v in plan.items() if k != "num_attention_heads"}
    return diffusers.UNet2DConditionModel(
        **rest,
        out_channels=plan["in_channels"],
        up_block_types=[t.replace("Down", "Up") for t in reversed(plan["down_block_types"])],
        attention_head_dim=plan["num_attention_heads"],  # diffusers' old name for it
        use_linear_projection=True,
    )


def controlnet(plan: dict[str, Any], in_channels: int) -> diffusers.ControlNetModel:
    """diffusers' ControlNet for the U-Net of our arguments, its hint beside the latent."""
    rest = {k: v for k, v in plan.items() if k not in ("in_channels", "num_attention_heads")}
    return diffusers.ControlNetModel(
        **rest,
        in_channels=in_channels,
        attention_head_dim=plan["num_attention_heads"],
        use_linear_projection=True,
    )


def controlnet_state(theirs: nn.Module) -> State:
    """Without the encoder of pixel hints, which conditions beside the latent do not need."""
    state = theirs.state_dict()
    return {k: v for k, v in state.items() if not k.startswith("controlnet_cond_embedding.")}


Residuals = tuple[list[Tensor], Tensor]  # of the skips, and of the middle block


def control(theirs: Any, *inputs: np.ndarray, scale: float = 1.0) -> Residuals:
    """Residuals for latent, timestep, prompt and hint; what pixel hints would add is zero."""
    z, t, prompt, hint = inputs
    theirs.controlnet_cond_embedding.forward = lambda pixels: torch.zeros(1)
    return theirs(
        torch.cat([nchw(z), nchw(hint)], 1),
        torch.from_numpy(t),
        torch.from_numpy(prompt),
        controlnet_cond=torch.zeros(1),
        conditioning_scale=scale,
        return_dict=False,
    )


def controlled(theirs: Any, made: Residuals, *inputs: np.ndarray) -> Tensor:
    """eps of diffusers' U-Net for latent, timestep and prompt, with these residuals."""
    z, t, prompt = inputs
    return theirs(
        nchw(z),
        torch.from_numpy(t),
        torch.from_numpy(prompt),
        down_block_additional_residuals=tuple(made[0]),
        mid_block_additional_residual=made[1],
    ).sample


def vae(plan: dict[str, Any]) -> diffusers.AutoencoderKL:
    """diffusers' autoencoder of our arguments; it knows no residual one."""
    plan = dict(plan)
    if plan.pop("stem", 1) > 1:
        raise SystemExit("diffusers has no residual autoencoder: choose another --preset")
    levels = len(plan["block_out_channels"])
    down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
    return diffusers.AutoencoderKL(**plan, down_block_types=down, up_block_types=up)


class RAM(nn.Module):
    """RAM's image embeddings of pictures in [-1, 1]: the pooled token, then Swin's."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, plan: dict[str, Any]):
        super().__init__()
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.items()}
        width = lists.pop("image_proj_dim")
        self.side = plan["image_size"]
        self.swin = transformers.SwinModel(transformers.SwinConfig(**lists))
        self.image_proj = nn.Linear(self.swin.num_features, width)

    def forward(self, image: Tensor) -> Tensor:
        size = (self.side, self.side)
        x = F.interpolate((image + 1) / 2, size, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.MEAN, self.STD))
        tokens = self.swin((x - mean) / std).last_hidden_state
        return self.image_proj(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))

    def state(self) -> State:
        swin = {f"visual_encoder.{k}": v for k, v in swin_state(self.swin).items()}
        return {**swin, **{f"image_proj.{k}": v for k, v in self.image_proj.state_dict().items()}}


def swin_state(swin: nn.Module) -> State:
    """Under the original Swin's names; query, key and value fused."""
    state = swin.state_dict()
    for key in [k for k in state if ".q_proj." in k]:
        parts = [state.pop(key.replace(".q_proj.", f".{p}_proj.")) for p in "qkv"]
        state[key.replace("q_proj", "qkv")] = torch.cat(parts)

    def rename(key: str) -> str:
        for old, new in SWIN_NAMES:
            key = key.replace(old, new)
        return key

    return {rename(key): value for key, value in state.items()}


class HFIE(nn.Module):
    """Learnable queries that attend to image embeddings."""

    def __init__(self, num_queries: int, dim: int, kv_dim: int, num_heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_queries, dim))
        self.mha = nn.MultiheadAttention(dim, num_heads, kdim=kv_dim, vdim=kv_dim, batch_first=True)

    def forward(self, embeddings: Tensor) -> Tensor:
        query = self.query.expand(len(embeddings), -1, -1)
        return self.mha(query, embeddings, embeddings)[0]

    def state(self) -> State:
        return {**mha_state(self.mha), "query": self.query}


def mha_state(mha: nn.MultiheadAttention) -> State:
    """The three input projections apart."""
    state = dict(mha.state_dict())
    biases = dict(zip("qkv", state.pop("in_proj_bias").chunk(3), strict=True))
    for name, bias in biases.items():
        state[f"{name}_proj.weight"] = state.pop(f"{name}_proj_weight")
        state[f"{name}_proj.bias"] = bias
    return state


class TagLayer(nn.Module):
    """A BERT layer as RAM uses it: cross-attention in the place of self-attention."""

    def __init__(self, config: transformers.BertConfig, context_dim: int):
        super().__init__()
        self.crossattention = bert.BertAttention(config, is_cross_attention=True)
        for name in ("key", "value"):
            setattr(self.crossattention.self, name, nn.Linear(context_dim, config.hidden_size))
        self.intermediate = bert.BertIntermediate(config)
        self.output = bert.BertOutput(config)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, _ = self.crossattention(x, encoder_hidden_states=context)
        return self.output(self.intermediate(x), x)


class Tagger(nn.Module):
    """RAM's tagging head under its own names."""

    def __init__(self, plan: dict[str, Any]):
        super().__init__()
        shared = ("hidden_size", "num_attention_heads", "intermediate_size")
        config = transformers.BertConfig(**{k: plan[k] for k in shared}, layer_norm_eps=1e-12)
        config._attn_implementation = "eager"
        layers = [TagLayer(config, plan["context_dim"]) for _ in range(plan["num_hidden_layers"])]
        self.label_embed = nn.Parameter(torch.empty(plan["num_tags"], plan["label_dim"]))
        self.wordvec_proj = nn.Linear(plan["label_dim"], plan["hidden_size"])
        self.tagging_head = nn.Module()
        self.tagging_head.encoder = nn.Module()
        self.tagging_head.encoder.layer = nn.ModuleList(layers)
        self.fc = nn.Linear(plan["hidden_size"], 1)

    def forward(self, context: Tensor) -> Tensor:
        x = torch.relu(self.wordvec_proj(self.label_embed)).expand(len(context), -1, -1)
        for layer in self.tagging_head.encoder.layer:
            x = layer(x, context)
        return self.fc(x).squeeze(-1)


def clip(plan: dict[str, Any]) -> transformers.CLIPTextModel:
    """transformers' text encoder with OpenCLIP's GELU."""
    last = plan["vocab_size"] - 1
    ends = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": 0}
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**plan, **ends, hidden_act="gelu")
    )


def clip_state(theirs: nn.Module) -> State:
    """flax calls an embedding's table otherwise."""
    state = theirs.state_dict()
    return {key.replace("embedding.weight", "embedding.embedding"): state[key] for key in state}


class LPIPS(nn.Module):
    """LPIPS as its authors write it, on VGG16 as torchvision's table writes it."""

    TABLE = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M".split()
    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, narrow: int = 1):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for step in self.TABLE:
            if step == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                out = int(step) // narrow
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
                width = out
        self.features = nn.Sequential(*layers)
        widths = [n // narrow for n in (64, 128, 256, 512, 512)]
        self.lin = nn.ModuleList(nn.Conv2d(n, 1, 1, bias=False) for n in widths)

    def slices(self, x: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v)[None, :, None, None] for v in (self.SHIFT, self.SCALE))
        x = (x - shift) / scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in (3, 8, 15, 22, 29):
                found.append(x)
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a))
        for lin, f, g in zip(self.lin, self.slices(a), self.slices(b), strict=True):
            f, g = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (f, g))
            total = total + lin((f - g) ** 2).mean((1, 2, 3))
        return total


def adapted_names(net: nn.Module) -> list[str]:
    """Layers that OSEDiff adapts: a pattern in a parameter's name, neither "bias" nor "norm"."""
    is_vae = isinstance(net, diffusers.AutoencoderKL)
    patterns = VAE_PATTERNS if is_vae else UNET_PATTERNS
    names = [n for n, _ in net.named_parameters() if "bias" not in n and "norm" not in n]
    names = [n.removesuffix(".weight") for n in names if any(p in n for p in patterns)]
    return [*(n for n in names if "encoder" in n), "quant_conv"] if is_vae else names


def adapt(net: nn.Module, rank: int, alpha: int) -> nn.Module:
    """The network with peft's adapters."""
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=adapted_names(net),
        bias="none",
    )
    return peft.inject_adapter_in_model(config, net)


def from_peft(key: str, value: Tensor) -> tuple[Path, np.ndarray]:
    """peft's name and layout -> ours."""
    path, array = convert(key.replace("base_layer", "base"), value)
    if "lora_B" in path:
        array = array.reshape(array.shape[-2:])  # a convolution of 1x1 in peft
    return (path[:-2] if "default" in path else path), array


SCHEDULER = diffusers.DDPMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
)


def one_step(eps: Tensor, z: Tensor, timestep: int) -> Tensor:
    """Eq. 2 by diffusers' scheduler."""
    return SCHEDULER.step(eps, timestep, z).pred_original_sample


def vsd(
    latent: Tensor, noise: Tensor, eps_frozen: Tensor, eps_finetuned: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """OSEDiff's distribution matching: its gradient, and what autograd makes of its loss."""
    alpha = SCHEDULER.alphas_cumprod.double()[t][:, None, None, None]
    noisy = alpha.sqrt() * latent + (1 - alpha).sqrt() * noise
    frozen, finetuned = (
        (noisy - (1 - alpha).sqrt() * eps) / alpha.sqrt() for eps in (eps_frozen, eps_finetuned)
    )
    weight = (latent - frozen).abs().mean((1, 2, 3), keepdim=True)
    gradient = (finetuned - frozen) / weight
    with torch.enable_grad():
        z = latent.detach().requires_grad_()
        F.mse_loss(z, (z - gradient).detach()).backward()
    assert z.grad is not None
    return gradient, z.grad


class Restorer(nn.Module):
    """The whole path of section 3: encode, one step, decode."""

    def __init__(self, vae_: nn.Module, unet_: nn.Module, ram: RAM, hfie: HFIE, timestep: int):
        super().__init__()
        self.vae, self.unet, self.ram, self.hfie = vae_, unet_, ram, hfie
        self.timestep = timestep

    def forward(self, image: np.ndarray, prompt: Tensor | None = None) -> Tensor:
        x, scale = nchw(image), self.vae.config.scaling_factor
        z = scale * self.vae.encode(x).latent_dist.mode()
        prompt = self.hfie(self.ram(x)) if prompt is None else prompt
        eps = self.unet(z, torch.tensor(self.timestep), prompt).sample
        z0 = one_step(eps, z, self.timestep)
        return self.vae.decode(z0 / scale).sample.clamp(-1, 1)

    def state(self) -> State:
        parts = {"vae": self.vae.state_dict(), "unet": self.unet.state_dict()}
        parts |= {"prompter.image_encoder": self.ram.state(), "prompter.hfie": self.hfie.state()}
        return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}
