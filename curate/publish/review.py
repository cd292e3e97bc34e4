"""A page for a look by hand at the crops where a decision is closest, and at some others.

It shows the lowest-ranked kept crops, the best of the dropped, and a random draw of the others.
Ticks are kept in the page; its button saves review.csv (crop_id, keep), which `--review` reads.
HQ-ACF has no such step; DiffBody's data set was inspected by hand (its section 4.1).
"""

import html
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from curate.cropping.job import decode_crop
from curate.engine.parquet import Row
from curate.schema import RANKED
from curate.selection.manifest import Crops
from curate.selection.split import seeded_key

# Crops of each section: what a person can look through in a sitting.
SECTION_CROPS = 200
# Pixels of a shown crop's side.
SHOWN_SIDE = 256
# What is read of the manifest.
REVIEW_COLUMNS = ["crop_id", "z", "kept", "reason", "crop_shard", "crop_row"]
# One file without a server or a library, which any browser opens. Only what a person changed is
# saved, so that a later selection may still decide on the rest.
PAGE = """<!doctype html><meta charset="utf-8"><title>Review</title>
<style>
body{{font:14px sans-serif;margin:1em}} figure{{display:inline-block;margin:4px;width:{side}px}}
img{{width:{side}px;display:block}} figcaption{{font-size:12px}} .out img{{opacity:.35}}
</style>
<h1>Review</h1>
{notice}<p>A tick means keep. Change what is wrong, then
<button id="save">save review.csv</button> and run <code>select --review review.csv</code>.
Only what was changed is written: add it to an earlier review.csv, if there is one (of two lines on
a crop the later one counts).</p>
{sections}
<script>
const boxes = [...document.querySelectorAll("input")];
const show = b => b.closest("figure").classList.toggle("out", !b.checked);
boxes.forEach(b => {{ show(b); b.onchange = () => show(b); }});
document.getElementById("save").onclick = () => {{
  const rows = boxes.filter(b => b.checked !== b.defaultChecked)
    .map(b => b.value + "," + (b.checked ? 1 : 0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["crop_id,keep\\n" + rows.join("\\n") + "\\n"]));
  link.download = "review.csv";
  link.click();
}};
</script>
"""


def review_rows(pool: pa.Table, seed: int) -> dict[str, list[Row]]:
    """The crops to look at, by the titles of their sections; no crop comes twice."""
    # Where a small change of a threshold would decide otherwise.
    rows = pool.select(REVIEW_COLUMNS).to_pylist()
    kept = [row for row in rows if row["kept"]]
    dropped = [row for row in rows if row["reason"].startswith(RANKED)]
    sections = {
        "Kept, lowest first": sorted(kept, key=lambda r: (r["z"], r["crop_id"]))[:SECTION_CROPS],
        "Dropped by rank or threshold, best first": sorted(
            dropped, key=lambda r: (-r["z"], r["crop_id"])
        )[:SECTION_CROPS],
    }
    # A random draw of the others, of which some may be wrong as well.
    seen = {row["crop_id"] for rows in sections.values() for row in rows}
    rest = [row for row in [*kept, *dropped] if row["crop_id"] not in seen]
    rest.sort(key=lambda row: seeded_key(seed, row["crop_id"]))
    return {**sections, "Others": rest[:SECTION_CROPS]}


def write_page(folder: Path, pool: pa.Table, crops: Crops, seed: int, notice: str = "") -> None:
    """Write review.html and its pictures review/CROP.jpg into the report's folder.

    Args:
        notice: what the scores must not be taken for, to be shown on the page.
    """
    # Small JPEGs beside the page, since hundreds of PNGs in it would be slow to open.
    (folder / "review").mkdir()
    sections = []
    for title, rows in review_rows(pool, seed).items():
        for row in rows:
            rgb = decode_crop(crops.png(row))
            size = SHOWN_SIDE, SHOWN_SIDE * rgb.shape[0] // rgb.shape[1]
            small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
            data = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]))[1]
            (folder / "review" / f"{row['crop_id']}.jpg").write_bytes(data.tobytes())
        if rows:
            sections.append(f"<h2>{title}</h2>\n" + "\n".join(map(figure, rows)))
    mark = f"<p><b>Classic metrics.</b> {html.escape(notice)}</p>\n" if notice else ""
    page = PAGE.format(side=SHOWN_SIDE, notice=mark, sections="\n".join(sections))
    (folder / "review.html").write_text(page)


def figure(row: Row) -> str:
    """The HTML of one crop with its tick."""
    name, tick = html.escape(row["crop_id"]), " checked" if row["kept"] else ""
    caption = html.escape(f"z {row['z']:.2f} {row['reason']}")
    return (
        f'<figure><img src="review/{name}.jpg" loading="lazy"><figcaption><label>'
        f'<input type="checkbox" value="{name}"{tick}> {caption}</label></figcaption></figure>'
    )
