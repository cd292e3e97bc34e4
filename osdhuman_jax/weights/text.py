"""Stable Diffusion 2.1's text encoder from disk, of which the paper's own prompts need nothing.

It serves the prompts of Table 4's ablation that are text.
"""

from dataclasses import fields
from pathlib import Path

from osdhuman_jax.config import ModelConfig, from_dict
from osdhuman_jax.networks.configs import CLIPConfig
from osdhuman_jax.weights import name_tables
from osdhuman_jax.weights.diffusion import (
    below,
    contradictions,
    count,
    needed,
    read_json,
    size_of,
    state,
    weights_file,
)
from osdhuman_jax.weights.parts import Part, part_shapes

# Names of transformers' weight files, of safetensors and of torch.
CLIP_STEMS = ("model", "pytorch_model")


def read_clip(path: Path) -> Part[CLIPConfig]:
    """The text encoder of a diffusers folder, of its text_encoder/, or of a single file."""
    if not path.is_dir():
        return _read_openclip(path)
    # A whole diffusers folder, or its text_encoder/ alone.
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    where, c = folder / "config.json", read_json(folder / "config.json")
    names = [f.name for f in fields(CLIPConfig)]
    needed(where, c, *names)
    # CLIP has two activations: OpenAI's own models use another one than Stable Diffusion 2.
    contradictions(where, c, {"hidden_act": "gelu", "layer_norm_eps": 1e-5})
    config = from_dict(CLIPConfig, {name: c[name] for name in names})
    file = weights_file(folder, *CLIP_STEMS)
    targets = part_shapes("clip", config, ModelConfig())
    tensors = name_tables.convert(
        state(file), name_tables.CLIP, targets, str(file), ignore=name_tables.CLIP_IGNORE
    )
    return Part(config, tensors, [file])


def _read_openclip(path: Path) -> Part[CLIPConfig]:
    prefix = f"{name_tables.LDM_CLIP}model."
    source = below(state(path, "state_dict"), prefix)
    # Stable Diffusion 2 takes the tokens before the last layer (its "penultimate").
    layers = count(source, r"transformer\.resblocks\.(\d+)\.") - 1
    width = size_of(path, source, "ln_final.weight")
    config = CLIPConfig(
        vocab_size=size_of(path, source, "token_embedding.weight"),
        max_position_embeddings=size_of(path, source, "positional_embedding"),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),  # OpenCLIP's heads are 64 wide
        intermediate_size=size_of(path, source, "transformer.resblocks.0.mlp.c_fc.bias"),
    )
    targets = part_shapes("clip", config, ModelConfig())
    ignore = name_tables.openclip_ignore(layers)
    found = name_tables.convert(source, name_tables.OPENCLIP, targets, str(path), ignore=ignore)
    return Part(config, found, [path])
