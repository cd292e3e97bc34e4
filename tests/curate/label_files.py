"""The same labels in each set's own format: pictures by name, a person on each."""

import json
from pathlib import Path
from typing import Any

HEADER = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
LABELLED = ("coco", "objects365", "openimages", "crowdhuman", "voc")
IGNORE = {  # the flag of each format that makes a box one to ignore
    "coco": "iscrowd",
    "objects365": "isreflected",
    "openimages": "IsGroupOf",
    "crowdhuman": "ignore",
    "voc": "difficult",
}


def touch(root: Path, *names: str) -> None:
    """Empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def box_of(number: int) -> list[float]:
    """The box of the person on the picture of that number, half open, in pixels."""
    return [10.0 * number, 20.0, 10.0 * number + 300, 400.0]


def images_of(kind: str, root: Path) -> Path:
    """The folder that a format's pictures lie in."""
    return root / ("JPEGImages" if kind == "voc" else "images")


def write_labels(kind: str, root: Path, names: list[str], flag: Any = 0) -> list[Path]:
    """Labels of pictures, numbered from 0, of which each has one person; a source's paths.

    `flag` is the value of the flag that makes a box one to ignore.
    """
    images_of(kind, root).mkdir(parents=True, exist_ok=True)
    if kind == "voc":
        return _write_voc(root, names, flag)
    write = {"crowdhuman": _write_odgt, "openimages": _write_csv}.get(kind, _write_json)
    return [*write(kind, root, names, flag), images_of(kind, root)]


def _xywh(number: int) -> list[float]:
    x0, y0, x1, y1 = box_of(number)
    return [x0, y0, x1 - x0, y1 - y0]


def _write_json(kind: str, root: Path, names: list[str], flag: Any) -> list[Path]:
    data = {
        "images": [
            {"id": i, "file_name": name, "width": 640, "height": 480}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": _xywh(i), IGNORE[kind]: flag}
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / "a.json").write_text(json.dumps(data))
    return [root / "a.json"]


def _write_odgt(kind: str, root: Path, names: list[str], flag: Any) -> list[Path]:
    lines = [
        {"ID": name, "gtboxes": [{"tag": "person", "fbox": _xywh(i), "extra": {"ignore": flag}}]}
        for i, name in enumerate(names)
    ]
    (root / "a.odgt").write_text("\n".join(map(json.dumps, lines)))
    return [root / "a.odgt"]


def _write_csv(kind: str, root: Path, names: list[str], flag: Any) -> list[Path]:
    boxes = [(name, *box_of(i)) for i, name in enumerate(names)]
    lines = [f"{name},/m/01g317,{x0},{x1},{y0},{y1},{flag}" for name, x0, y0, x1, y1 in boxes]
    (root / "boxes.csv").write_text("\n".join([HEADER, *lines]))
    (root / "classes.csv").write_text("/m/01g317,Person\n")
    return [root / "boxes.csv", root / "classes.csv"]


def _write_voc(root: Path, names: list[str], flag: Any) -> list[Path]:
    (root / "Annotations").mkdir()
    for i, name in enumerate(names):
        x0, y0, x1, y1 = box_of(i)
        sides = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
        text = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
        (root / "Annotations" / f"label{i}.xml").write_text(
            f"<annotation><filename>{name}</filename><size><width>640</width><height>480</height>"
            f"</size><object><name>person</name><difficult>{flag}</difficult>"
            f"<bndbox>{text}</bndbox></object></annotation>"
        )
    return [root]
