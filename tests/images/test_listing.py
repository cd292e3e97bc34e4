"""Which files of a folder or pattern are pictures."""

import os
from pathlib import Path

from curate.readers import Notes, folders
from osdhuman_jax.data.sources import FolderSource
from osdhuman_jax.images.listing import list_images, named_images, other_pictures, real, tree

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(40)
JPEG, PNG, WEBP = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"


def names(source: Path | str) -> list[str]:
    pairs = list_images(source)
    assert all(path.is_absolute() for path, _ in pairs)
    return [name.as_posix() for _, name in pairs]


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_listing_of_file_folder_and_pattern(tmp_path):
    every = "b.PNG a.jpg sub/c.webp sub/[d].jpeg notes.txt odd e.jpe f.JFIF"
    put(tmp_path, dict.fromkeys(every.split(), b""))
    assert names(tmp_path) == ["a.jpg", "b.PNG", "e.jpe", "f.JFIF", "sub/[d].jpeg", "sub/c.webp"]
    assert names(tmp_path / "odd") == ["odd"]
    assert names(tmp_path / "sub/[d].jpeg") == ["[d].jpeg"]
    assert names(tmp_path / "*.*g") == ["a.jpg"]
    assert names(tmp_path / "**/*.webp") == ["sub/c.webp"]
    assert names(tmp_path / "none") == names(tmp_path / "none*") == []


def test_links_to_folders_are_followed_once_each(tmp_path):
    images, disk = tmp_path / "images", tmp_path / "disk"
    put(tmp_path, {"disk/patch/1.png": b"", "images/real/2.png": b""})
    links = {"again": disk / "patch", "patch": disk / "patch", "a_real": images / "real"}
    links |= {"loop": images, "up": tmp_path, "gone": disk / "none", "real/self": images / "real"}
    for name, target in links.items():
        (images / name).symlink_to(target)
    (images / "gone.png").symlink_to(disk / "none.png")
    assert names(images) == ["again/1.png", "gone.png", "real/2.png"]
    found = tree(images)
    assert (found.files, sorted(found.dangling)) == (
        ["real/2.png", "again/1.png"],
        ["gone", "gone.png"],
    )
    assert found.aliases == {"a_real": "real", "loop": "", "patch": "again", "real/self": "real"}
    assert names(images / "**/1.png") == ["again/1.png"]


def test_other_pictures_are_counted_below_a_folder_alone(tmp_path):
    put(tmp_path, dict.fromkeys(("a.jpg", "b.jxl", "sub/c.JXL", "sub/d.gif", "e.txt"), b""))
    assert other_pictures(tmp_path) == "1 .gif, 2 .jxl"
    for name in ("loop", "sub/loop"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "file.jxl").symlink_to(tmp_path / "a.jpg")
    assert other_pictures(tmp_path) == "1 .gif, 3 .jxl"
    for source in ("b.jxl", "*", "none"):
        assert other_pictures(tmp_path / source) == ""


def test_what_systems_leave_beside_pictures_is_passed_over(tmp_path):
    odd = {
        "._a.jpg": APPLE_DOUBLE,
        "._b.png": b"",
        ".hidden.jpg": b"text",
        "sub/._c.webp": APPLE_DOUBLE,
        "__MACOSX/a.jpg": JPEG,
        "sub/__MACOSX/._a.jpg": APPLE_DOUBLE,
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg": JPEG,
        ".thumbnails/1.jpg": JPEG,
        ".DS_Store": b"Bud1",
        "Thumbs.db": b"\xd0\xcf",
        "desktop.ini": b"[x]",
    }
    sound = {"a.jpg": b"", "sub/c.webp": WEBP, "._d.jpg": JPEG, ".e.png": PNG, ".f.webp": WEBP}
    put(tmp_path, odd | sound)
    assert names(tmp_path) == sorted(sound)
    assert names(f"{tmp_path}/**/*.*") == sorted(sound)
    assert names(f"{tmp_path}/**") == sorted(sound)
    assert names(f"{tmp_path}/*") == [name for name in sorted(sound) if "/" not in name]
    assert names(f"{tmp_path}/*/*") == ["sub/c.webp"]
    # what is named is meant
    assert names(tmp_path / "__MACOSX") == names(f"{tmp_path}/__MACOSX/*") == ["a.jpg"]
    assert names(tmp_path / "._a.jpg") == ["._a.jpg"]


