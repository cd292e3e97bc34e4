"""NIQE's parameters fitted to pictures that the user trusts, in place of the authors'.

    python -m curate.niqe FOLDER --output niqe.npz

FOLDER holds pictures, or is the output of a curation, of which the best of the selected crops are
taken: a set's other crops are then held against its own sharp and clean people. Needed where the
authors' parameters must not be used, whose licence is for research. Scores by the user's own are
named `niqe-local`, since they compare with no published ones. An .npz file comes out. The
mathematics is in osdhuman_jax/evaluation/niqe.py.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from curate.config import DecodeConfig
from curate.cropping.decode import Refused, decode_source
from curate.cropping.job import decode_crop
from curate.engine.ledger import LedgerError, ShardLedger
from curate.readers import folders
from curate.schema import Pixels
from curate.selection.manifest import Crops, selected_rows
from osdhuman_jax.cli import CommandError, Parser, check_file, end, some_path
from osdhuman_jax.disk import staged_file
from osdhuman_jax.evaluation.niqe import LOCAL, NiqeError, fit
from osdhuman_jax.filenames import spelled

# Crops of a curation that parameters are fitted to: NIQE's authors took 125 photographs, which are
# larger.
BEST = 500


def _pictures(folder: Path) -> Iterable[Pixels]:
    """The pictures of a folder, without those that cannot be used, each of which is named.

    Of a curation's output the selected crops, best first. Raises LedgerError before a selection.
    """
    if (folder / "plan.json").is_file():
        ledger = ShardLedger(folder)
        rows = [row for split in selected_rows(ledger).values() for row in split]
        best, crops = sorted(rows, key=lambda row: row["rank"])[:BEST], Crops(ledger)
        yield from (decode_crop(crops.png(row)) for row in best)
        return
    for image in folders.read_person("pristine", folders.Notes(), folder):
        try:
            yield decode_source(image, DecodeConfig()).rgb
        except Refused as refused:
            print(f"{image.path}: left out: {refused}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Fit parameters to a folder. Returns the exit status, 2 on bad input."""
    parser = Parser("python -m curate.niqe", "Fit NIQE.")
    parser.add_argument(
        "folder",
        type=some_path,
        help="pictures without blur, noise or compression, or a curation's output",
    )
    parser.add_argument("--output", type=some_path, required=True, help="FILE.npz")
    flags = parser.parse_args(arguments)
    try:
        if flags.output.suffix != ".npz":
            raise NiqeError(f"--output {flags.output}: give it the suffix .npz")
        # Told now, and not after every picture was read: whether the output can be written.
        check_file("output", flags.output)
        model = fit(_pictures(flags.folder))
        arrays = dict(zip(LOCAL, (model.mean, model.covariance), strict=True))
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(flags.output) as file:
            np.savez(file, **arrays)
    except (NiqeError, CommandError, folders.ReaderError, LedgerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {spelled(flags.output)}; give it as --niqe_params")
    return 0


if __name__ == "__main__":
    end("niqe", main)
