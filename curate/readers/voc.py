"""Pascal VOC: Annotations/STEM.xml beside JPEGImages.

Pixels are counted from 1 and both ends belong to a box, so (xmin, xmax) is [xmin - 1, xmax).
Only an object's own bndbox counts: its parts have boxes too. The picture is the one that the xml
names; where that is missing, or is another xml's, it is the one that is called as the xml is.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from curate.readers.common import Notes, ReaderError, note_size
from curate.readers.pictures import Pictures, clean
from curate.readers.values import flag, length
from curate.schema import Box, SourceImage
from curate.text import marked_encoding

MOST_BYTES = 1_000_000
FLAGS = ("truncated", "occluded", "difficult")
FAULTS = (ElementTree.ParseError, AttributeError, TypeError, ValueError, OSError, OverflowError)


def labels(root: Path) -> list[Path]:
    """All xml files of DIR, or of the years below a VOCdevkit."""
    return [path for folder in _years(root) for path in _xmls(folder)]


def _years(root: Path) -> list[Path]:
    if (root / "Annotations").is_dir():
        return [root]
    years = sorted(path.parent for path in root.glob("*/Annotations") if path.is_dir())
    if not years:
        raise ReaderError(f"{root}: no folder Annotations in it or one level below")
    return years


def _xmls(folder: Path) -> list[Path]:
    """Sorted; without what other systems put beside files, whose names begin with a dot."""
    paths = (folder / "Annotations").iterdir()
    return sorted(p for p in paths if p.suffix.lower() == ".xml" and not p.name.startswith("."))


def read(name: str, notes: Notes, root: Path) -> Iterator[SourceImage]:
    """Images of `DIR`, which holds Annotations and JPEGImages."""
    for folder in _years(root):
        images = folder / "JPEGImages"
        pictures = Pictures(images if images.is_dir() else folder, notes)
        # Read twice: a picture can be told only when all names are known, and xml are too many
        # to be held.
        for path in _xmls(folder):
            pictures.claim(*_names(path, _parse(path)), owner=path.stem)
        for path in _xmls(folder):
            try:
                yield _image(f"{name}/{folder.name}", path, pictures, notes)
            except FAULTS as error:
                if isinstance(error, ReaderError):
                    raise
                raise ReaderError(f"{path}: {error}") from None


def _names(path: Path, root: ElementTree.Element) -> list[str]:
    """Names of a file's picture, the most telling first.

    <filename> is often what the picture was called before it was renamed along with its xml; if
    both names are a picture, and no other xml has the better claim on either, nothing is certain.
    """
    written = (root.findtext("filename") or "").strip()
    last = clean(written).rsplit("/", 1)[-1]
    if not last:
        return [path.stem]
    if path.stem.casefold() in (last.casefold(), Path(last).stem.casefold()):
        return [written]
    return [path.stem, written]


def _image(start: str, path: Path, pictures: Pictures, notes: Notes) -> SourceImage:
    root = _parse(path)
    flickr = root.findtext("source/flickrid") or ""
    people = (_box(o, notes) for o in root.findall("object") if _label(o) == "person")
    name, split = start.split("/", 1)
    return SourceImage(
        image_id=f"{start}/{path.stem}",
        dataset=name,
        split_of_source=split,
        path=pictures.find(*_names(path, root), owner=path.stem),
        label_w=length((root.findtext("size/width") or "").strip()),
        label_h=length((root.findtext("size/height") or "").strip()),
        boxes=tuple(note_size(box, notes) for box in people),
        flickr_id=flickr if flickr.isdigit() and flickr != "0" else "",
    )


def _parse(path: Path) -> ElementTree.Element:
    """The root of an xml file. Raises ReaderError."""
    try:
        data = path.read_bytes()
        encoding = marked_encoding(data)
        # Decoded first where a mark says how: else what is looked for next might not be seen.
        text = data.decode(encoding) if encoding else data
        start, entity, zero = ("<!DOCTYPE", "<!ENTITY", "\0")
        plain = text if isinstance(text, str) else text.decode("latin-1")
        if len(data) > MOST_BYTES or start in plain or entity in plain or zero in plain:
            raise ValueError("too long, or it defines entities")
        return ElementTree.fromstring(text)
    except FAULTS as error:
        raise ReaderError(f"{path}: {error}") from None


def _label(entry: ElementTree.Element) -> str:
    label = entry.findtext("name")
    if not label:
        raise ValueError("an object without a name")
    return label.strip().lower()


def _box(entry: ElementTree.Element, notes: Notes) -> Box:
    x0, y0, x1, y1 = (
        float(entry.findtext(f"bndbox/{side}") or "nan")
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    flags = tuple(name for name in FLAGS if _is_set(entry, name, notes))
    kind = "ignore" if "difficult" in flags else "person"
    return Box((x0 - 1, y0 - 1, x1, y1), kind, flags=flags)


def _is_set(entry: ElementTree.Element, name: str, notes: Notes) -> bool:
    """Whether a flag is set; of those that decide nothing, one that is not understood is noted."""
    text = entry.findtext(name)
    try:
        return flag(text)
    except ValueError as error:
        if name == "difficult":
            raise ValueError(f"{name}: {error}") from None
        notes[f"{name} is {(text or '').strip()[:20]!r}"] += 1
        return False
