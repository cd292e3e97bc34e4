"""osdhuman COMMAND [FLAGS]: all commands of the package; `osdhuman COMMAND --help` tells of one.

    osdhuman restore photo.jpg

The same as `python -m osdhuman_jax COMMAND`. A command's code is imported when it is called, so
that no command waits for what another one needs.
"""

import sys
from importlib import import_module

from osdhuman_jax import __version__

COMMANDS = {
    "restore": "restore photographs (infer.py)",
    "app": "the same in a browser",
    "degrade": "make degraded pictures of good ones",
    "evaluate": "the papers' tables of folders of restored pictures",
    "compare": "sheets of pictures side by side, a detail enlarged",
    "train": "train a restorer (train.py)",
    "label": "let a teacher restore degraded crops, as a source for training",
    "parts": "label the parts of people in photographs, for motion blur in training",
    "weights": "import, look at and export models",
    "export": "a restorer as one file, for JAX or ONNX",
}


def usage() -> str:
    """One line for each command."""
    lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
    return "\n".join([(__doc__ or "").strip(), "", *lines])


def main() -> None:
    """Hand the command line over to the command that it names."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"osdhuman {__version__}")
    elif name not in COMMANDS:
        there = ", ".join(COMMANDS)
        print(f"osdhuman: {name!r} is no command; there are {there}", file=sys.stderr)
        sys.exit(2)
    else:
        # Commands name themselves in refusals by what was called.
        sys.argv = [f"osdhuman {name}", *rest]
        import_module(f"osdhuman_jax.commands.{name}").command()


if __name__ == "__main__":
    main()
