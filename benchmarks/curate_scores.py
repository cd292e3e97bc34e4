"""Whether curation's scores without weights follow quality, and whom its test of blur drops.

    python -m benchmarks.curate_scores --output results/scores --source person=DIR \
        --source coco=ANNOTATIONS.json,IMAGES --niqe_params niqe.npz --set square.side_min=256

Crops are cut from the sources without a test of blur. A table says how many the test drops as it
measures all of the picture and as it measures the person, also where the crops are blurred. Then
200 of the crops that pass are damaged by blur, noise and JPEG, each at five strengths: another
table says how z of Eq. 1, standardised over the undamaged crops, ranks the strengths. The best and
the worst of all crops go to top.png and bottom.png, in a folder for z with NIQE and one for z
without, and are to be looked at.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from curate import run
from curate.config import BlurConfig, ScoreConfig
from curate.cropping.job import decode_crop
from curate.cropping.stages import Region, crop_sharpness
from curate.engine.ledger import ShardLedger
from curate.engine.parquet import CropFile, Row, read_rows
from curate.publish.figures import tile_pictures
from curate.quality import scores, statistics
from curate.quality.score_job import locate, read_placements
from curate.schema import Pixels

# The first is what was the default before the person was looked at.
GATES = (BlurConfig(of="picture", crop_min=100.0), BlurConfig())
# Standard deviations in pixels of the blurs that the test of blur is tried on.
SIGMAS = (0.0, 1.0, 1.5, 2.0, 3.0)
SHOWN = 32


class Crop(NamedTuple):
    """One crop with its row of the manifest and where its person is on it."""

    row: Row
    rgb: Pixels
    region: Region


def blur(rgb: Pixels, sigma: float) -> Pixels:
    """Gaussian blur; a deviation of 0 changes nothing."""
    return cv2.GaussianBlur(rgb, (0, 0), sigma) if sigma else rgb


def noise(rgb: Pixels, sigma: float) -> Pixels:
    """White Gaussian noise in levels of 255, the same for all."""
    drawn = np.random.default_rng(0).normal(0, sigma, rgb.shape)
    return np.clip(np.round(rgb + drawn), 0, 255).astype(np.uint8)


def jpeg(rgb: Pixels, quality: float) -> Pixels:
    """Compressed by JPEG and decoded."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, int(quality)))[1]
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


# Each kind of damage at five strengths, the mildest first.
DAMAGES: dict[str, tuple[Callable[[Pixels, float], Pixels], tuple[float, ...]]] = {
    "blur": (blur, (0.7, 1.0, 1.5, 2.0, 3.0)),
    "noise": (noise, (3, 6, 10, 15, 25)),
    "JPEG": (jpeg, (80, 60, 40, 20, 10)),
}


def cut(output: Path, sources: list[str], settings: list[str], of: str) -> ShardLedger:
    """Cut the sources' crops, measured in one way, without a test of blur."""
    flags = [f"--source={source}" for source in sources]
    settings = [*settings, f"blur.of={of}", "blur.source_min=0", "blur.crop_min=0"]
    flags += [f"--set={setting}" for setting in settings]
    for stage in ("index", "crop"):
        if run.main([stage, f"--output={output}", "--workers=0", *flags]):
            raise SystemExit(f"{stage} failed")
    return ShardLedger(output)


def crops_of(ledger: ShardLedger) -> Iterator[Crop]:
    """All crops, one after the other."""
    for shard in ledger.shards("crop"):
        rows = read_rows(ledger.output("crop", shard, "rows.parquet"))
        by_name = {row["crop_id"]: row for row in rows if not row["reason"]}
        places = read_placements(ledger, shard)
        for name, png in CropFile(ledger.output("crop", shard, "crops.parquet")).items():
            rgb = decode_crop(png)
            regions = locate(rgb[None], [name], places)[1]
            if regions:
                yield Crop(by_name[name], rgb, regions[0])


def passes(row: Row, gate: BlurConfig) -> bool:
    """Whether a crop passes the test of blur, by measures taken in the gate's way."""
    return row["lap_src"] >= gate.source_min and row["lap_crop"] >= gate.crop_min


def gate_table(ways: dict[str, list[Crop]]) -> list[str]:
    """Lines of a table: of each source's crops how many each test of blur drops."""
    head = ["| source | measured | crops | dropped as they are |"]
    head[0] += "".join(f" sigma {sigma:g} |" for sigma in SIGMAS[1:])
    lines = [*head, "|---" * (4 + len(SIGMAS[1:])) + "|"]
    for gate in GATES:
        for source in sorted({crop.row["dataset"] for crop in ways[gate.of]}):
            own = [crop for crop in ways[gate.of] if crop.row["dataset"] == source]
            dropped = [crop for crop in own if not passes(crop.row, gate)]
            cells = [source, gate.of, str(len(own)), str(len(dropped))]
            # Of blurred crops there are no blurred sources: the crop's own test is told.
            for sigma in SIGMAS[1:]:
                values = [crop_sharpness(blur(c.rgb, sigma), c.region, gate) for c in own]
                cells.append(f"{np.mean(np.array(values) < gate.crop_min):.0%}")
            lines.append(f"| {' | '.join(cells)} |")
            if gate.of == "person":
                names = [f"{c.row['path']} ({c.row['lap_crop']:.0f})" for c in dropped]
                lines.append(f"dropped of {source}: {', '.join(names) or 'none'}")
    return lines