def test_brackets_of_a_folder_that_is_there_are_its_name(tmp_path):
    albums = ["Wedding [2024]", "a*b", "who?", "x/[1-3] y", "1 y", "Wedding 2"]
    put(tmp_path, {f"{folder}/a.jpg": b"" for folder in albums})
    for folder in albums:
        assert names(f"{tmp_path}/{folder}/*.jpg") == ["a.jpg"], folder
        assert names(f"{tmp_path}/{folder}") == names(f"{tmp_path}/{folder}/a.jpg") == ["a.jpg"]
    assert names(f"{tmp_path}/*/[1-3] y/*.jpg") == ["x/[1-3] y/a.jpg"]
    assert names(f"{tmp_path}/Wedding [2]/*.jpg") == ["Wedding 2/a.jpg"]  # no folder's name
    assert names(f"{tmp_path}/[1-3] y/*") == ["1 y/a.jpg"]
    assert names(f"{tmp_path}/**/[[]1-3] y/a.*") == ["x/[1-3] y/a.jpg"]


def test_a_pattern_finds_a_file_once_and_enters_no_link(tmp_path):
    put(tmp_path, {"a/b/c/x.png": b"", "a/y.png": b""})
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert names(f"{tmp_path}/**/a/**/*.png") == ["a/b/c/x.png", "a/y.png"]
    assert names(f"{tmp_path}/a/*/*.png") == []
    assert names(f"{tmp_path}/a/loop/*.png") == ["y.png"]


def test_links_that_lead_nowhere_are_listed_to_fail_by_name(tmp_path):
    put(tmp_path, {"a.png": PNG, "sub/b.png": PNG})
    for name, target in (("gone.png", "none"), ("me.png", "me.png"), ("sub/x.png", "y.png")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "sub" / "y.png").symlink_to("x.png")
    (tmp_path / "folder.png").symlink_to("sub")
    every = ["a.png", "gone.png", "me.png", "sub/b.png", "sub/x.png", "sub/y.png"]
    assert names(tmp_path) == names(f"{tmp_path}/**/*.png") == names(f"{tmp_path}/**") == every
    assert names(f"{tmp_path}/*.png") == ["a.png", "gone.png", "me.png"]
    assert names(tmp_path / "me.png") == ["me.png"] and names(tmp_path / "none.png") == []
    assert real(tmp_path / "me.png") == tmp_path.resolve() / "me.png"


def test_names_that_are_no_utf8_are_listed_and_spelled(tmp_path):
    for name in (b"Mu\xf1oz.jpg", rb"Mu\xf1oz.jpg", b"\xff[1].png"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).touch()
    found = named_images(tmp_path)
    assert sorted(found) == [r"Mu\x5cxf1oz", r"Mu\xf1oz", r"\xff[1]"]
    assert all(path.is_file() for path in found.values())
    assert len(list_images(f"{tmp_path}/*oz.jpg")) == 2


def test_training_and_curation_list_the_same(tmp_path):
    put(tmp_path, {"a.jpg": b"", "B/c.JFIF": b"", "._a.jpg": APPLE_DOUBLE, "._b.jpg": JPEG})
    put(tmp_path, {"__MACOSX/d.jpg": JPEG, ".x/e.png": PNG, "f.jxl": b"", "g.txt": b""})
    expected = ["._b.jpg", "B/c.JFIF", "a.jpg"]
    assert sorted(names(tmp_path)) == FolderSource(tmp_path).files == expected
    images = folders.read_folder("s", Notes(), tmp_path)
    assert [image.image_id for image in images] == [f"s/all/{name}" for name in expected]
