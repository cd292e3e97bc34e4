"""Pascal VOC: Annotations/STEM.xml beside JPEGImages.

Pixels are counted from 1 and both ends belong to a box, so (xmin, xmax) is [xmin - 1, xmax).
Only an object's own bndbox counts: its parts have boxes too.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from curate.readers.common import Files, ReaderError
from curate.schema import Box, SourceImage

MOST_BYTES = 1_000_000
FLAGS = ("truncated", "occluded", "difficult")


def labels(root: Path) -> list[Path]:
    """All xml files of DIR, or of the years below a VOCdevkit."""
    return [path for folder in _years(root) for path in sorted(folder.glob("Annotations/*.xml"))]


def _years(root: Path) -> list[Path]:
    if (root / "Annotations").is_dir():
        return [root]
    years = sorted(path.parent for path in root.glob("*/Annotations") if path.is_dir())
    if not years:
        raise ReaderError(f"{root}: no folder Annotations in it or one level below")
    return years


def read(name: str, root: Path) -> Iterator[SourceImage]:
    """Images of `DIR`, which holds Annotations and JPEGImages."""
    for folder in _years(root):
        pictures = folder / "JPEGImages"
        files = Files(pictures if pictures.is_dir() else folder)
        for path in sorted(folder.glob("Annotations/*.xml")):
            try:
                yield _image(name, folder.name, path, files)
            except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
                raise ReaderError(f"{path}: {error}") from None


def _image(name: str, split: str, path: Path, files: Files) -> SourceImage:
    root = _parse(path)
    file_name = root.findtext("filename") or f"{path.stem}.jpg"
    flickr = root.findtext("source/flickrid") or ""
    return SourceImage(
        image_id=f"{name}/{split}/{path.stem}",
        dataset=name,
        split_of_source=split,
        path=files.find(file_name),
        label_w=int(root.findtext("size/width") or 0),
        label_h=int(root.findtext("size/height") or 0),
        boxes=tuple(_box(o) for o in root.findall("object") if _label(o) == "person"),
        flickr_id=flickr if flickr.isdigit() and flickr != "0" else "",
    )


def _parse(path: Path) -> ElementTree.Element:
    data = path.read_bytes()
    if len(data) > MOST_BYTES or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("too long, or it defines entities")
    return ElementTree.fromstring(data)


def _label(entry: ElementTree.Element) -> str:
    label = entry.findtext("name")
    if not label:
        raise ValueError("an object without a name")
    return label.strip().lower()


def _box(entry: ElementTree.Element) -> Box:
    x0, y0, x1, y1 = (
        float(entry.findtext(f"bndbox/{side}") or "nan")
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    flags = tuple(flag for flag in FLAGS if (entry.findtext(flag) or "0").strip() == "1")
    kind = "ignore" if "difficult" in flags else "person"
    return Box((x0 - 1, y0 - 1, x1, y1), kind, flags=flags)
