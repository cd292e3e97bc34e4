"""How many labelled people a detector of `curate` finds, and how many of its boxes are people.

    python -m benchmarks.detector --source coco=INSTANCES.json,IMAGES --source voc=DIR \\
        --detector ssd --detector_weights mediapipe-objectron.tgz

A box finds a person if their intersection over union is 0.5 or more, and one person at most.
Counted are people, and boxes, whose longer side has more than 256 (or 96) pixels; the other one of
a pair may be of any size. A box inside that of a crowd, or inside another "ignore" one, counts
neither way.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from curate.config import CurateConfig, DetectConfig
from curate.cropping import decode, detect, stages
from curate.plan import parse_sources
from curate.readers import read
from curate.schema import Box

SIZES = (256, 96)
IOU = 0.5


def corners(boxes: Sequence[Box]) -> np.ndarray:
    """Boxes as rows, (n, 4)."""
    return np.array([box.xyxy for box in boxes], np.float64).reshape(-1, 4)


def longer(boxes: np.ndarray) -> np.ndarray:
    """The longer side of each box."""
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1)


def match(found: Sequence[Box], people: np.ndarray) -> dict[int, int]:
    """Which person each box finds, by their places; the surest box chooses first."""
    overlap, pairs = stages.ious(corners(found), people), {}
    for at in sorted(range(len(found)), key=lambda at: -found[at].score):
        free = [p for p in range(len(people)) if p not in pairs.values() and overlap[at, p] >= IOU]
        if free:
            pairs[at] = max(free, key=lambda p: overlap[at, p])
    return pairs


def count(found: Sequence[Box], labels: Sequence[Box], size: int) -> np.ndarray:
    """Of one picture: people found, people, right boxes, boxes that count."""
    people = corners([box for box in labels if box.kind == "person"])
    ignored = corners([box for box in labels if box.kind == "ignore"])
    boxes, pairs = corners(found), match(found, people)
    large, long_boxes = longer(people) > size, longer(boxes) > size
    # The share of each box that lies in an ignored one.
    inside = stages.overlaps(boxes, ignored) / np.maximum(stages.areas(boxes), 1)[:, None]
    spared = (inside > 0.5).any(axis=1)
    right = np.array([at in pairs for at in range(len(boxes))], bool)
    hits = sum(bool(large[person]) for person in pairs.values())
    return np.array([hits, large.sum(), (long_boxes & right).sum(),
                     (long_boxes & (right | ~spared)).sum()])  # fmt: skip


def main() -> None:
    """Print a row for each source and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--detector", default="ssd", choices=detect.BY_PIXELS)
    parser.add_argument("--detector_weights", required=True)
    flags = parser.parse_args()
    detector = detect.make_detector(DetectConfig(flags.detector, flags.detector_weights))
    print("| source | people longer than | recall | precision |\n|---|---|---|---|")
    for source in parse_sources(flags.source):
        totals = {size: np.zeros(4, int) for size in SIZES}
        for image in read(source):
            try:
                picture = decode.decode_source(image, CurateConfig().decode)
            except decode.Refused:
                continue
            found = detector(picture.rgb, image)
            for size in SIZES:
                totals[size] += count(found, picture.boxes, size)
        for size, (hits, people, right, boxes) in totals.items():
            recall, precision = hits / max(people, 1), right / max(boxes, 1)
            print(
                f"| {source.name} | {size} px | {recall:.2f} ({hits} of {people}) "
                f"| {precision:.2f} ({right} of {boxes}) |"
            )


if __name__ == "__main__":
    main()
