"""Every format: no label on a wrong picture or lost, no picture missing that is there."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from label_files import LABELLED, box_of, images_of, touch, write_labels
from refusals import one_line

from curate import readers
from curate.readers import Notes, ReaderError, SourceSpec
from curate.schema import SourceImage


def read(kind: str, paths: list[Path], notes: Notes | None = None) -> list[SourceImage]:
    return list(readers.read(SourceSpec(kind, tuple(map(str, paths)), kind), notes))


def pictures(kind: str, root: Path, images: list[SourceImage]) -> list[str | None]:
    """The file of each, relative to the folder of pictures; None = missing. Checks the boxes."""
    for i, image in enumerate(images):
        assert image.boxes[0].xyxy == tuple(box_of(i))
    paths = (Path(image.path) for image in images)
    return [
        str(path.relative_to(images_of(kind, root))) if path.exists() else None for path in paths
    ]


@pytest.mark.parametrize("kind", LABELLED)
def test_boxes_of_a_lost_picture_go_to_no_other(tmp_path, kind):
    touch(images_of(kind, tmp_path), "cam1/0001.jpg", "cam2/0002.jpg")
    paths = write_labels(kind, tmp_path, ["cam1/0001.jpg", "cam2/0001.jpg", "cam2/0002.jpg"])
    images = read(kind, paths)
    assert pictures(kind, tmp_path, images) == ["cam1/0001.jpg", None, "cam2/0002.jpg"]
    for image in images:
        assert (image.dataset, image.policy) == (kind, "labels")
        assert not image.normalized and image.image_id.startswith(f"{kind}/")
        if kind not in ("openimages", "crowdhuman"):
            assert (image.label_w, image.label_h) == (640, 480)


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize(
    "name",
    ["t\\0001.jpg", "C:\\x\\images\\t\\0001.jpg", "/x/t/0001.jpg", "file:///x/t/0001.jpg"]
    + ["T/0001.JPG", "0001", "t%2f0001.jpg", "../t/0001.jpg"],
)
def test_pictures_are_found_by_names_of_other_systems(tmp_path, kind, name):
    touch(images_of(kind, tmp_path), "t/0001.jpg", "t/0002.jpg")
    assert pictures(kind, tmp_path, read(kind, write_labels(kind, tmp_path, [name]))) == [
        "t/0001.jpg"
    ]


@pytest.mark.parametrize("kind", LABELLED)
def test_pictures_behind_linked_folders_are_found(tmp_path, kind):
    touch(tmp_path / "disk" / "patch0", "1.jpg")
    paths = write_labels(kind, tmp_path, ["images/v1/patch0/1.jpg"])
    (images_of(kind, tmp_path) / "patch0").symlink_to(tmp_path / "disk" / "patch0")
    assert pictures(kind, tmp_path, read(kind, paths)) == ["patch0/1.jpg"]


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize(
    ("value", "ignored"),
    [("0", False), ("0.0", False), ("false", False), (0.0, False), ("1", True), ("True", True)],
)
def test_flags_may_be_text(tmp_path, kind, value, ignored):
    touch(images_of(kind, tmp_path), "1.jpg")
    (image,) = read(kind, write_labels(kind, tmp_path, ["1.jpg"], flag=value))
    assert image.boxes[0].kind == ("ignore" if ignored else "person")


@pytest.mark.parametrize("kind", LABELLED)
def test_flags_that_say_neither_are_an_error(tmp_path, kind):
    paths = write_labels(kind, tmp_path, ["1.jpg"], flag="perhaps")
    with one_line(ReaderError, "'perhaps' is neither yes nor no"):
        read(kind, paths)


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_byte_order_marks_and_returns(tmp_path, kind, mark, encoding):
    touch(images_of(kind, tmp_path), "\u00fc.jpg")
    paths = write_labels(kind, tmp_path, ["\u00fc.jpg"])
    source = SourceSpec(kind, tuple(map(str, paths)), kind)
    for path in readers.label_files(source):
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(mark + text.encode(encoding))
    assert pictures(kind, tmp_path, read(kind, paths)) == ["\u00fc.jpg"]


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("data", ["{}".encode("utf-16-le"), b"\xff\xfea", b"a,\x00b\n", b"\x80"])
def test_bytes_that_are_no_text_are_one_line(tmp_path, kind, data):
    paths = write_labels(kind, tmp_path, ["1.jpg"])
    path = readers.label_files(SourceSpec(kind, tuple(map(str, paths)), kind))[0]
    path.write_bytes(data)
    with one_line(ReaderError, path.name):
        read(kind, paths)


@pytest.mark.parametrize("kind", ["coco", "objects365", "crowdhuman"])
@pytest.mark.parametrize("start", ["[", '{"a":', '{"images": [[', '{"ID": "a", "gtboxes": ['])
def test_json_that_is_too_deep_is_one_line(tmp_path, kind, start):
    paths = write_labels(kind, tmp_path, ["1.jpg"])
    paths[0].write_text('{"images": ' + start * 50_000)
    with one_line(ReaderError, f"{paths[0].name}.*too deep to be labels"):
        read(kind, paths)


@pytest.mark.parametrize("depth", [200, 400, 900, 960, 980])
def test_json_that_is_deep_is_read_or_refused(tmp_path, depth):
    """However much of the interpreter's stack is left when an entry is shown."""
    paths = write_labels("coco", tmp_path, ["1.jpg"])
    text = paths[0].read_text().replace('"image_id"', '"other"')
    paths[0].write_text(text.replace('"category_id": 1', f'"x": {"[" * depth}{"]" * depth}'))
    with pytest.raises(ReaderError, match="a.json"):
        read("coco", paths)


