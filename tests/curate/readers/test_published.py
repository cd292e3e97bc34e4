"""Annotation files as they were published, where ANNOTATIONS names a folder of some.

What is expected was counted in the files themselves. README.md says which files these are.
"""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from curate import readers
from curate.readers import SourceSpec
from curate.schema import SourceImage

FOLDER = Path(os.environ["ANNOTATIONS"])  # else conftest.py does not collect this file


class Published(NamedTuple):
    """A source's paths below the folder, and what is in it."""

    kind: str
    paths: tuple[str, ...]
    images: int
    boxes: dict[str, int]  # by kind
    flickr: int  # images with a Flickr number
    image: str  # one of them, and its first box
    first: tuple[float, float, float, float]


TINY, ODGT = "coco/tinycoco", "crowdhuman/test_annotation_train.odgt"
SUBSET = "coco/coco_subset_128_instances_train2017.json"
PUBLISHED = [
    Published(
        "coco",
        (f"{TINY}/annotations/instances_train2017.json", f"{TINY}/images/train2017"),
        images=32,
        boxes={"person": 81, "ignore": 3},
        flickr=32,
        image="coco/train2017/397133",
        first=(388.66, 69.92, 498.07, 347.54),
    ),
    Published(
        "coco",
        (f"{TINY}/annotations/instances_val2017.json", f"{TINY}/images/val2017"),
        images=6,
        boxes={"person": 27},
        flickr=6,
        image="coco/val2017/444010",
        first=(272.29, 55.61, 483.23, 332.2),
    ),
    Published(
        "coco",
        (SUBSET, "coco"),
        images=128,
        boxes={"person": 254, "ignore": 8},
        flickr=128,
        image="coco/coco_subset_128_instances_train2017/52016",
        first=(153.54, 30.3, 480.0, 627.25),
    ),
    Published(
        "voc",
        ("voc/labelme_voc2011",),
        images=3,
        boxes={"person": 6},
        flickr=0,
        image="voc/labelme_voc2011/2011_000003",
        first=(190.0, 106.369, 313.0, 329.369),
    ),
    Published(
        "voc",
        ("voc/mmdet_VOCdevkit",),
        images=2,
        boxes={"person": 1},
        flickr=2,
        image="voc/VOC2007/000001",
        first=(7, 11, 352, 498),
    ),
    Published(
        "voc",
        ("voc/review_odm",),
        images=100,
        boxes={"person": 80, "ignore": 11},  # the difficult ones
        flickr=0,
        image="voc/review_odm/2007_000027",
        first=(173, 100, 349, 351),
    ),
    Published(
        "crowdhuman",
        (ODGT, "crowdhuman"),
        images=1,
        boxes={"person": 6, "ignore": 1},
        flickr=0,
        image="crowdhuman/test_annotation_train/283554,35288000868e92d4",
        first=(1355, 323, 1736, 1356),
    ),
]


def read(source: Published) -> list[SourceImage]:
    paths = tuple(str(FOLDER / path) for path in source.paths)
    return list(readers.read(SourceSpec(source.kind, paths, source.kind)))


@pytest.mark.parametrize("source", PUBLISHED, ids=lambda source: source.paths[0])
def test_published_files_give_their_people(source):
    images = read(source)
    assert len(images) == source.images
    assert Counter(box.kind for image in images for box in image.boxes) == source.boxes
    assert sum(bool(image.flickr_id) for image in images) == source.flickr
    image = next(image for image in images if image.image_id == source.image)
    assert image.boxes[0].xyxy == pytest.approx(source.first, abs=1e-3)


def test_published_pictures_are_found():
    for source in PUBLISHED[:2]:
        assert all(Path(image.path).is_file() for image in read(source))
