"""What curation costs, how the cost grows, and what four million images would take.

    python -m benchmarks.curate --output results/cost --sizes 100 1000 10000
    python -m benchmarks.curate --output results/growth --small --sizes 1000 10000 100000
    python -m benchmarks.curate --output results/cost --labels 1000 200000 1000000
    python -m benchmarks.curate --output results/cost --rows 100000 1000000

Each size is a COCO set of that many distinct 640 x 480 photographs (random windows of shipped
ones, with light and noise of their own, so that few of them look alike) with one to eight person
boxes each, curated from scratch with metrics that need no weights. Half of the photographs have one
box that is large enough for a crop. With --small they are 160 x 120, one in nine yields a crop, as
with the paper's numbers, limits in pixels are a quarter of the usual ones, and packs are of JPEG:
what a picture costs is then not the usual, but how cost and memory grow is. Seconds are of CPU,
summed over shards, so workers and waiting do not count. With --labels it is indexing that is
measured, of Objects365 files of that many annotations; with --rows the two steps that see
everything, select and report, over so many made-up rows without pictures: five boxes an image, a
crop in every 45 boxes, as with the paper's numbers.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from curate.config import CurateConfig, ReviewConfig
from curate.cropping.fingerprints import THUMB_SIDE
from curate.cropping.job import encode_crop
from curate.demo import PORTRAITS, STAND_INS, photograph, write_jpeg
from curate.engine.engine import Engine
from curate.engine.ledger import ShardLedger
from curate.engine.parquet import (
    CANDIDATE_SCHEMA,
    FINGERPRINT_SCHEMA,
    crop_writer,
    write_rows,
    write_scores,
)
from curate.publish.report import write_report
from curate.quality.classic import CLASSIC_METRICS
from curate.selection.manifest import check_funnels, read_funnels
from curate.selection.select_job import SelectJob
from osdhuman_jax.disk import json_lines, write_json

ROOT = Path(__file__).parent.parent
BOX = [100.0, 10.0, 430.0, 460.0]  # x, y, w, h of the person who becomes a crop, at 640 x 480
BOXES = 8  # persons on a photograph at most
LIGHT = 40.0  # gray levels by which each picture's light varies from one corner to another
SHARD_IMAGES = 1000  # of a made-up shard
METRICS = tuple(CLASSIC_METRICS)
PAPER = {"images": 4_000_000, "crops": 440_000, "kept": 109_053}


class Pictures(NamedTuple):
    """What the generated pictures are like, and the settings by which they are curated."""

    width: int
    height: int
    # Share of the pictures that have a person large enough for a crop.
    large: float
    settings: tuple[str, ...]


USUAL = Pictures(640, 480, 0.5, ("blur.source_min=10", "blur.crop_min=10"))
# Enlarged to 512 pixels such pictures have no sharp tile, so that blur is measured and not judged.
SMALL_LIMITS = ("box.long_min=64", "box.short_min=24", "square.side_min=96")
SMALL_OFF = ("blur.source_min=0", "blur.crop_min=0", "pack.codec=jpeg")
SMALL = Pictures(160, 120, 1 / 9, (*SMALL_LIMITS, *SMALL_OFF))


def window(
    photographs: list[np.ndarray], rng: np.random.Generator, pictures: Pictures
) -> np.ndarray:
    """A random part of a photograph, in another light, noisy, perhaps mirrored."""
    rgb = photographs[rng.integers(len(photographs))]
    height = int(rng.integers(min(rgb.shape[0], rgb.shape[1] * 3 // 4) // 2, rgb.shape[0]))
    height = min(height, rgb.shape[1] * 3 // 4)
    y = int(rng.integers(rgb.shape[0] - height + 1))
    x = int(rng.integers(rgb.shape[1] - height * 4 // 3 + 1))
    part = rgb[y : y + height, x : x + height * 4 // 3]
    size = pictures.width, pictures.height
    part = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)
    part = part[:, ::-1] if rng.random() < 0.5 else part
    light = cv2.resize(rng.normal(0, LIGHT, (6, 8)), size, interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 6, part.shape)
    return np.clip(part + light[..., None] + noise, 0, 255).astype(np.uint8)


def boxes_of(rng: np.random.Generator, pictures: Pictures) -> list[list[float]]:
    """x, y, w, h of the people on a photograph: perhaps a large one, and small others."""
    boxes = [BOX] if rng.random() < pictures.large else []
    for _ in range(int(rng.integers(not boxes, BOXES))):
        w, h = rng.uniform(20, 90), rng.uniform(60, 240)
        boxes.append([rng.uniform(0, USUAL.width - w), rng.uniform(0, USUAL.height - h), w, h])
    scale = pictures.width / USUAL.width
    return [[side * scale for side in box] for box in boxes]


def write_set(root: Path, count: int, pictures: Pictures) -> str:
    """`count` images as a COCO set; returns the value of --source."""
    photographs = [photograph(name) for name in (*PORTRAITS, *STAND_INS)]
    images, boxes = [], []
    for i in range(1, count + 1):
        name, rng = f"{i:012d}.jpg", np.random.default_rng(i)
        width, height = write_jpeg(root / "images" / name, window(photographs, rng, pictures))
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        boxes += [
            {"id": i * BOXES + at, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": box}
            for at, box in enumerate(boxes_of(rng, pictures))
        ]
    path = root / "instances_copies.json"
    people = [{"id": 1, "name": "person"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": people}))
    return f"coco={path},{root / 'images'}"


def write_labels(root: Path, count: int) -> str:
    """An Objects365 json of `count` annotations, 15 an image and 1 in 12 a person; one picture."""
    rng = np.random.default_rng(0)
    files = (f"objects365_v2_{i:08d}.jpg" for i in range(-(-count // 15)))
    images = (
        {"id": i, "file_name": name, "width": 768, "height": 512} for i, name in enumerate(files)
    )
    flags = {"iscrowd": 0, "isfake": 0, "isreflected": 0}
    boxes = (
        {"id": i, "image_id": i // 15, "category_id": 2 + i % 364 if i % 12 else 1, "bbox": bbox}
        for i, bbox in enumerate(rng.uniform(1, 400, 4).tolist() for _ in range(count))
    )
    names = ({"id": i, "name": f"Thing {i}" if i > 1 else "Person"} for i in range(1, 366))
    lists = {"images": images, "annotations": (b | flags for b in boxes), "categories": names}
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "images" / "objects365_v2_00000000.jpg").touch()
    path = root / "zhiyuan_objv2_train.json"
    with open(path, "w") as file:  # as a stream: a child's peak is never below its parent's size
        for before, (name, entries) in zip("{,,", lists.items(), strict=True):
            file.write(f'{before}"{name}": [')
            for at, entry in enumerate(entries):
                file.write("," * bool(at) + json.dumps(entry))
            file.write("]")
        file.write("}")
    return f"objects365={path},{root / 'images'}"


def measure_labels(root: Path, count: int) -> str:
    """A line: what indexing so many annotations takes."""
    source = write_labels(root / "source", count)
    command = ["-m", "curate.run", "index", f"--output={root / 'set'}", f"--source={source}"]
    cpu, _, peak = run([*command, "--workers=0"])
    return f"{count} annotations: index {cpu:.1f} CPU s, peak {peak} MB"


def write_shard(ledger: ShardLedger, number: int, crops: Path) -> None:
    """A crop shard of SHARD_IMAGES images and its scores, made up; `crops` is its file of crops."""
    rng, shard = np.random.default_rng(number), f"made-{number:05d}"
    rows, fingerprints, scores = [], [], []
    for image in range(SHARD_IMAGES):
        name = f"{number * SHARD_IMAGES + image:012d}"
        base = {"image_id": f"made/train2017/{name}", "dataset": "made", "license": "CC BY 2.0"}
        base |= {"path": f"/data/made/train2017/{name}.jpg", "w": 640, "h": 480, "orientation": 1}
        base |= {"file_sha256": rng.bytes(32).hex(), "pixel_sha256": rng.bytes(32).hex()}
        base |= {"lap_src": float(rng.uniform(100, 2000)), "phash": rng.bytes(8).hex()}
        for box in range(5):
            row = {**base, "box_index": box, "box_x0": 1.5, "box_y0": 2.5, "box_x1": 99.5}
            rows.append({**row, "box_y1": 400.25, "box_score": 1.0, "reason": "box_small"})
        if image % 9 == 0:
            crop = {"crop_id": rng.bytes(16).hex(), "x0": 1, "y0": 2, "s": 400, "persons": 3}
            crop |= {"scale_factor": 1.28, "crop_shard": shard, "crop_row": len(scores)}
            rows[-1] |= {**crop, "lap_crop": 900.0, "reason": "", "crop_sha256": "0" * 64}
            values = dict(zip(METRICS, rng.normal(size=len(METRICS)).tolist(), strict=True))
            scores.append({"crop_id": crop["crop_id"], **values})
            mark = {"pixels": 307_200, "thumb": rng.bytes(THUMB_SIDE**2)}
            mark |= {k: int.from_bytes(rng.bytes(8), "big") for k in ("phash", "mirrored")}
            mark |= {k: base[k] for k in ("image_id", "file_sha256", "pixel_sha256")}
            fingerprints += [{**mark, "flickr_id": ""}, {**mark, "crop_id": crop["crop_id"]}]
    with ledger.workspace() as folder:
        write_rows(folder / "rows.parquet", CANDIDATE_SCHEMA, rows)
        write_rows(folder / "prints.parquet", FINGERPRINT_SCHEMA, fingerprints)
        shutil.copyfile(crops, folder / "crops.parquet")
        ledger.commit("crop", shard, "made", folder, {})
    with ledger.workspace() as folder:
        write_scores(folder / "scores.parquet", METRICS, scores)
        ledger.commit("score-classic", shard, "made", folder, {})


def measure_rows(root: Path, count: int) -> str:
    """A line: what selecting from so many rows and reporting on them takes."""
    ledger = ShardLedger(root)
    with ledger.workspace() as folder:
        shade = np.tile(np.arange(512, dtype=np.uint8)[:, None], (1, 512))
        png = encode_crop(cv2.cvtColor(shade, cv2.COLOR_GRAY2RGB))
        with crop_writer(folder / "crops.parquet") as file:
            for _ in range(0, SHARD_IMAGES, 9):
                file.add({"crop_id": "", "png": png})
        for number in range(count // (5 * SHARD_IMAGES)):
            write_shard(ledger, number, folder / "crops.parquet")
    script = f"from benchmarks.curate import {{0}}; {{0}}({str(root)!r})"
    line = f"{count} rows:"
    for step in ("select_rows", "report_rows"):
        cpu, _, peak = run(["-c", script.format(step)])
        line += f" {step.removesuffix('_rows')} {cpu:.1f} CPU s, peak {peak} MB;"
    return line.removesuffix(";")


def select_rows(root: str) -> None:
    """The select job over the made-up shards, and the count of all rows."""
    job = SelectJob(CurateConfig(), tuple(ShardLedger(root).shards("crop")))
    Engine(Path(root)).run(job, ["all"])
    check_funnels(read_funnels(ShardLedger(root)))


def report_rows(root: str) -> None:
    """The report on that."""
    write_report(ShardLedger(root), ReviewConfig())


def run(command: list[str]) -> tuple[float, float, int]:
    """CPU seconds, wall seconds and peak memory (MB, of the largest process) of a command."""
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    wall = time.monotonic() - start
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss // 1024


def measure(output: Path, source: str, workers: int, settings: Sequence[str]) -> dict:
    """Each stage as a command of its own."""
    costs: dict = {"cpu": {}, "wall": {}, "peak_mb": {}}
    for stage in ("index", "crop", "score", "select", "pack", "report"):
        command = ["-m", "curate.run", stage, f"--output={output}", f"--source={source}"]
        command += [f"--workers={workers}", *(f"--set={s}" for s in ("split.val=10", *settings))]
        cpu, wall, peak = run(command)
        costs["cpu"][stage], costs["wall"][stage] = round(cpu, 2), round(wall, 2)
        costs["peak_mb"][stage] = peak
    return costs | facts(output)


def facts(output: Path) -> dict:
    """Counts, and the shares of the crop job's stages, from the run's own log."""
    counts, stages = defaultdict(int), defaultdict(float)
    for line in json_lines((output / "log.jsonl").read_bytes()):
        if line["job"] == "crop":
            counts["images"] += line["images"]
            counts["crops"] += line["crops"]
            counts["rows"] += sum(line["reasons"].values())
            for stage, seconds in line["stages"].items():
                stages[stage] += seconds
        if line["job"] == "select":
            counts["kept"] = sum(line["kept"].values())
    total = sum(stages.values())
    shares = {stage: round(seconds / total, 3) for stage, seconds in stages.items()}
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return {**counts, "crop_shares": shares, "disk_mb": size // 2**20}


UNITS = {
    "index": "images",
    "crop": "images",
    "score": "crops",
    "select": "crops",
    "report": "crops",
    "pack": "kept",
}


def marginal(small: dict, large: dict, what: str) -> dict[str, float]:
    """What one more unit takes, by stage, from two sizes (start-up drops out).

    Args:
        what: "cpu" for seconds, "peak_mb" for MB.
    """
    return {
        stage: (large[what][stage] - small[what][stage]) / max(1, large[unit] - small[unit])
        for stage, unit in UNITS.items()
    }


def cells(costs: dict[str, float], scale: float, form: str) -> str:
    """Costs of one more unit as text, times `scale`."""
    found = (f"{stage} {cost * scale:{form}}/{UNITS[stage]}" for stage, cost in costs.items())
    return ", ".join(found).replace("s,", ",").removesuffix("s").replace("/kept", "/kept crop")


def table(results: dict[int, dict], extrapolate: bool) -> str:
    """Text: costs by size, growth, extrapolation."""
    lines = [
        f"{'images':>8}{'rows':>8}{'crops':>8}{'kept':>7}" + "".join(f"{s:>10}" for s in UNITS)
    ]
    lines[0] += f"{'peak MB':>10}{'disk MB':>10}   (CPU seconds)"
    for size, r in results.items():
        row = f"{size:>8}{r['rows']:>8}{r['crops']:>8}{r['kept']:>7}"
        row += "".join(f"{r['cpu'][stage]:>10.1f}" for stage in UNITS)
        lines.append(row + f"{max(r['peak_mb'].values()):>10}{r['disk_mb']:>10}")
    sizes = sorted(results)
    for size in sizes:
        peaks = ", ".join(f"{stage} {mb}" for stage, mb in results[size]["peak_mb"].items())
        lines.append(f"{size}: peak MB {peaks}")
    for a, b in zip(sizes, sizes[1:], strict=False):
        small, large = results[a], results[b]
        lines.append(f"{a} -> {b}: CPU ms {cells(marginal(small, large, 'cpu'), 1000, '.2f')}")
        lines.append(f"{a} -> {b}: peak kB {cells(marginal(small, large, 'peak_mb'), 1024, '.1f')}")
    if extrapolate and len(sizes) > 1:
        cost = marginal(results[sizes[-2]], results[sizes[-1]], "cpu")
        hours = ", ".join(f"{s} {c * PAPER[UNITS[s]] / 3600:.1f}" for s, c in cost.items())
        lines.append(f"4 million images, 440,000 crops, 109,053 kept: core hours {hours}")
    shares = ", ".join(f"{s} {v:.0%}" for s, v in results[sizes[-1]]["crop_shares"].items())
    return "\n".join([*lines, f"crop job, shares of its time: {shares}"])


def main() -> None:
    """Measure all sizes; print the table; keep OUT/cost.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--small", action="store_true", help="pictures of 160 x 120")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--labels", type=int, nargs="+", help="annotations, for indexing alone")
    parser.add_argument("--rows", type=int, nargs="+", help="rows, for select and report alone")
    flags = parser.parse_args()
    for count in flags.rows or ():
        print(measure_rows((flags.output / f"rows-{count}").resolve(), count))
    if flags.rows:
        return
    results = {}
    for size in flags.labels or flags.sizes:
        root = (flags.output / (f"labels-{size}" if flags.labels else str(size))).resolve()
        if (root / "set").exists():
            parser.error(f"{root / 'set'} is there already: what is done would cost nothing")
        if flags.labels:
            print(measure_labels(root, size))
            continue
        pictures = SMALL if flags.small else USUAL
        # Elsewhere, since a child's peak is never below its parent's size.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            source = pool.submit(write_set, root / "source", size, pictures).result()
        results[size] = measure(root / "set", source, flags.workers, pictures.settings)
        write_json(flags.output / "cost.json", results)
    if results:
        print(table(results, not flags.small))


if __name__ == "__main__":
    main()
