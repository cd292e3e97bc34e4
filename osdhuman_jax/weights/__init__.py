"""Model folders: the only place that reads and writes weight files."""

from osdhuman_jax.weights.extractors import copy_prompter, encode_text, load_prompter
from osdhuman_jax.weights.parts import load_part
from osdhuman_jax.weights.store import (
    Model,
    WeightsError,
    add_lora,
    is_generator,
    load_base,
    load_model,
    random_restorer,
    save_model,
)

__all__ = [
    "Model",
    "WeightsError",
    "add_lora",
    "copy_prompter",
    "encode_text",
    "is_generator",
    "load_base",
    "load_model",
    "load_part",
    "load_prompter",
    "random_restorer",
    "save_model",
]
