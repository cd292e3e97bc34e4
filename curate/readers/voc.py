"""Pascal VOC: Annotations/STEM.xml, or xml in folders below that, beside JPEGImages.

Pixels are counted from 1 and both ends belong to a box, so (xmin, xmax) is [xmin - 1, xmax).
Only an object's own bndbox counts: its parts have boxes too. The picture is the one that the xml
names; where that is missing, or is another xml's, it is the one that is called as the xml is.
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

MOST_BYTES = 1_000_000
DOCTYPE = re.compile(r"<!DOCTYPE\s+[\w.:-]+\s*>")  # it names the root, and nothing else
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
    """Sorted; without what other systems put beside files, such as names that begin with a dot."""

    def enter(name: str) -> bool:
        return not name.startswith(".") and name not in SYSTEM_FOLDERS

    root = folder / "Annotations"
    try:
        found = tree(root, enter)
    except OSError as error:
        where = spelled(error.filename or root)
        raise ReaderError(f"{where}: cannot be listed: {error.strerror}") from None
    paths = (root / path for path in (*found.files, *found.dangling))
    return sorted(p for p in paths if p.suffix.lower() == ".xml" and not p.name.startswith("."))


def _key(folder: Path, path: Path) -> str:
    """An xml file's path below Annotations without suffix: its name, and one of its picture's."""
    return path.relative_to(folder / "Annotations").with_suffix("").as_posix()


def read(name: str, notes: Notes, root: Path) -> Iterator[SourceImage]:
    """Images of `DIR`, which holds Annotations and JPEGImages."""
    for folder in _years(root):
        images = folder / "JPEGImages"
        pictures = PictureFinder(images if images.is_dir() else folder, notes)
        # Read twice: a picture can be told only when all names are known, and xml are too many
        # to be held.
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

    <filename> is often what the picture was called before it was renamed along with its xml; if
    both names are a picture, and no other xml has the better claim on either, nothing is certain.
    Without folders it is of the folder that the xml is in: others may have a picture of that name.
    """
    folder, _, stem = key.rpartition("/")
    written = (root.findtext("filename") or "").strip()
    above, _, last = clean(written).rpartition("/")
    if not last:
        return [key]
    if folder and not above:
        written = f"{folder}/{last}"
    if stem.casefold() in (last.casefold(), Path(last).stem.casefold()):
        return [written]
    return [key, written]


def _image(
    start: str, key: str, root: ElementTree.Element, pictures: PictureFinder, notes: Notes
) -> SourceImage:
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
        # Decoded first where a mark says how: else what is looked for next might not be seen.
        text = data.decode(encoding) if encoding else data
        _check_plain(text if isinstance(text, str) else text.decode("latin-1"), len(data))
        root = ElementTree.fromstring(text)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        _check_annotation(root)
        return root
    except FAULTS as error:
        raise ReaderError(f"{path}: {error}") from None


def _check_plain(text: str, size: int) -> None:
    """Raises ValueError on what might be more than it seems when it is parsed."""
    if size > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES:,} bytes, as no annotation is")
    if "\0" in text:
        raise ValueError("it has zero bytes: save it as UTF-8")
    if "<!ENTITY" in text or "<!DOCTYPE" in DOCTYPE.sub("", text):
        raise ValueError("its <!DOCTYPE ..> defines entities or names another file: remove it")


def _check_annotation(root: ElementTree.Element) -> None:
    """Raises ValueError where objects are not where VOC has them: they would be lost."""
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not VOC's <annotation>")
    if lost := sum(1 for _ in root.iter("object")) - len(root.findall("object")):
        raise ValueError(
            f"{lost} of its <object> are not directly in <annotation>: move them there"
        )


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
