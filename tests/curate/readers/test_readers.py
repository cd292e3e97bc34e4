"""One picture in each set's own format gives the same boxes; what is amiss is named."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_files import write_labels

from curate import readers
from curate.config import ConfigError
from curate.plan import parse_sources
from curate.readers import ReaderError, SourceSpec
from curate.schema import Box, SourceImage
from osdhuman_jax.filenames import unspelled_path

WIDTH, HEIGHT = 640, 480
PERSON = (64.0, 48.0, 320.0, 480.0)  # pixels, half open
CROWD = (320.0, 0.0, 640.0, 240.0)


def read(kind: str, *paths: Path) -> list[SourceImage]:
    return list(readers.read(SourceSpec(kind, tuple(map(str, paths)), kind)))


def error(kind: str, *paths: Path) -> str:
    with pytest.raises(ReaderError) as caught:
        read(kind, *paths)
    return str(caught.value)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def xywh(box) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def coco(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A COCO json and its folder of pictures; `changes` replaces parts of the json."""
    touch(folder / "images" / "train2017" / "000000000009.jpg")
    data = {
        "licenses": [{"id": 4, "name": "Attribution License"}],
        "images": [
            {
                "id": 9,
                "file_name": "000000000009.jpg",
                "width": WIDTH,
                "height": HEIGHT,
                "flickr_url": "http://farm5.staticflickr.com/4026/4622125393_84c270db3d_z.jpg",
                "license": 4,
            }
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 1, "bbox": xywh(PERSON), "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 0},
            {"id": 3, "image_id": 9, "category_id": 1, "bbox": xywh(CROWD), "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }
    path = folder / "instances_train2017.json"
    path.write_text(json.dumps({**data, **changes}))
    return path, folder / "images"


HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
CLASSES = """/m/01g317,Person
/m/04yx4,Man
/m/02p0tk3,Human body
/m/0dzct,Human face
/m/0167gd,Doll
/m/0x,"Kitchen & dining room ""table"", large"
"""


def shares(label: str, box, flags: str = "0,0,0,0,0", source: str = "xclick") -> str:
    x0, y0, x1, y1 = box
    numbers = f"{x0 / WIDTH},{x1 / WIDTH},{y0 / HEIGHT},{y1 / HEIGHT}"
    return f"000a1249af2bc5f0,{source},{label},1,{numbers},{flags}"


def openimages(folder: Path, rows: list[str], info: str = "") -> tuple[Path, ...]:
    touch(folder / "images" / "000a1249af2bc5f0.jpg")
    boxes, classes = folder / "oidv6-train-annotations-bbox.csv", folder / "classes.csv"
    boxes.write_text("\n".join([HEADER, *rows]) + "\n")
    classes.write_text(CLASSES)
    paths = (boxes, classes, folder / "images")
    if not info:
        return paths
    facts = folder / "image_ids_and_rotation.csv"
    facts.write_text(f"ImageID,OriginalURL,License,Rotation\n{info}\n")
    return (*paths, facts)


def crowdhuman(folder: Path, *boxes: dict[str, Any]) -> tuple[Path, Path]:
    name = "273271,c9db000d5146c15"
    touch(folder / "Images" / f"{name}.jpg")
    path = folder / "annotation_train.odgt"
    path.write_text(json.dumps({"ID": name, "gtboxes": boxes}) + "\n\n")
    return path, folder / "Images"


def voc(folder: Path, objects: str, text: str = "") -> tuple[Path]:
    touch(folder / "JPEGImages" / "000001.jpg")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "000001.xml").write_text(
        text
        or f"""<annotation><filename>000001.jpg</filename>
        <source><flickrid>341012865</flickrid></source>
        <size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>
        {objects}</annotation>"""
    )
    return (folder,)


def voc_object(box, name: str = "person", more: str = "") -> str:
    x0, y0, x1, y1 = box
    return f"""<object><name>{name}</name>{more}<part><name>head</name><bndbox><xmin>7</xmin>
    <ymin>7</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part><bndbox><xmin>{x0 + 1}</xmin>
    <ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"""


def test_coco_knows_licence_and_flickr_photo(tmp_path):
    image = read("coco", *coco(tmp_path))[0]
    assert [box.xyxy for box in image.boxes] == [PERSON, CROWD]
    assert (image.flickr_id, image.license) == ("4622125393", "Attribution License")
    assert image.image_id == "coco/train2017/9"


def test_coco_labels_are_looked_up_by_name(tmp_path):
    other = [{"id": 1, "name": "car"}, {"id": 3, "name": "person"}]
    boxes = read("coco", *coco(tmp_path, categories=other))[0].boxes
    assert [box.xyxy for box in boxes] == [(0, 0, 9, 9)]


EMPTY = {"image_id": 9, "category_id": 3, "bbox": []}


def test_coco_boxes_of_others_may_be_empty(tmp_path):
    assert read("coco", *coco(tmp_path, annotations=[EMPTY]))[0].boxes == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": [{"id": 1, "name": "persona"}]}, "no category is named person"),
        ({"annotations": [{"id": 5}]}, "lacks image_id"),
        ({"annotations": [EMPTY | {"category_id": 1}]}, "bbox is not x, y, width, height"),
        ({"images": [{"id": 5}]}, "file_name"),
        ({"images": None}, "not as it should be"),
    ],
)
def test_coco_files_that_say_something_else(tmp_path, changes, words):
    assert words in error("coco", *coco(tmp_path, **changes))


