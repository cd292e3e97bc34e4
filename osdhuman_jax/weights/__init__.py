"""Model folders: the only place that reads and writes weight files.

The import is light: JAX is loaded when one of these names is used for the first time, so that a
command line can read its flags without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# For type checkers and editors, which do not run `__getattr__`.
if TYPE_CHECKING:
    from osdhuman_jax.weights.cleaners import Cleaner, load_cleaner
    from osdhuman_jax.weights.diffbody import DiffBodyModel, load_diffbody
    from osdhuman_jax.weights.extractors import (
        copy_parts,
        copy_prompter,
        encode_text,
        load_prompter,
        load_tag_finder,
        load_text_encoder,
    )
    from osdhuman_jax.weights.model_folder import (
        CLEANER,
        DIFFBODY,
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
    from osdhuman_jax.weights.parts import load_part, save_part

__all__ = [
    "CLEANER",
    "DIFFBODY",
    "Cleaner",
    "DiffBodyModel",
    "Model",
    "WeightsError",
    "add_lora",
    "copy_parts",
    "copy_prompter",
    "encode_text",
    "is_generator",
    "kind_of",
    "load_base",
    "load_cleaner",
    "load_diffbody",
    "load_model",
    "load_part",
    "load_prompter",
    "load_tag_finder",
    "load_text_encoder",
    "random_restorer",
    "save_model",
    "save_part",
]

# The module that has a name, where it is not model_folder.
_HOMES = {
    **dict.fromkeys(("Cleaner", "load_cleaner"), "cleaners"),
    **dict.fromkeys(
        (
            *("copy_parts", "copy_prompter", "encode_text"),
            *("load_prompter", "load_tag_finder", "load_text_encoder"),
        ),
        "extractors",
    ),
    **dict.fromkeys(("DiffBodyModel", "load_diffbody"), "diffbody"),
    **dict.fromkeys(("load_part", "save_part"), "parts"),
}


def __getattr__(name: str) -> object:
    """A name of `__all__`, from the module that has it."""
    # Python asks here for what the module itself does not have, submodules among it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Its module keeps what was loaded: a second use costs a look into a dictionary.
    home = import_module(f"{__name__}.{_HOMES.get(name, 'model_folder')}")
    return getattr(home, name)