def coco(root: Path, **changes: Any) -> list[Path]:
    """The labels of two pictures, of which parts are replaced."""
    paths = write_labels("coco", root, ["0.jpg", "1.jpg"])
    touch(root / "images", "0.jpg", "1.jpg")
    paths[0].write_text(json.dumps({**json.loads(paths[0].read_text()), **changes}))
    return paths


def image(image_id: Any, name: str) -> dict[str, Any]:
    return {"id": image_id, "file_name": name, "width": "640", "height": "480"}


def person(image_id: Any, category_id: Any = 1, bbox: Any = (1, 2, 3, 4)) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox}


def test_ids_and_numbers_may_be_text_on_either_side(tmp_path):
    paths = coco(
        tmp_path,
        images=[image("0", "0.jpg"), image(1, "1.jpg")],
        annotations=[person(0.0, "1", ["100.5", "1", "2.5", 4]), person("1", 1.0)],
    )
    first, second = read("coco", paths)
    assert first.boxes[0].xyxy == (100.5, 1, 103, 5) and len(second.boxes) == 1
    assert (first.label_w, first.image_id) == (640, "coco/a/0")


def test_ids_with_leading_zeros_are_their_own(tmp_path):
    images = [image("000001", "0.jpg"), image("1", "1.jpg")]
    paths = coco(tmp_path, images=images, annotations=[person("000001"), person(1), person(1)])
    assert [len(found.boxes) for found in read("coco", paths)] == [1, 2]
    paths[0].write_text(paths[0].read_text().replace('"1"', '"000002"'))
    with pytest.raises(ReaderError, match='2 annotations .* not in "images", such as image_id 1:'):
        read("coco", paths)


@pytest.mark.parametrize("name", [None, 12, ["0.jpg"]])
def test_a_file_name_that_is_none_is_shown_with_its_image(tmp_path, name):
    paths = coco(tmp_path, images=[image(0, "0.jpg"), image("a7", name)])
    with pytest.raises(ReaderError, match=r"a.json: image a7: its file_name is (null|12|\[)"):
        read("coco", paths)


def test_things_on_pictures_that_are_not_listed_are_counted(tmp_path):
    table = [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    boxes = [person(0), person(77, 2), person(78, 2), person(1, bbox=[5, 5, 0, 9])]
    read("coco", coco(tmp_path, annotations=boxes, categories=table), notes := Notes())
    assert +notes == {
        "annotations of other things, of images that are not listed": 2,
        "boxes of people without a size": 1,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": [person(None)]}, "None is not an id"),
        ({"annotations": [person(0, 9)]}, "category 9 is not in its table"),
        ({"categories": [{"id": 1, "name": n} for n in ("car", "person")]}, "two categories have"),
        ({"images": [image(True, "0.jpg")]}, "True is not an id"),
    ],
)
def test_ids_that_mean_nothing(tmp_path, changes, words):
    with pytest.raises(ReaderError, match=words):
        read("coco", coco(tmp_path, **changes))