def keypoint_file(folder: Path) -> tuple[Path, Path]:
    """A person_keypoints json as COCO's, of three of its keypoints."""
    points = ["nose", "left_shoulder", "left_ankle"]
    people = [{"id": 1, "name": "person", "keypoints": points, "skeleton": [[1, 2], [2, 3]]}]
    base = {"image_id": 9, "category_id": 1, "iscrowd": 0}
    marks = [70, 50, 2, 80, 60, 1, 90, 200, 2]
    annotations = [
        {**base, "id": 1, "bbox": xywh(PERSON), "keypoints": marks, "num_keypoints": 3},
        {**base, "id": 2, "bbox": xywh(CROWD), "keypoints": [0] * 9, "num_keypoints": 0},
    ]
    path, images = coco(folder, categories=people, annotations=annotations)
    return path.rename(folder / "person_keypoints_train2017.json"), images


def test_coco_keypoints_name_the_pictures_of_the_instances(tmp_path):
    image = read("coco", *keypoint_file(tmp_path))[0]
    assert (image.image_id, image.split_of_source) == ("coco/train2017/9", "train2017")
    assert image.boxes == (Box(PERSON, flags=("sees nose left_ankle",)), Box(CROWD))


def packed_counts(runs: list[int]) -> str:
    """Runs as pycocotools writes them."""
    text = ""
    for at, run in enumerate(runs):
        value = run - runs[at - 2] if at > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | (32 if more else 0)))
    return text


def runs_of(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *edges, mask.size]).tolist()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_coco_crowds_may_have_a_mask_and_no_box(tmp_path, packed, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(3):
        y, x = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        mask[y : y + rng.integers(1, 400), x : x + rng.integers(1, 90)] = True
    runs = runs_of(mask)
    rle = {"size": [HEIGHT, WIDTH], "counts": packed_counts(runs) if packed else runs}
    crowd = {"id": 1, "image_id": 9, "category_id": 1, "iscrowd": 1, "segmentation": rle}
    box = read("coco", *coco(tmp_path, annotations=[crowd]))[0].boxes[0]
    rows, columns = np.nonzero(mask)
    assert box.xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert (box.kind, box.flags) == ("ignore", ("crowd",))


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 4], "counts": [3, 2]},
        {"size": [4, 4], "counts": [16]},
        {"size": [4, 4], "counts": "P"},
        [[1, 1, 2, 2, 3, 1]],
    ],
    ids=["short", "empty", "cut", "polygon"],
)
def test_coco_masks_that_say_something_else(tmp_path, rle):
    crowd = {"image_id": 9, "category_id": 1, "iscrowd": 1, "segmentation": rle}
    assert "bbox is not x, y" in error("coco", *coco(tmp_path, annotations=[crowd]))


def test_coco_panoptic_files_are_named(tmp_path):
    entry = {"image_id": 9, "file_name": "9.png", "segments_info": [{"id": 1, "category_id": 1}]}
    assert "a panoptic file" in error("coco", *coco(tmp_path, annotations=[entry]))


