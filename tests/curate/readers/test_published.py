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
        *("coco", (f"{TINY}/annotations/instances_train2017.json", f"{TINY}/images/train2017")),
        *(32, {"person": 81, "ignore": 3}, 32),
        *("coco/train2017/397133", (388.66, 69.92, 498.07, 347.54)),
    ),
    Published(
        *("coco", (f"{TINY}/annotations/instances_val2017.json", f"{TINY}/images/val2017")),
        *(6, {"person": 27}, 6),
        *("coco/val2017/444010", (272.29, 55.61, 483.23, 332.2)),
    ),
    Published(
        *("coco", (SUBSET, "coco"), 128, {"person": 254, "ignore": 8}, 128),
        "coco/coco_subset_128_instances_train2017/52016",
        (153.54, 30.3, 480.0, 627.25),
    ),
    Published(
        *("voc", ("voc/labelme_voc2011",), 3, {"person": 6}, 0),
        *("voc/labelme_voc2011/2011_000003", (190.0, 106.369, 313.0, 329.369)),
    ),
    Published(
        *("voc", ("voc/mmdet_VOCdevkit",), 2, {"person": 1}, 2),
        *("voc/VOC2007/000001", (7, 11, 352, 498)),
    ),
    Published(
        *("voc", ("voc/review_odm",), 100, {"person": 80, "ignore": 11}, 0),  # the difficult ones
        *("voc/review_odm/2007_000027", (173, 100, 349, 351)),
    ),
    Published(
        *("crowdhuman", (ODGT, "crowdhuman"), 1, {"person": 6, "ignore": 1}, 0),
        "crowdhuman/test_annotation_train/283554,35288000868e92d4",
        (1355, 323, 1736, 1356),
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
