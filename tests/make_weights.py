"""Weight files in the formats of their publishers, small and random: for the tests of the import.

Names are written down here a second time, from the publishers' side: diffusers -> LDM, where the
package goes from LDM to diffusers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from convert import randomise
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, SwinConfig, SwinModel

from benchmarks import references
from osdhuman_jax.networks.tokenizer import BOS, EOS

CHANNELS, CONTEXT, LAYERS = (32, 32, 64), 32, 1
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": CHANNELS,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": LAYERS,
    "attention_head_dim": (1, 1, 1),
    "cross_attention_dim": CONTEXT,
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": LAYERS,
    "latent_channels": 4,
}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
TEXT = {"vocab_size": 40, "hidden_size": CONTEXT, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 1, "max_position_embeddings": 7, "hidden_act": "gelu"}
TAGS, LABELS, HIDDEN = 6, 12, 16
State = dict[str, torch.Tensor]


@dataclass
class Networks:
    """PyTorch's own, with random weights."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel


def networks() -> Networks:
    text = CLIPTextModel(CLIPTextConfig(**TEXT, bos_token_id=0, eos_token_id=1))
    made = (UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), text)
    return Networks(*(randomise(net, seed) for seed, net in enumerate(made)))


def diffusers_folder(folder: Path, nets: Networks, prediction: str = "epsilon", **kw) -> Path:
    """`variant="fp16"`, `safe_serialization=False` and so on as `kw`."""
    nets.unet.save_pretrained(folder / "unet", **kw)
    nets.vae.save_pretrained(folder / "vae", **kw)
    nets.text.save_pretrained(folder / "text_encoder")
    DDPMScheduler(prediction_type=prediction).save_pretrained(folder / "scheduler")
    return folder