def test_objects365_v2_as_it_is_published(tmp_path):
    """Patches in the names or not, flags of its own, more members than are read."""
    touch(tmp_path / "train" / "patch8" / "objects365_v2_00420917.jpg")
    flags = {"iscrowd": 0, "isfake": 0, "isreflected": 0}
    box = {"image_id": 420917, "bbox": xywh(PERSON), "area": 1.5, **flags}
    data = {
        "images": [
            {
                "id": 420917,
                "file_name": "images/v2/patch8/objects365_v2_00420917.jpg",
                "width": WIDTH,
                "height": HEIGHT,
                "license": 5,
                "url": "",
            }
        ],
        "annotations": [
            {**box, "id": 1, "category_id": 1},
            {**box, "id": 2, "category_id": 1, "isfake": 1},
            {**box, "id": 3, "category_id": 2},
        ],
        "categories": [{"id": 1, "name": "Person"}, {"id": 2, "name": "Sneakers"}],
        "licenses": [{"id": 5, "name": "", "url": ""}],
    }
    path = tmp_path / "zhiyuan_objv2_train.json"
    path.write_text(json.dumps(data))
    (image,) = read("objects365", path, tmp_path / "train")
    assert Path(image.path) == tmp_path / "train" / "patch8" / "objects365_v2_00420917.jpg"
    assert image.boxes == (Box(PERSON), Box(PERSON, "ignore", flags=("fake",)))


@pytest.mark.parametrize("name", ["person", "Person", "Person "])
def test_objects365_writes_person_in_many_ways(tmp_path, name):
    path, images = write_labels("objects365", tmp_path, ["1.jpg"])
    path.write_text(path.read_text().replace('"person"', f'"{name}"'))
    assert len(read("objects365", path, images)[0].boxes) == 1


def test_openimages_merges_the_boxes_of_one_person(tmp_path):
    near = (70.0, 48.0, 320.0, 480.0)
    rows = [shares("/m/01g317", PERSON), shares("/m/04yx4", near), shares("/m/02p0tk3", PERSON)]
    boxes = read("openimages", *openimages(tmp_path, rows))[0].boxes
    assert [box.raw_label for box in boxes] == ["Man"]


def test_openimages_keeps_two_of_one_label_and_two_apart(tmp_path):
    rows = [shares("/m/04yx4", PERSON), shares("/m/04yx4", PERSON), shares("/m/01g317", CROWD)]
    boxes = read("openimages", *openimages(tmp_path, rows))[0].boxes
    assert [box.raw_label for box in boxes] == ["Man", "Man", "Person"]


def pixels(box) -> str:
    x0, y0, x1, y1 = box
    return f"000a1249af2bc5f0,xclick,/m/04yx4,1,{x0},{x1},{y0},{y1},0,0,0,0,0"


def test_openimages_in_pixels_is_recognised_and_named(tmp_path):
    paths = openimages(tmp_path, [pixels(PERSON), pixels(CROWD)])
    notes = readers.Notes()
    source = SourceSpec("openimages", tuple(map(str, paths)), "openimages")
    (image,) = readers.read(source, notes)
    assert not image.normalized and [box.xyxy for box in image.boxes] == [PERSON, CROWD]
    words = "boxes in pixels in oidv6-train-annotations-bbox.csv, taken as such"
    assert notes[words] == 2


def test_openimages_in_shares_may_lie_a_little_outside(tmp_path):
    wide = (-3.0, 0.0, WIDTH + 3.0, HEIGHT)
    (image,) = read("openimages", *openimages(tmp_path, [shares("/m/04yx4", wide)]))
    assert image.normalized


def test_openimages_in_pixels_and_shares_is_a_mistake(tmp_path):
    message = error(
        "openimages", *openimages(tmp_path, [shares("/m/04yx4", PERSON), pixels(CROWD)])
    )
    assert "the box of line 3 is in pixels, that of line 2 in shares" in message


def test_a_source_may_say_how_its_labels_were_drawn(tmp_path):
    paths = coco(tmp_path)
    (source,) = parse_sources([f"mine:coco@upright={paths[0]},{paths[1]}"])
    assert (source.kind, source.name, source.exif) == ("coco", "mine", "upright")
    assert next(readers.read(source)).exif == "upright"
    with pytest.raises(ConfigError, match="after @ comes one of stored, upright, ignore"):
        parse_sources(["coco@sideways=a,b"])


def test_openimages_parts_and_dolls_are_no_people(tmp_path):
    rows = [shares(label, PERSON) for label in ("/m/0dzct", "/m/0167gd", "/m/0x")]
    assert read("openimages", *openimages(tmp_path, rows))[0].boxes == ()


@pytest.mark.parametrize(
    ("flags", "kind", "names"),
    [
        ("0,0,1,0,0", "ignore", ("group",)),
        ("1,1,0,1,0", "ignore", ("occluded", "truncated", "depiction")),
        ("-1,-1,-1,-1,-1", "person", ()),
        ("0,1,0,0,1", "person", ("truncated",)),
    ],
)
def test_openimages_flags(tmp_path, flags, kind, names):
    box = read("openimages", *openimages(tmp_path, [shares("/m/04yx4", PERSON, flags)]))[0].boxes[0]
    assert (box.kind, box.flags) == (kind, (*names, "source xclick"))


