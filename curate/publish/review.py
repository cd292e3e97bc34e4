"""A page on which a person looks at crops and decides on them by hand.

It shows crops that are kept or were dropped by rank or threshold, in an order that a seed fixes:
by default the closest decisions and a random draw of the others, or all there are
(`ReviewConfig`). What is decided stays in the browser; a button saves review.csv (crop_id, keep),
which `--review` reads, another a file for FiftyOne. HQ-ACF has no such step; DiffBody's data set
was inspected by hand (its section 4.1).

    review.html               the page, which any browser opens without a server
    review/CROP.jpg           the crops
    review/index.js           a line for each crop: name, kept, z, reason
    review/facts-00000.js     source and scores, FACTS_ROWS crops a file, read when one is enlarged
"""

import html
import json
from collections.abc import Iterator
from heapq import nsmallest
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from curate.config import ReviewConfig
from curate.cropping.job import decode_crop
from curate.engine.parquet import Row
from curate.schema import RANKED
from curate.selection.manifest import Crops
from curate.selection.split import seeded_key
from osdhuman_jax.filenames import unspelled_path

# A script of so many crops' facts has about 300 kB.
FACTS_ROWS = 500
# The page's own marks of a JPEG must not be taken for the crop's, hence full colour and quality 90.
JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    90,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)
# What is said of a crop's source besides its scores, where it is known.
MORE = ("dataset", "license", "split", "raw_label", "detector", "persons", "scale_factor")
PLACE = ("path", "w", "h", "x0", "y0", "s")
# What is read of the manifest of all crops, and of those that are shown, besides the metrics.
CHOICE_COLUMNS = ("crop_id", "z", "kept", "reason")
REVIEW_COLUMNS = (
    *("crop_id", "image_id", "z", "kept", "reason", "crop_shard", "crop_row"),
    *(*MORE, *PLACE),
)
TEMPLATE = Path(__file__).with_name("review_page.html")


def choose_crops(pool: pa.Table, config: ReviewConfig) -> list[str]:
    """Names of the crops to look at, in the order of the page.

    The order of two crops depends on the seed and on their names alone.

    Args:
        pool: CHOICE_COLUMNS of the scored rows of the manifest.
    """
    names, z, kept = pool["crop_id"].to_pylist(), pool["z"].to_numpy(), pool["kept"].to_numpy()
    ranked = np.array([reason.startswith(RANKED) for reason in pool["reason"].to_pylist()], bool)
    keys = [seeded_key(config.seed, name) for name in names]

    def draw(mask: np.ndarray, sign: int, most: int) -> list[int]:
        """Half of `most` are the closest decisions, the others are drawn; 0 = all."""
        places = np.flatnonzero(mask).tolist()
        if not most or len(places) <= most:
            return places
        places.sort(key=lambda at: (sign * z[at], names[at]))
        close, rest = places[: -(-most // 2)], places[-(-most // 2) :]
        return close + nsmallest(most // 2, rest, keys.__getitem__)

    # A small change of a threshold would decide otherwise on the lowest kept and the best dropped.
    chosen = draw(kept, 1, config.kept)
    chosen += draw(~kept & ranked, -1, config.dropped)
    return [names[at] for at in sorted(chosen, key=keys.__getitem__)]


def write_page(folder: Path, chosen: pa.Table, crops: Crops, notice: str = "") -> None:
    """Write review.html and the folder review into the report's folder.

    Args:
        chosen: REVIEW_COLUMNS and the metrics of the crops, in the order of the page.
        notice: what the scores must not be taken for, to be shown on the page.
    """
    (folder / "review").mkdir()
    aspect = write_pictures(folder / "review", chosen, crops)
    write_index(folder / "review" / "index.js", chosen)
    for number, start in enumerate(range(0, len(chosen), FACTS_ROWS)):
        rows = [crop_facts(row, aspect) for row in chosen[start : start + FACTS_ROWS].to_pylist()]
        text = json.dumps(rows, allow_nan=False)
        (folder / "review" / f"facts-{number:05d}.js").write_text(f"takeFacts({number}, {text});\n")
    mark = f"<p><b>Classic metrics.</b> {html.escape(notice)}</p>" if notice else ""
    page = TEMPLATE.read_text().replace("__NOTICE__", mark)
    page = page.replace("__FACTS_ROWS__", str(FACTS_ROWS)).replace("var(--shape)", f"1 / {aspect}")
    (folder / "review.html").write_text(page)


def write_pictures(folder: Path, chosen: pa.Table, crops: Crops) -> int:
    """Write each crop as JPEG; returns their height over their width, 1 where there is none."""
    aspect = 1
    # Shard by shard, since opening a file of crops takes longer than reading one of them.
    places = chosen.select(["crop_id", "crop_shard", "crop_row"])
    for row in iter_rows(places.sort_by([("crop_shard", "ascending"), ("crop_row", "ascending")])):
        rgb = decode_crop(crops.png(row))
        aspect = rgb.shape[0] // rgb.shape[1]
        data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), JPEG)[1]
        (folder / f"{row['crop_id']}.jpg").write_bytes(data.tobytes())
    return aspect


def iter_rows(table: pa.Table) -> Iterator[Row]:
    """Yields the rows of a table, of which some thousand are held at a time."""
    for batch in table.to_batches(4096):
        yield from batch.to_pylist()


def write_index(path: Path, chosen: pa.Table) -> None:
    """Write the list of crops as a script, line by line."""
    with open(path, "w") as file:
        file.write("takeCrops([\n")
        for row in iter_rows(chosen.select(["crop_id", "kept", "z", "reason"])):
            facts = [row["crop_id"], int(row["kept"]), round(row["z"], 4), row["reason"]]
            file.write(json.dumps(facts) + ",\n")
        file.write("]);\n")


def crop_facts(row: Row, aspect: int) -> Row:
    """What the page says of a crop when it is enlarged."""
    return {
        **{name: row[name] for name in PLACE},
        "aspect": aspect,
        "image": row["image_id"],
        "uri": unspelled_path(row["path"]).as_uri(),
        "scores": {name: value for name, value in row.items() if name not in REVIEW_COLUMNS},
        "more": {name: row[name] for name in MORE if row[name] not in (None, "")},
    }
