"""Score published pictures again and compare with the values their authors logged.

    python -m benchmarks.realsr --data FOLDER [--weights WEIGHTS] --output OUT

FOLDER holds restored/, reference/ and published.csv: `name` and a column for each metric, picture
by picture, as OSEDiff's authors publish them with their RealSR results. PSNR and SSIM need nothing
else; for NIQE and a metric of pyiqa, WEIGHTS has its files. What cannot be computed is listed, not
counted.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from osdhuman_jax.commands import evaluate
from osdhuman_jax.evaluation.metrics import METRICS

TOLERANCE = {"psnr": 5e-5, "ssim": 5e-5, "niqe": 5e-5}  # half of the digit that must agree
LOOSE = 5e-4  # other metrics: their libraries differ from the log's


def read_published(path: Path) -> dict[str, dict[str, float]]:
    """{metric: {name without suffix: value}} of the columns whose title is a metric's."""
    names = {metric.title: metric.name for metric in METRICS.values()}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        names[title]: {Path(row["name"]).stem: float(row[title]) for row in rows}
        for title in rows[0]
        if title in names
    }


def compare(
    published: Mapping[str, Mapping[str, float]], images: Mapping[str, Mapping[str, float]]
) -> tuple[list[str], bool]:
    """A line for each metric, and whether all that were computed agree."""
    lines, good = [], True
    for metric, logged in published.items():
        found = {name: images[name].get(metric) for name in logged}
        known = {name: value for name, value in found.items() if value is not None}
        if len(known) < len(logged):
            lines.append(f"{metric:14} not compared")
            continue
        gaps = {name: abs(value - logged[name]) for name, value in known.items()}
        worst = max(gaps, key=lambda name: gaps[name])
        limit = TOLERANCE.get(metric, LOOSE)
        verdict = "agrees" if gaps[worst] <= limit else "DISAGREES"
        good &= gaps[worst] <= limit
        lines.append(
            f"{metric:14} {len(gaps)} pictures, largest difference {gaps[worst]:.1e} ({worst}), "
            f"limit {limit:.0e}: {verdict}"
        )
    return lines, good


def main(argv: Sequence[str] | None = None) -> int:
    """0 = all that could be computed agrees, 1 = not, 2 = nothing was computed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    published = read_published(args.data / "published.csv")
    flags = ["--restored", f"published={args.data / 'restored'}", "--batch_size", "4"]
    flags += ["--reference", str(args.data / "reference"), "--output", str(args.output)]
    flags += ["--weights", str(args.weights)] if args.weights else []
    if evaluate.main([*flags, "--metrics", ",".join(published)]) == 2:
        return 2
    whole = json.loads((args.output / "metrics.json").read_text())
    lines, good = compare(published, whole["images"]["published"])
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