@pytest.mark.parametrize(
    ("names", "files", "found"),
    [
        # Without a suffix, absent, of a tool's making, or what it was called before.
        (["label0"], ["label0.jpg"], ["label0.jpg"]),
        ([""], ["label0.jpg"], ["label0.jpg"]),
        (["3f2a-label0.jpg"], ["label0.JPG"], ["label0.JPG"]),
        (["old.jpg"], ["label0.jpg", "b.jpg"], ["label0.jpg"]),
        # The first picture is gone, and all were renumbered with their xml.
        (["label1.jpg", "label2.jpg"], ["label0.jpg", "label1.jpg"], ["label0.jpg", "label1.jpg"]),
        # All xml were made from the first.
        (["label0.jpg"] * 2, ["label0.jpg", "label1.jpg"], ["label0.jpg", "label1.jpg"]),
        (["label0.jpg"] * 2, ["label0.jpg"], ["label0.jpg", None]),
        # Two that are named alike by others, and one that is two pictures.
        (["x.jpg"] * 2, ["x.jpg"], [None, None]),
        (["x.jpg"], ["x.jpg", "label0.jpg"], [None]),
        (["label0"], ["label0.png", "label0.webp"], [None]),
    ],
)
def test_xml_whose_filename_is_not_their_own(tmp_path, names, files, found):
    touch(images_of("voc", tmp_path), *files)
    assert pictures("voc", tmp_path, read("voc", write_labels("voc", tmp_path, names))) == found


def test_entities_are_refused_in_every_encoding(tmp_path):
    (root,) = write_labels("voc", tmp_path, ["1.jpg"])
    path = root / "Annotations" / "label0.xml"
    text = '<!DOCTYPE a [<!ENTITY b "c">]>' + path.read_text()
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(ReaderError, match="label0.xml"):
            read("voc", [root])


def voc_xml(root: Path, path: str, text: str) -> None:
    (root / "Annotations" / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "Annotations" / path).write_text(text)


def test_xml_in_folders_are_read_with_their_folders_pictures(tmp_path):
    touch(images_of("voc", tmp_path), "0.jpg", "cam1/b.jpg", "cam2/b.jpg", "cam1/c.jpg")
    (root,) = write_labels("voc", tmp_path, ["0.jpg"])
    text = (root / "Annotations" / "label0.xml").read_text()
    for key in ("cam1/b", "cam2/b", "cam2/c"):
        voc_xml(root, f"{key}.xml", text.replace("0.jpg", f"{key[-1]}.jpg"))
    voc_xml(root, ".hidden/d.xml", "no xml")
    images = {image.image_id.split("/", 2)[2]: Path(image.path) for image in read("voc", [root])}
    assert list(images) == ["cam1/b", "cam2/b", "cam2/c", "label0"]
    found = {key: path for key, path in images.items() if path.exists()}
    assert {key: str(p.relative_to(root / "JPEGImages")) for key, p in found.items()} == {
        "cam1/b": "cam1/b.jpg",
        "cam2/b": "cam2/b.jpg",
        "label0": "0.jpg",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<annotation>", '<annotation xmlns="http://x/">'),
        ("<annotation>", "<!DOCTYPE annotation>\n<annotation>"),
    ],
)
def test_xml_may_have_a_namespace_and_a_plain_doctype(tmp_path, old, new):
    touch(images_of("voc", tmp_path), "1.jpg")
    (root,) = write_labels("voc", tmp_path, ["1.jpg"])
    path = root / "Annotations" / "label0.xml"
    path.write_text(path.read_text().replace(old, new))
    assert pictures("voc", tmp_path, read("voc", [root])) == ["1.jpg"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<html><object/></html>", "its root is <html>"),
        ("<annotation><objects><object/></objects></annotation>", "1 of its <object> are not"),
        ('<!DOCTYPE annotation SYSTEM "a.dtd"><annotation/>', "its <!DOCTYPE ..> defines"),
        ("<annotation>" + " " * 1_000_001 + "</annotation>", "longer than 1,000,000 bytes"),
    ],
)
def test_xml_that_would_lose_people_are_named(tmp_path, text, words):
    (root,) = write_labels("voc", tmp_path, ["1.jpg"])
    voc_xml(root, "label0.xml", text)
    with one_line(ReaderError, f"label0.xml.*{words}"):
        read("voc", [root])


def test_flags_of_voc_that_decide_nothing_are_counted(tmp_path):
    (root,) = write_labels("voc", tmp_path, ["1.jpg"])
    path = root / "Annotations" / "label0.xml"
    path.write_text(path.read_text().replace("<bndbox>", "<truncated>Left</truncated><bndbox>"))
    (image,) = read("voc", [root], notes := Notes())
    assert image.boxes[0].flags == () and notes["truncated is 'Left'"] == 1
