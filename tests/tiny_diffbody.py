"""The tiny DiffBody: its folder on disk, with or without texts and what finds people."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from convert import filled
from flax import nnx
from tiny_models import DEEP

from osdhuman_jax.config import ModelConfig, SampleConfig, UseConfig
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.configs import (
    CLIPConfig,
    ControlNetConfig,
    PartParserConfig,
    RRDBNetConfig,
)
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.part_parser import PartParser
from osdhuman_jax.networks.rrdbnet import RRDBNet
from osdhuman_jax.networks.tokenizer import BOS, EOS
from osdhuman_jax.weights import save_model, save_part
from osdhuman_jax.weights.choices import POSE_FILES

TEXTS = replace(DEEP, text=True)
VOCAB = [*"!,abcdgot", *(f"{c}</w>" for c in "!,abcdgot"), "do", "dog</w>", BOS, EOS]
MERGES = ["d o", "do g</w>"]
CLIP = CLIPConfig(len(VOCAB), 7, 8, 1, 1, 8)
CONTROL = ControlNetConfig(DEEP.unet, pose=True, attention=True)
CLEANER = RRDBNetConfig(4, 4, 1, 1)
USE = UseConfig("wavelet", sample=SampleConfig(steps=2))


def save(
    folder: Path, *, text: bool = True, parser: bool = True, people: bool = True, use=USE
) -> Path:
    """A model folder, every weight random; its BlazePose is two files of no content."""
    model: ModelConfig = TEXTS if text else DEEP
    save_model(folder, model, filled(lambda rngs: build_restorer(model, rngs=rngs)), use=use)
    save_part(folder, "control", CONTROL, _network(ControlNet, CONTROL))
    save_part(folder, "cleaner", CLEANER, _network(RRDBNet, CLEANER))
    if parser:
        sizes = PartParserConfig(5, (4, 4), 2)
        save_part(folder, "parser", sizes, _network(PartParser, sizes))
    small = dict.fromkeys(POSE_FILES, b"") if people else {}
    if text:
        save_part(folder, "clip", CLIP, _network(CLIPTextModel, CLIP))
        vocabulary = json.dumps({token: i for i, token in enumerate(VOCAB)})
        merges = "\n".join(["#version: 0.2", *MERGES, ""])
        small |= {"tokenizer/vocab.json": vocabulary.encode()}
        small |= {"tokenizer/merges.txt": merges.encode()}
    add(folder, small)
    return folder


def add(folder: Path, small: dict[str, bytes]) -> None:
    """Small files, with their digests."""
    meta = json.loads((folder / "config.json").read_text())
    for name, data in small.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        meta["digests"][name] = hashlib.sha256(data).hexdigest()
    (folder / "config.json").write_text(json.dumps(meta))


def _network(kind, sizes) -> nnx.Module:
    return filled(lambda rngs: kind(sizes, rngs=rngs), 1)


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> np.ndarray:
    """Coloured noise over a slope."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 60, (*size, 3))
    slope = np.linspace(0, 180, size[0])[:, None, None]
    return (noise + slope).astype(np.uint8)