# Columns of metrics by name.
Columns = dict[str, np.ndarray]


def measure(config: ScoreConfig, crops: list[Pixels], regions: list[Region]) -> Columns:
    """All metrics of some crops."""
    columns: Columns = {}
    for group in scores.groups(config):
        columns |= scores.make_scorer(group, config)(np.stack(crops), regions)
    return columns


def standardise(values: Columns, pool: Columns, directions: dict[str, int]) -> np.ndarray:
    """z of Eq. 1 by another pool's mean and deviation."""
    known = {name: pool[name] for name in directions}
    whole = np.isfinite(np.stack(list(known.values()))).all(axis=0)
    moments = statistics.fit_statistics({name: column[whole] for name, column in known.items()})
    return statistics.z_scores(values, moments, directions)


def damaged_columns(config: ScoreConfig, crops: list[Crop]) -> dict[str, list[Columns]]:
    """By damage the metrics of the crops at each strength, the undamaged ones first."""
    regions = [crop.region for crop in crops]
    intact = measure(config, [crop.rgb for crop in crops], regions)
    found = {name: [intact] for name in DAMAGES}
    for name, (damage, strengths) in DAMAGES.items():
        for strength in strengths:
            damaged = [damage(crop.rgb, strength) for crop in crops]
            found[name].append(measure(config, damaged, regions))
    return found


def validation_row(name: str, z: np.ndarray) -> str:
    """A line of the table: how z ranks the strengths of one damage, and none.

    Args:
        z: (crops, 1 + strengths).
    """
    order = np.broadcast_to(np.arange(z.shape[1]), z.shape)
    each = [-spearmanr(order[0], row)[0] for row in z if np.isfinite(row).all()]
    pooled = -spearmanr(order.ravel(), z.ravel(), nan_policy="omit")[0]
    means = " ".join(f"{value:.1f}" for value in np.nanmean(z, axis=0))
    return f"| {name} | {np.mean(each):.3f} | {np.min(each):.2f} | {pooled:.3f} | {means} |"


def write_sheets(output: Path, crops: list[Crop], z: np.ndarray) -> None:
    """The best and the worst crops as contact sheets."""
    output.mkdir(parents=True, exist_ok=True)
    order = [int(at) for at in np.argsort(-z) if np.isfinite(z[at])]
    for name, places in {"top": order[:SHOWN], "bottom": order[-SHOWN:]}.items():
        tiles = [
            (crops[at].rgb, f"{z[at]:.2f} {Path(crops[at].row['path']).name}") for at in places
        ]
        Image.fromarray(tile_pictures(tiles)).save(output / f"{name}.png")


def main() -> None:
    """Print the tables, write the sheets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--source", action="append", required=True, help="as of curate.run")
    parser.add_argument("--set", action="append", default=[], help="as of curate.run")
    parser.add_argument("--niqe_params", default="", help="as of curate.run")
    parser.add_argument("--crops", type=int, default=200, help="how many are damaged")
    flags = parser.parse_args()
    ways = {
        gate.of: list(crops_of(cut(flags.output / gate.of, flags.source, flags.set, gate.of)))
        for gate in GATES
    }
    print("\n".join(gate_table(ways)), flush=True)
    # In the order of their names, which are digests: a fair sample of all sources.
    crops = sorted(ways["person"], key=lambda crop: crop.row["crop_id"])
    config = ScoreConfig(niqe_params=flags.niqe_params)
    pool = measure(config, [crop.rgb for crop in crops], [crop.region for crop in crops])
    good = [crop for crop in crops if passes(crop.row, GATES[1])][: flags.crops]
    # With NIQE, if its parameters are given, and without in any case.
    ways_to_rank = {"without NIQE": scores.directions(ScoreConfig())}
    if flags.niqe_params:
        ways_to_rank["with NIQE"] = scores.directions(config)
    for title, directions in ways_to_rank.items():
        z = standardise(pool, pool, directions)
        write_sheets(flags.output / title.replace(" ", "-"), crops, z)
        found = {name: spearmanr(z, column, nan_policy="omit")[0] for name, column in pool.items()}
        cells = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
        print(f"{title}: rank correlation of z with {cells}", flush=True)
    damaged = damaged_columns(config, good)
    print(f"{len(good)} of {len(crops)} crops")
    print("| score | damage | mean rank correlation | least | pooled | mean z: none, by strength |")
    print("|---|---|---|---|---|---|")
    for title, directions in ways_to_rank.items():
        for name, columns in damaged.items():
            z = np.stack([standardise(c, pool, directions) for c in columns], axis=1)
            print(f"| {title} {validation_row(name, z)}")


if __name__ == "__main__":
    main()
