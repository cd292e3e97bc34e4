"""Pascal VOC: Annotations/STEM.xml, or xml files in folders below that, beside JPEGImages.

Pixels are counted from 1 and both ends belong to a box, so (xmin, xmax) is [xmin - 1, xmax).
Only an object's own bndbox counts: its parts have boxes too. The picture is the one that the xml
names. Where that is missing, or belongs to another xml, it is the one with the xml's own name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from curate.readers.common import Notes, ReaderError, note_size
from curate.readers.pictures import PictureFinder, clean
from curate.readers.text_files import marked_encoding
from curate.readers.values import flag, length
from curate.schema import Box, SourceImage
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.listing import SYSTEM_FOLDERS, tree

# A real annotation has a few thousand bytes; a larger file would only use up memory.
MOST_BYTES = 1_000_000
# A document type that names the root element and nothing else.
DOCTYPE = re.compile(r"<!DOCTYPE\s+[\w.:-]+\s*>")
FLAGS = ("truncated", "occluded", "difficult")
# What damaged files set off.
FAULTS = (ElementTree.ParseError, AttributeError, TypeError, ValueError, OSError, OverflowError)


def labels(root: Path) -> list[Path]:
    """All xml files of a VOC folder, or of the years below a VOCdevkit."""
    return [path for folder in _years(root) for path in _xmls(folder)]


def _years(root: Path) -> list[Path]:
    """The folders that hold Annotations: the given one, or VOC2007, VOC2012 and so on below it."""
    if (root / "Annotations").is_dir():
        return [root]
    years = sorted(path.parent for path in root.glob("*/Annotations") if path.is_dir())
    if not years:
        raise ReaderError(f"{root}: no folder Annotations in it or one level below")
    return years


def _xmls(folder: Path) -> list[Path]:
    """The xml files below a folder's Annotations, sorted.

    What other systems put beside files, such as names that begin with a dot, is left out.
    """

    def enter(name: str) -> bool:
        return not name.startswith(".") and name not in SYSTEM_FOLDERS

    # Links to xml files that are gone are listed too: reading them is an error, not a lost label.
    root = folder / "Annotations"
    try:
        found = tree(root, enter)
    except OSError as error:
        where = spelled(error.filename or root)
        raise ReaderError(f"{where}: cannot be listed: {error.strerror}") from None
    paths = (root / path for path in (*found.files, *found.dangling))
    return sorted(p for p in paths if p.suffix.lower() == ".xml" and not p.name.startswith("."))


def _key(folder: Path, path: Path) -> str:
    """An xml file's path below Annotations without suffix, which may be its picture's name too."""
    return path.relative_to(folder / "Annotations").with_suffix("").as_posix()


def read(name: str, notes: Notes, root: Path) -> Iterator[SourceImage]:
    """Images of `DIR`, which holds Annotations and JPEGImages."""
    for folder in _years(root):
        images = folder / "JPEGImages"
        pictures = PictureFinder(images if images.is_dir() else folder, notes)
        # Every xml is read twice: which picture it means is known only when all names are, and they
        # are too many to be held.
        for path in _xmls(folder):
            key = _key(folder, path)
            pictures.claim(*_names(key, _parse(path)), owner=key)
        for path in _xmls(folder):
            try:
                key, xml = _key(folder, path), _parse(path)
                yield _image(f"{name}/{folder.name}", key, xml, pictures, notes)
            except FAULTS as error:
                if isinstance(error, ReaderError):
                    raise
                raise ReaderError(f"{path}: {error}") from None


def _names(key: str, root: ElementTree.Element) -> list[str]:
    """Names of an xml's picture, the most telling first.

    <filename> is often what the picture was called before it was renamed along with its xml. If
    both names lead to a picture, and no other xml has a better claim on either, neither is certain.
    A <filename> without folders is in the folder that the xml is in, since other folders may have a
    picture of that name.
    """
    folder, _, stem = key.rpartition("/")
    written = (root.findtext("filename") or "").strip()
    above, _, last = clean(written).rpartition("/")
    if not last:
        return [key]
    # One name is enough where both say the same.
    if folder and not above:
        written = f"{folder}/{last}"
    if stem.casefold() in (last.casefold(), Path(last).stem.casefold()):
        return [written]
    return [key, written]


def _image(
    start: str, key: str, root: ElementTree.Element, pictures: PictureFinder, notes: Notes
) -> SourceImage:
    """The description of one xml's picture; `start` is SOURCE/YEAR."""
    # A 0 in place of the number means that it is not known.
    flickr = root.findtext("source/flickrid") or ""
    people = (_box(o, notes) for o in root.findall("object") if _label(o) == "person")
    name, split = start.split("/", 1)
    return SourceImage(
        image_id=f"{start}/{key}",
        dataset=name,
        split_of_source=split,
        path=pictures.find(*_names(key, root), owner=key),
        label_w=length((root.findtext("size/width") or "").strip()),
        label_h=length((root.findtext("size/height") or "").strip()),
        boxes=tuple(note_size(box, notes) for box in people),
        flickr_id=flickr if flickr.isdigit() and flickr != "0" else "",
    )


