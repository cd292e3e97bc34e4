"""NIQE's parameters fitted to pictures that the user trusts, in place of the authors'.

    python -m curate.niqe FOLDER --output niqe.npz

Scores by them are named `niqe-local` (see osdhuman_jax/niqe.py, which has the mathematics).
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from curate.config import DecodeConfig
from curate.decode import Refused, load
from curate.readers import folders
from curate.schema import Pixels
from osdhuman_jax.niqe import LOCAL, NiqeError, fit


def _pictures(folder: Path) -> Iterable[Pixels]:
    for image in folders.read_person("pristine", folder):
        try:
            yield load(image, DecodeConfig()).rgb
        except Refused as refused:
            print(f"{image.path}: left out: {refused}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Fit parameters to a folder. Exit status 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m curate.niqe", description="Fit NIQE.")
    parser.add_argument("folder", type=Path, help="pictures without blur, noise or compression")
    parser.add_argument("--output", type=Path, required=True, help="FILE.npz")
    flags = parser.parse_args(arguments)
    try:
        if flags.output.suffix != ".npz":
            raise NiqeError(f"--output {flags.output}: give it the suffix .npz")
        model = fit(_pictures(flags.folder))
        np.savez(flags.output, **dict(zip(LOCAL, (model.mean, model.covariance), strict=True)))
    except (NiqeError, folders.ReaderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {flags.output}; give it as --niqe_params")
    return 0


if __name__ == "__main__":
    sys.exit(main())
