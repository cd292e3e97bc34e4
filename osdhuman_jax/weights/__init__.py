"""Model folders: the only place that reads and writes weight files."""

from osdhuman_jax.weights.cleaners import Cleaner, load_cleaner
from osdhuman_jax.weights.extractors import copy_prompter, encode_text, load_prompter
from osdhuman_jax.weights.model_folder import (
    CLEANER,
    Model,
    WeightsError,
    add_lora,
    is_generator,
    kind_of,
    load_base,
    load_model,
    random_restorer,
    save_model,
)
from osdhuman_jax.weights.parts import load_part

__all__ = [
    "CLEANER",
    "Cleaner",
    "Model",
    "WeightsError",
    "add_lora",
    "copy_prompter",
    "encode_text",
    "is_generator",
    "kind_of",
    "load_base",
    "load_cleaner",
    "load_model",
    "load_part",
    "load_prompter",
    "random_restorer",
    "save_model",
]