def text_folder(folder: Path, nets: Networks, tokens: list[str], merges: list[str]) -> Path:
    """A text encoder and, in one file, its vocabulary."""
    nets.text.save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    model = {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": model}))
    return folder


def tag_folder(folder: Path) -> Path:
    """RAM's list of tags, without thresholds."""
    folder.mkdir()
    (folder / "ram_tag_list.txt").write_text("\n".join(f"tag {i}" for i in range(TAGS)))
    return folder


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# LDM


def _unet_pairs(levels: int, layers: int) -> list[tuple[str, str]]:
    pairs = []
    for i in range(levels):
        for j in range(layers):
            block = i * (layers + 1) + j + 1
            pairs += [(f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{block}.0.")]
            pairs += [(f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{block}.1.")]
        block = (i + 1) * (layers + 1)
        pairs += [(f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{block}.0.op.")]
        for j in range(layers + 1):
            block = i * (layers + 1) + j
            pairs += [(f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{block}.0.")]
            pairs += [(f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{block}.1.")]
        slot = 1 if i == 0 else 2  # the deepest level has no attention
        block = (i + 1) * (layers + 1) - 1
        pairs += [(f"up_blocks.{i}.upsamplers.0.", f"output_blocks.{block}.{slot}.")]
    pairs += [("mid_block.attentions.0.", "middle_block.1.")]
    pairs += [(f"mid_block.resnets.{j}.", f"middle_block.{2 * j}.") for j in range(2)]
    pairs += [("time_embedding.linear_1.", "time_embed.0."), ("conv_in.", "input_blocks.0.0.")]
    pairs += [("time_embedding.linear_2.", "time_embed.2."), ("conv_norm_out.", "out.0.")]
    return [*pairs, ("conv_out.", "out.2.")]


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
RESNET |= {"conv_shortcut": "skip_connection"}


def ldm_unet(net: UNet2DConditionModel) -> State:
    pairs = _unet_pairs(len(net.config.block_out_channels), net.config.layers_per_block)
    return _ldm_names(net.state_dict(), pairs, "model.diffusion_model.")


def ldm_control(state: State, prefix: str = "") -> State:
    """Of `references.controlnet_state`, for the U-Net of `networks`."""
    pairs = _unet_pairs(len(CHANNELS), LAYERS)
    pairs += [(f"controlnet_down_blocks.{i}.", f"zero_convs.{i}.0.") for i in range(9)]
    pairs += [("controlnet_mid_block.", "middle_block_out.0.")]
    return _ldm_names(state, pairs, prefix)


def _ldm_names(state: State, pairs: list[tuple[str, str]], prefix: str) -> State:
    def rename(key: str) -> str:
        for ours, theirs in pairs:
            if key.startswith(ours):
                rest = key.removeprefix(ours)
                if "resnets" in ours:
                    layer, end = rest.rsplit(".", 1)
                    rest = f"{RESNET[layer]}.{end}"
                return f"{prefix}{theirs}{rest}"
        raise KeyError(key)

    return {rename(key): value for key, value in state.items()}


def ldm_vae(net: AutoencoderKL) -> State:
    levels = len(net.config.block_out_channels)
    replacements = [("conv_norm_out", "norm_out"), ("mid_block.attentions.0", "mid.attn_1")]
    replacements += [(f"mid_block.resnets.{j}.", f"mid.block_{j + 1}.") for j in range(2)]
    for i in range(levels):
        replacements += [(f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample")]
        replacements += [(f"up_blocks.{i}.upsamplers.0", f"up.{levels - 1 - i}.upsample")]
        replacements += [(f"down_blocks.{i}.resnets.", f"down.{i}.block.")]
        replacements += [(f"up_blocks.{i}.resnets.", f"up.{levels - 1 - i}.block.")]
    replacements += [("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"), ("to_q", "q")]
    replacements += [("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
    renamed = {}
    for key, value in net.state_dict().items():
        pointwise = "attentions" in key and value.ndim == 2
        for ours, theirs in replacements:
            key = key.replace(ours, theirs)
        renamed[f"first_stage_model.{key}"] = value[:, :, None, None] if pointwise else value
    return renamed


def open_clip(net: CLIPTextModel) -> State:
    """With the fused projections, and one layer more than Stable Diffusion uses."""
    state = {k.removeprefix("text_model."): v for k, v in net.state_dict().items()}
    layers = net.config.num_hidden_layers
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    names |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    top = {"embeddings.token_embedding.weight": "token_embedding.weight"}
    top |= {"embeddings.position_embedding.weight": "positional_embedding"}
    top |= {f"final_layer_norm.{e}": f"ln_final.{e}" for e in ("weight", "bias")}
    made = {theirs: state[ours] for ours, theirs in top.items()}
    for i in range(layers + 1):
        source, block = f"encoder.layers.{min(i, layers - 1)}", f"transformer.resblocks.{i}"
        for end in ("weight", "bias"):
            parts = [state[f"{source}.self_attn.{p}_proj.{end}"] for p in "qkv"]
            made[f"{block}.attn.in_proj_{end}"] = torch.cat(parts)
            for ours, theirs in names.items():
                made[f"{block}.{theirs}.{end}"] = state[f"{source}.{ours}.{end}"].clone()
    made |= {"text_projection": torch.zeros(CONTEXT, CONTEXT), "logit_scale": torch.tensor(4.6)}
    return {f"cond_stage_model.model.{k}": v for k, v in made.items()}


def ldm_state(nets: Networks) -> State:
    made = ldm_unet(nets.unet) | ldm_vae(nets.vae) | open_clip(nets.text)
    return made | {"alphas_cumprod": torch.ones(9), "model_ema.decay": torch.tensor(0.9)}


def ldm_file(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, "global_step": 220_000}, path)
    return path


# RAM, DAPE


def draw(*shape: int, seed: int) -> torch.Tensor:
    fan_in = max(1, torch.Size(shape[1:]).numel())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / fan_in**0.5


def full_size() -> tuple[Networks, SwinModel]:
    """Stable Diffusion 2.1-base and Swin-L/384, shapes alone."""
    levels = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2}
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)}
    kinds["up_block_types"] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    heads = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024}
    vae = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    vae |= {k: (VAE[k][0],) * 4 for k in ("down_block_types", "up_block_types")}
    text = {"vocab_size": 49408, "hidden_size": 1024, "num_hidden_layers": 23, "hidden_act": "gelu"}
    text |= {"num_attention_heads": 16, "intermediate_size": 4096}
    large = {"image_size": 384, "embed_dim": 192, "depths": [2, 2, 18, 2], "window_size": 12}
    with torch.device("meta"):
        return Networks(
            UNet2DConditionModel(**(UNET | levels | kinds | heads)),
            AutoencoderKL(**(VAE | vae)),
            CLIPTextModel(CLIPTextConfig(**text)),
        ), SwinModel(SwinConfig(**large, num_heads=[6, 12, 24, 48]))


def swin() -> SwinModel:
    return randomise(SwinModel(SwinConfig(**SWIN, patch_size=4, mlp_ratio=4.0)), 3)


def ram_encoder(net: SwinModel) -> State:
    """The original Swin's names, with the projection to RAM's width."""
    made = {f"visual_encoder.{k}": v for k, v in references.swin_state(net).items()}
    width = 12 if net.config.embed_dim == SWIN["embed_dim"] else 512
    inner = net.config.embed_dim * 2 ** (len(net.config.depths) - 1)
    made["image_proj.weight"] = draw(width, inner, seed=1)
    return made | {"image_proj.bias": draw(width, seed=2)}


def ram_head() -> State:
    sizes = {"label_embed": (TAGS, LABELS), "wordvec_proj.weight": (HIDDEN, LABELS)}
    sizes |= {"wordvec_proj.bias": (HIDDEN,), "fc.weight": (1, HIDDEN), "fc.bias": (1,)}
    for i in range(2):
        layer = f"tagging_head.encoder.layer.{i}"
        for name, width in (("query", HIDDEN), ("key", 12), ("value", 12)):
            sizes[f"{layer}.crossattention.self.{name}.weight"] = (HIDDEN, width)
            sizes[f"{layer}.crossattention.self.{name}.bias"] = (HIDDEN,)
        for name, into, out in (
            ("crossattention.output", HIDDEN, HIDDEN),
            ("intermediate", HIDDEN, 24),
            ("output", 24, HIDDEN),
        ):
            ends = {"dense.weight": (out, into), "dense.bias": (out,)}
            if name != "intermediate":
                ends |= {"LayerNorm.weight": (out,), "LayerNorm.bias": (out,)}
            sizes |= {f"{layer}.{name}.{end}": shape for end, shape in ends.items()}
    return {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(sizes.items())}


def ram_extras() -> State:
    """Buffers, and networks that only write captions."""
    block = "visual_encoder.layers.0.blocks.1"
    return {
        f"{block}.attn_mask": torch.zeros(4, 16, 16),
        f"{block}.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64),
        "tag_encoder.embeddings.position_ids": torch.arange(4)[None],
        "tag_encoder.encoder.layer.0.attention.self.query.weight": torch.zeros(2, 2),
        "text_decoder.cls.predictions.bias": torch.zeros(3),
    }


def dape_state(ram: State, rank: int = 8) -> State:
    """loralib's: `qkv` has q and v adapted, of BERT's layers query and key."""
    made = {}
    for i, (key, value) in enumerate(ram.items()):
        name = key.removesuffix(".weight")
        if name == key or not name.endswith((".qkv", "self.query", "self.key")):
            continue
        out, into = value.shape
        fused = name.endswith("qkv")
        made[f"{name}.lora_A"] = draw(2 * rank if fused else rank, into, seed=100 + i)
        made[f"{name}.lora_B"] = draw(2 * out // 3 if fused else out, rank, seed=200 + i)
    return made


def osediff_targets(net: torch.nn.Module) -> dict[str, list[str]]:
    """Modules by adapter, in OSEDiff's order: the first list that takes a module has it."""
    made: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name in references.adapted_names(net):
        down, up = ("down_blocks", "conv_in"), ("up_blocks", "conv_out")
        part = "encoder" if any(x in name for x in down) else "others"
        part = "decoder" if part == "others" and any(x in name for x in up) else part
        made[part].append(name)
    return made


def osediff(nets: Networks, rank: int = 2) -> dict:
    """Injects random adapters into `nets`, in place, and returns what the file holds."""
    unet, vae = osediff_targets(nets.unet), references.adapted_names(nets.vae)
    kw = {"r": rank, "init_lora_weights": "gaussian"}  # lora_alpha stays peft's 8
    for part, modules in unet.items():
        config = LoraConfig(target_modules=modules, **kw)
        nets.unet.add_adapter(config, adapter_name=f"default_{part}")
    nets.unet.set_adapter([f"default_{part}" for part in unet])
    nets.vae.add_adapter(LoraConfig(target_modules=vae, **kw), adapter_name="default_encoder")
    randomise(nets.unet, 7)
    randomise(nets.vae, 8)
    state_unet = {k: v for k, v in nets.unet.state_dict().items() if "lora" in k or "conv_in" in k}
    return {
        "vae_lora_encoder_modules": vae,
        **{f"unet_lora_{part}_modules": modules for part, modules in unet.items()},
        "rank_unet": rank,
        "rank_vae": rank,
        "state_dict_unet": state_unet,
        "state_dict_vae": {k: v for k, v in nets.vae.state_dict().items() if "lora" in k},
    }


# LPIPS


def vgg(width: int = 4) -> State:
    """torchvision's VGG16, thin, with the classifier that its file has."""
    made, into = {"classifier.0.weight": torch.zeros(3, 3)}, 3
    for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        made[f"features.{i}.weight"] = draw(width, into, 3, 3, seed=i)
        made[f"features.{i}.bias"] = draw(width, seed=50 + i)
        into = width
    return made


def lpips_lin(width: int = 4) -> State:
    return {f"lin{i}.model.1.weight": draw(1, width, 1, 1, seed=70 + i).abs() for i in range(5)}


# Words of a small CLIP tokenizer.
MERGES = ["d o", "do g</w>", "# #</w>", "c a", "ca t</w>"]
LETTERS = [*"!,.#abcdgot", *(f"{c}</w>" for c in "!,.#abcdgot")]
VOCAB = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES), BOS, EOS]


def text_prompts(folder: Path, sources: Path, nets: Networks) -> dict:
    """What OSEDiff's own prompts need, as options of the import."""
    clip = text_folder(folder / "text", nets, VOCAB, MERGES)
    return {"dape": sources / "DAPE.pth", "clip": clip, "tags": tag_folder(folder / "tags")}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def meta(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