def _parse(path: Path) -> ElementTree.Element:
    """The root of an xml file, its names without namespaces. Raises ReaderError."""
    try:
        data = path.read_bytes()
        encoding = marked_encoding(data)
        # Where a mark names the encoding the text is decoded first: in UTF-16, say, the check would
        # not see what it looks for.
        text = data.decode(encoding) if encoding else data
        _check_plain(text if isinstance(text, str) else text.decode("latin-1"), len(data))
        root = ElementTree.fromstring(text)
        # Exporters put elements into namespaces of their own.
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        _check_annotation(root)
        return root
    except FAULTS as error:
        raise ReaderError(f"{path}: {error}") from None


def _check_plain(text: str, size: int) -> None:
    """Raises ValueError on a text that could expand, or read other files, when it is parsed."""
    if size > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES:,} bytes, as no annotation is")
    if "\0" in text:
        raise ValueError("it has zero bytes: save it as UTF-8")
    if "<!ENTITY" in text or "<!DOCTYPE" in DOCTYPE.sub("", text):
        raise ValueError("its <!DOCTYPE ..> defines entities or names another file: remove it")


def _check_annotation(root: ElementTree.Element) -> None:
    """Raises ValueError where objects are in other places than VOC's: they would be lost."""
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not VOC's <annotation>")
    if lost := sum(1 for _ in root.iter("object")) - len(root.findall("object")):
        raise ValueError(
            f"{lost} of its <object> are not directly in <annotation>: move them there"
        )


def _label(entry: ElementTree.Element) -> str:
    """What an <object> is. Raises ValueError where it does not say."""
    label = entry.findtext("name")
    if not label:
        raise ValueError("an object without a name")
    return label.strip().lower()


def _box(entry: ElementTree.Element, notes: Notes) -> Box:
    """An <object>'s box, from pixels that are counted from 1 with both ends."""
    # A side that is missing becomes NaN, and the box is dropped as box_invalid later.
    x0, y0, x1, y1 = (
        float(entry.findtext(f"bndbox/{side}") or "nan")
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    flags = tuple(name for name in FLAGS if _is_set(entry, name, notes))
    kind = "ignore" if "difficult" in flags else "person"
    return Box((x0 - 1, y0 - 1, x1, y1), kind, flags=flags)


def _is_set(entry: ElementTree.Element, name: str, notes: Notes) -> bool:
    """Whether a flag is set.

    Only "difficult" decides anything. Of the others a value that is not understood is noted; of
    "difficult" it raises ValueError.
    """
    text = entry.findtext(name)
    try:
        return flag(text)
    except ValueError as error:
        if name == "difficult":
            raise ValueError(f"{name}: {error}") from None
        notes[f"{name} is {(text or '').strip()[:20]!r}"] += 1
        return False