@pytest.mark.parametrize(
    ("info", "rotation", "flickr"),
    [
        ("000a1249af2bc5f0,https://c1.staticflickr.com/5/4129/52_46f_o.jpg,CC,90.0", 90, "52"),
        ("000a1249af2bc5f0,,CC,nan", 0, ""),
        ("000a1249af2bc5f0,,CC,-90", 270, ""),
        ("000a1249af2bc5f0,,CC,1e300", int(1e300) % 360, ""),
        ("000a1249af2bc5f0,,CC,", 0, ""),
        ("ffff1249af2bc5f0,,CC,90", 0, ""),
    ],
)
def test_openimages_facts_of_the_picture(tmp_path, info, rotation, flickr):
    rows = [shares("/m/04yx4", PERSON)]
    image = read("openimages", *openimages(tmp_path, rows, info))[0]
    assert (image.rotation, image.flickr_id) == (rotation, flickr)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (shares("/m/0unknown", PERSON), "line 2: label '/m/0unknown' is not in the table"),
        ('000a1249af2bc5f0,,/m/04yx4,1,"0,35","0,71","0,2","0,7",0,0,0,0,0', "line 2"),
        ("000a1249af2bc5f0,xclick,/m/04yx4", "line 2"),
    ],
    ids=["label", "decimal comma", "short line"],
)
def test_openimages_lines_that_are_not_understood(tmp_path, row, words):
    assert words in error("openimages", *openimages(tmp_path, [row]))


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("000a1249af2bc5f0,,CC,inf", "line 2: Rotation 'inf' is no number of degrees"),
        ("000a1249af2bc5f0,,CC,1e999", "line 2: Rotation '1e999' is no number of degrees"),
        ("000a1249af2bc5f0,,CC,left", "line 2: Rotation 'left' is no number of degrees"),
        (
            "000a1249af2bc5f0,,CC,0\n000a1249af2bc5f0,,CC,90",
            "line 3: 000a1249af2bc5f0 is there twice",
        ),
    ],
)
def test_openimages_facts_that_cannot_be_right(tmp_path, info, words):
    message = error("openimages", *openimages(tmp_path, [shares("/m/04yx4", PERSON)], info))
    assert f"image_ids_and_rotation.csv, {words}" in message


def test_openimages_facts_may_be_told_twice_alike(tmp_path):
    info = "000a1249af2bc5f0,,CC,90\n000a1249af2bc5f0,,CC,90.0"
    paths = openimages(tmp_path, [shares("/m/04yx4", PERSON)], info)
    assert read("openimages", *paths)[0].rotation == 90


def test_openimages_classes_have_one_name_each(tmp_path):
    paths = openimages(tmp_path, [shares("/m/04yx4", PERSON)])
    paths[1].write_text(CLASSES + "/m/04yx4,man\n")
    assert len(read("openimages", *paths)[0].boxes) == 1
    paths[1].write_text(CLASSES + "/m/04yx4,Car\n")
    assert "classes.csv: /m/04yx4 is two classes, Man and Car" in error("openimages", *paths)


def test_openimages_columns_are_found_by_name(tmp_path):
    paths = openimages(tmp_path, [shares("/m/04yx4", PERSON)])
    with open(paths[0], newline="") as file:
        rows = [row[::-1] + ["0.5"] for row in csv.reader(file)]
    rows[0][-1] = "XClick1X"
    with open(paths[0], "w", newline="") as file:
        csv.writer(file).writerows(rows)
    box = read("openimages", *paths)[0].boxes[0]
    assert box.xyxy == pytest.approx((0.1, 0.1, 0.5, 1.0))
    rows[0][0] = rows[0][3] = "other"
    with open(paths[0], "w", newline="") as file:
        csv.writer(file).writerows([[name.replace("XMin", "x") for name in row] for row in rows])
    assert "no columns XMin" in error("openimages", *paths)


def test_crowdhuman_uses_what_is_visible(tmp_path):
    full = {"tag": "person", "fbox": [-30, 5, 100, 700], "vbox": [0, 5, 60, 90], "head_attr": {}}
    ignored = {"tag": "person", "fbox": [1, 2, 3, 4], "vbox": [1, 2, 3, 4], "extra": {"ignore": 1}}
    mask = {"tag": "mask", "fbox": xywh(CROWD)}
    visible, *others = read("crowdhuman", *crowdhuman(tmp_path, full, ignored, mask))[0].boxes
    assert visible == Box((0, 5, 60, 95), flags=("fbox -30 5 100 700",))
    assert [other.kind for other in others] == ["ignore", "ignore"]


