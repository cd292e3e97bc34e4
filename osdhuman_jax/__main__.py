"""osdhuman COMMAND [FLAGS]: all commands of the package; `osdhuman COMMAND --help` tells of one.

    osdhuman restore photo.jpg

The same as `python -m osdhuman_jax COMMAND`. A command's code is imported when it is called, so
that no command waits for what another one needs.
"""

import sys
from importlib import import_module
from typing import NoReturn

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
    "poses": "find skeletons of people in photographs, for DiffBody's training",
    "captions": "describe photographs by RAM's tags, for training with text",
    "weights": "get, import, look at and export models",
    "export": "a restorer as one file, for JAX or ONNX",
}


def usage() -> str:
    """One line for each command."""
    lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
    return "\n".join([(__doc__ or "").strip(), "", *lines])


def start(command: str, name: str) -> NoReturn:
    """Import a command and run it as the whole process; `name` is what a person called it by."""
    # Its own end hears Ctrl-C once it runs. Importing takes seconds, in which a person may think
    # better of it too.
    try:
        import_module(f"osdhuman_jax.commands.{command}").command()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def tell(name: str) -> int:
    """Answer a command line that names no command; returns the exit status."""
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"osdhuman {__version__}")
        return 0
    there = ", ".join(COMMANDS)
    print(f"osdhuman: {name!r} is no command; there are {there}", file=sys.stderr)
    return 2


def main() -> NoReturn:
    """Hand the command line over to the command that it names."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in COMMANDS:
        # Commands name themselves in refusals by what was called.
        sys.argv = [f"osdhuman {name}", *rest]
        start(name, sys.argv[0])
    # Only commands need flags and files, which this imports.
    from osdhuman_jax.cli import end

    end("osdhuman", lambda: tell(name))


if __name__ == "__main__":
    main()
