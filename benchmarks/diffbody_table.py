"""The table of a DiffBody's ablations: what cleaner, ControlNet, structure and guidance each bring.

    python -m benchmarks.diffbody_table --diffbody MODEL --from blazepose:WHEEL --input PHOTOS \\
        --side 192 --output results/diffbody_table --write MODEL_CARD.md

Columns, pictures, sheets and further flags are those of benchmarks.quality, whose rows (the input,
non-local means, the bundled one-step model, peers) come first. Then

    cleaner alone        the folder's own, I_reg
    DiffBody             as the folder is best used, without guidance
    guided               led by parts of the body, by the scale of --guidance
    without pose         the ControlNet sees the attention map and no skeleton
    without attention    it sees the skeleton and no map
    without both         nobody is there (--pose off)

People are found in what the cleaner makes of each picture (Eq. 3), by `osdhuman poses`; without
--from the rows that need them are left out. All rows draw the same noise.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.quality import Method, by_model, command_line, methods, report, run
from osdhuman_jax.data.structures import POSES
from osdhuman_jax.disk import file_digest, staged_folder, write_text
from osdhuman_jax.images.listing import named_images
from osdhuman_jax.weights import load_diffbody
from osdhuman_jax.weights.cleaners import save_cleaner

CLEANER = "cleaner alone"
BOTH, JOINTS, MAPS = "both", "joints", "maps"  # what is told of people


def save_alone(folder: Path, target: Path) -> Path:
    """The cleaner of a DiffBody as a model folder of its own."""
    cleaner = load_diffbody(folder).cleaner
    with staged_folder(target, replace=True) as made:
        save_cleaner(made, cleaner.config, cleaner.restorer)
    return target


def find(cleaned: Path, place: Path, source: str) -> Path:
    """A folder of what is known of people in `cleaned`, with BOTH, JOINTS and MAPS in it."""
    # Of these very pictures: what was found in others is not asked again.
    files = named_images(cleaned)
    digests = "".join(file_digest(files[name]) for name in sorted(files))
    root = place / f"poses_{hashlib.sha256(digests.encode()).hexdigest()[:12]}"
    kind, colon, file = source.partition(":")
    source = f"{kind}:{Path(file).resolve()}" if colon else kind
    run(
        *("-m", "osdhuman_jax", "poses"),
        *("--pictures", cleaned),
        "--output",
        root / BOTH,
        "--from",
        source,
    )
    # One of the two is told where the other one is left out.
    told = (root / BOTH / POSES).read_text()
    nobody = [json.dumps(json.loads(line) | {"people": []}) + "\n" for line in told.splitlines()]
    for name, text in ((JOINTS, told), (MAPS, "".join(nobody))):
        (root / name).mkdir(exist_ok=True)
        write_text(root / name / POSES, text)
    for name, path in named_images(root / BOTH).items():
        copy = root / MAPS / f"{name}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return root


def structured(
    model: Path, source: str, told: str, more: tuple[str, ...], inputs: Path, outputs: Path
) -> float:
    """A row for which people are found first; `told` is BOTH, JOINTS or MAPS."""
    place = inputs.parent
    known = find(place / CLEANER.replace(" ", "-"), place, source) / told
    return by_model(model, inputs, outputs, "--pose", known, *more)


def rows_of(flags: argparse.Namespace) -> Mapping[str, Method]:
    """The rows of benchmarks.quality, and those of the DiffBody."""
    if not flags.diffbody.is_dir():
        raise ValueError(f"--diffbody {flags.diffbody}: no such folder")
    model, plain = flags.diffbody.resolve(), ("--guidance", "0", "--seed", f"{flags.seed}")
    alone = save_alone(model, flags.output.resolve() / "cleaner")
    rows = {**methods(flags), CLEANER: partial(by_model, alone)}
    if flags.source:
        led = ("--guidance", f"{flags.guidance}", *plain[2:])
        row = partial(structured, model, flags.source)
        rows |= {
            "DiffBody": partial(row, BOTH, plain),
            "guided": partial(row, BOTH, led),
            "without pose": partial(row, MAPS, plain),
            "without attention": partial(row, JOINTS, plain),
        }
    else:
        print("rows that need people are left out: no --from was given", file=sys.stderr)

    def nobody(inputs: Path, outputs: Path) -> float:
        return by_model(model, inputs, outputs, "--pose", "off", *plain)

    return rows | {"without both": nobody}


def main(argv: list[str] | None = None) -> int:
    """Write folders, sheets and tables; 0 = done, 2 = not (one line says why)."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--diffbody", type=Path, required=True, help="model folder of a DiffBody")
    add("--from", dest="source", help="what finds people; as osdhuman poses --from")
    add("--guidance", type=float, default=0.2, help="scale of the guided row")
    return report(parser.parse_args(argv), rows_of)


if __name__ == "__main__":
    sys.exit(main())