def test_crowdhuman_lines_that_are_not_understood(tmp_path):
    path, images = crowdhuman(tmp_path, {"tag": "dog", "fbox": [1, 2, 3, 4]})
    assert "line 1" in error("crowdhuman", path, images)
    assert "unknown tag 'dog'" in error("crowdhuman", path, images)
    path.write_text('{"ID": "a", "gtboxes": []}\n{"ID": "b"\n')
    assert "line 2" in error("crowdhuman", path, images)


def test_voc_counts_from_one_and_includes_both_ends(tmp_path):
    objects = voc_object((0, 0, WIDTH, HEIGHT)) + voc_object((0, 0, 5, 5), "horse")
    image = read("voc", *voc(tmp_path, objects))[0]
    assert image.boxes == (Box((0, 0, WIDTH, HEIGHT)),)
    assert image.flickr_id == "341012865"
    assert image.image_id == f"voc/{tmp_path.name}/000001"


def test_voc_takes_fractions_and_its_own_box_only(tmp_path):
    box = read("voc", *voc(tmp_path, voc_object((44.7, 10.5, 99.2, 80.1))))[0].boxes[0]
    assert box.xyxy == pytest.approx((44.7, 10.5, 99.2, 80.1))


def test_voc_devkit_with_several_years(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        (tmp_path / year).mkdir()
        voc(tmp_path / year, voc_object(PERSON))
    names = [image.image_id for image in read("voc", tmp_path)]
    assert names == ["voc/VOC2007/000001", "voc/VOC2012/000001"]
    assert len(readers.label_files(SourceSpec("voc", (str(tmp_path),), "voc"))) == 2


@pytest.mark.parametrize(
    "text",
    ["<annotation><object>", "<annotation><object><bndbox/></object></annotation>"],
    ids=["cut", "no name"],
)
def test_voc_files_that_are_not_understood(tmp_path, text):
    assert "000001.xml" in error("voc", *voc(tmp_path, "", text))


def test_folders_are_searched_in_the_order_of_bytes(tmp_path):
    names = ["b.JPG", "a/ü.png", "a/z.webp", "B.jfif", "a/A.jpe"]
    touch(*(tmp_path / name for name in [*names, "notes.txt", ".hidden/c.jpg", ".d.jpg", "e.gif"]))
    images = read("folder", tmp_path)
    assert [image.image_id for image in images] == [
        f"folder/all/{name}" for name in ("B.jfif", "a/A.jpe", "a/z.webp", "a/ü.png", "b.JPG")
    ]
    assert {image.policy for image in images} == {"detect"}
    assert {image.policy for image in read("person", tmp_path)} == {"whole_image"}


def test_lsdir_without_its_small_copies(tmp_path):
    for name in ("HR/0001000/0000001.png", "X2/0001000/0000001x2.png", "0001000/0000002x4.png"):
        touch(tmp_path / "LSDIR_x4" / name)
    images = read("lsdir", tmp_path / "LSDIR_x4")
    assert [image.image_id for image in images] == ["lsdir/all/HR/0001000/0000001.png"]


@pytest.mark.parametrize("kind", sorted(readers.SOURCE_FORMATS))
def test_sources_that_are_not_there(tmp_path, kind):
    usage = readers.SOURCE_FORMATS[kind].usage.split("[")[0]
    paths = [tmp_path / f"none{i}" for i in range(usage.count(",") + 1)]
    assert "is not there" in error(kind, *paths)
    assert f"needs {readers.SOURCE_FORMATS[kind].usage}" in error(kind, *paths, *paths, *paths)


@pytest.mark.parametrize(("kind", "words"), [("folder", "no pictures"), ("voc", "no folder")])
def test_empty_folders(tmp_path, kind, words):
    assert words in error(kind, tmp_path)


def test_names_that_are_no_utf8_are_spelled(tmp_path):
    touch(tmp_path / os.fsdecode(b"p\xff") / os.fsdecode(b"Mu\xf1oz.png"))
    (image,) = read("person", tmp_path)
    assert image.image_id == r"person/all/p\xff/Mu\xf1oz.png"
    image.path.encode()
    assert unspelled_path(image.path).is_file()
