"""Which picture a name in labels means: the one that is certain, or none."""

import os
from pathlib import Path

import pytest
from damage import raising
from label_files import touch

from curate.readers.common import Notes, ReaderError
from curate.readers.pictures import PictureFinder, clean

MISSING = None
CAM2 = ["cam2/1.jpg", "cam2/2.jpg", "cam2/3.jpg"]


def resolve(root: Path, *names: str, distinct: bool = False) -> list[str | None]:
    """The pictures that names mean, relative to the folder; None = missing."""
    pictures = PictureFinder(root, Notes(), distinct)
    for name in names:
        pictures.claim(name)
    found = [Path(pictures.find(name)) for name in names]
    return [str(path.relative_to(root)) if path.exists() else MISSING for path in found]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("./a//1.jpg", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        ("..\\images\\a\\1.jpg", "a/1.jpg"),
        ("b/../a/1.jpg", "a/1.jpg"),
        ("C:\\data\\images\\a\\1.jpg", "a/1.jpg"),
        ("d:/data/a/1.jpg", "a/1.jpg"),
        ("\\\\server\\share\\a\\1.jpg", "a/1.jpg"),
        ("/home/me/images/a/1.jpg", "a/1.jpg"),
        ("file:///home/me/a/1.jpg", "a/1.jpg"),
        ("file:///C:/me/a/1.jpg", "a/1.jpg"),
        ("https://host.org/x/a/1.jpg?raw=1#top", "a/1.jpg"),
        ("/data/local-files/?d=images/a/1.jpg", "a/1.jpg"),
        ("1.jpg", "a/1.jpg"),
        ("images/v2/a/1.jpg", "a/1.jpg"),
        ("/elsewhere/1.jpg", "1.jpg"),
        ("C:\\data\\images\\a\\1.jpg", "images/a/1.jpg"),
        ("A/1.JPG", "a/1.jpg"),
        ("a/1.jpg", "A/1.JPG"),
        ("a/caf\u00e9.jpg", "a/cafe\u0301.jpg"),
        ("a/cafe\u0301.jpg", "a/caf\u00e9.jpg"),
        ("a/b%20c.jpg", "a/b c.jpg"),
        ("a/b c.jpg", "a/b%20c.jpg"),
        ("a%2F1.jpg", "a/1.jpg"),
        ("a/1", "a/1.jpg"),
        ("a/1", "a/1.PNG"),
        ("a/1.2", "a/1.2.jpg"),
        ("a%20b\\1", "a b/1.JPG"),
    ],
)
def test_a_picture_is_found_however_its_name_is_written(tmp_path, name, path):
    touch(tmp_path / "images", path, "a/other.jpg", "z/2.jpg")
    assert resolve(tmp_path / "images", name) == [path]


@pytest.mark.parametrize(
    ("names", "files", "found"),
    [
        # A lost file, with and without its namesake's being labelled, or its folder's being there.
        (["cam1/1.jpg", "cam2/1.jpg"], ["cam1/1.jpg", "cam2/2.jpg"], ["cam1/1.jpg", MISSING]),
        (["cam2/1.jpg"], ["cam1/1.jpg"], [MISSING]),
        (["cam2/img/1.jpg"], ["cam1/img/1.jpg"], [MISSING]),
        (["D:\\cam2\\1.jpg"], ["cam1/1.jpg", "cam2/2.jpg"], [MISSING]),
        # Names of elsewhere, of a folder that is not here: another's picture is not theirs.
        *(
            ([f"{start}cam1/2.jpg", f"{start}cam2/1.jpg"], CAM2, [MISSING, "cam2/1.jpg"])
            for start in ("/data/", "D:\\data\\", "http://host/", "../", "")
        ),
        (["/elsewhere/1.jpg"], ["a/1.jpg"], [MISSING]),
        # One file, two names that fit it alike, or one that fits it better.
        (["x/1.jpg", "y/1.jpg"], ["1.jpg"], [MISSING, MISSING]),
        (["C:\\x\\1.jpg", "/y/1.jpg"], ["z/1.jpg"], [MISSING, MISSING]),
        (["1.jpg", "a/1.jpg"], ["a/1.jpg"], [MISSING, "a/1.jpg"]),
        (["IMG.jpg", "img.jpg"], ["img.jpg"], [MISSING, "img.jpg"]),
        (["1", "1.jpg"], ["1.jpg"], [MISSING, "1.jpg"]),
        (["images/1.jpg", "val/1.jpg"], ["1.jpg"], ["1.jpg", MISSING]),
        # One name, two files that fit it alike, or one that fits it better.
        (["1.jpg"], ["a/1.jpg", "b/1.jpg"], [MISSING]),
        (["IMG.jpg"], ["img.jpg", "Img.jpg"], [MISSING]),
        (["1.jpg"], ["1.jpg", "b/1.jpg"], ["1.jpg"]),
        (["a/1.jpg"], ["1.jpg", "x/a/1.jpg", "b/1.jpg"], ["x/a/1.jpg"]),
        (["img.jpg"], ["img.jpg", "IMG.jpg"], ["img.jpg"]),
        (["1"], ["1.png", "1.jpg"], ["1.jpg"]),
        (["1"], ["1.png", "1.webp"], [MISSING]),
        # What looks like an escape or a separator may be a letter here.
        (["a%20b.jpg", "a b.jpg"], ["a%20b.jpg", "a b.jpg"], ["a%20b.jpg", "a b.jpg"]),
        (["a\\b.jpg", "a/b.jpg"], ["a\\b.jpg", "a/b.jpg"], ["a\\b.jpg", "a/b.jpg"]),
        (["a\\b.jpg"], ["a\\b.jpg", "a/b.jpg"], ["a\\b.jpg"]),
        # The very same path twice is one picture.
        (["a/1.jpg", "a\\1.jpg"], ["a/1.jpg"], ["a/1.jpg", "a/1.jpg"]),
        # 000001 and 1 are two names.
        (["1.jpg"], ["000001.jpg"], [MISSING]),
        ([""], ["1.jpg"], [MISSING]),
    ],
)
def test_a_name_is_never_guessed(tmp_path, names, files, found):
    touch(tmp_path / "images", *files)
    assert resolve(tmp_path / "images", *names) == found
    assert resolve(tmp_path / "images", *reversed(names)) == found[::-1]


def test_names_that_tell_pictures_apart_need_no_folder(tmp_path):
    touch(tmp_path, "train/patch0/p_1.jpg", "train/patch1/p_2.jpg")
    names = ["images/v2/patch0/p_1.jpg", "images/v2/patch0/p_2.jpg"]
    assert resolve(tmp_path, *names, distinct=True) == ["train/patch0/p_1.jpg", MISSING]
    assert resolve(tmp_path, "other/p_2.jpg", distinct=True) == ["train/patch1/p_2.jpg"]


def test_what_is_missing_has_a_path_without_a_file(tmp_path):
    """Else the picture that happens to lie there would be read."""
    touch(tmp_path, "1.jpg")
    names, pictures = ["/x/1.jpg", "/y/1.jpg"], PictureFinder(tmp_path, notes := Notes())
    for name in names:
        pictures.claim(name)
    assert [pictures.find(n) for n in names] == [f"{tmp_path}/x/1.jpg", f"{tmp_path}/y/1.jpg"]
    assert notes == {"names whose picture another name fits as well or better": 2}


@pytest.mark.parametrize("again", ["a/1.jpg", "a\\1.jpg", "./a/1.jpg"])
def test_a_picture_of_several_names_is_counted_once(tmp_path, again):
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    pictures = PictureFinder(tmp_path, notes := Notes())
    names = ["a/1.jpg", again, again, "a/2.jpg"]
    for name in names:
        pictures.claim(name)
    assert [Path(pictures.find(n)).name for n in names] == ["1.jpg"] * 3 + ["2.jpg"]
    assert +notes == {"pictures that several images of the labels name": 1}


def test_two_links_to_one_file_are_no_doubt(tmp_path):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    assert resolve(tmp_path, "1.jpg") == ["a/1.jpg"]


def test_links_to_folders_are_found_in_another_spelling_where_they_are_alone(tmp_path):
    touch(tmp_path, "disk/1.jpg", "disk/2.jpg", "Part/3.jpg")
    for name in ("Train", "part"):
        (tmp_path / name).symlink_to(tmp_path / "disk")
    names = ["Train/1.jpg", "TRAIN/2.jpg", "PART/1.jpg"]
    assert resolve(tmp_path, *names) == ["disk/1.jpg", "disk/2.jpg", MISSING]


def test_a_links_own_spelling_fits_better(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "Train").symlink_to(tmp_path / "a")
    assert resolve(tmp_path, "TRAIN/1.jpg") == ["a/1.jpg"]
    pictures = PictureFinder(tmp_path, Notes())
    for owner, name in (("x", "Train/1.jpg"), ("y", "TRAIN/1.jpg")):
        pictures.claim(name, owner=owner)
    assert Path(pictures.find("Train/1.jpg", owner="x")) == tmp_path / "a" / "1.jpg"
    assert not Path(pictures.find("TRAIN/1.jpg", owner="y")).exists()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "scandir", raising(PermissionError(13, "Permission denied")))
    with pytest.raises(ReaderError, match=f"{tmp_path}: cannot be listed: Permission denied"):
        PictureFinder(tmp_path, Notes())


def test_cleaning_keeps_what_is_no_drive():
    assert clean("a:b.jpg") == "a:b.jpg"
    assert clean("../../x.jpg") == "x.jpg"


@pytest.mark.parametrize("start", ["", "x/", "C:\\"])
def test_many_folders_with_files_of_one_name_are_no_quadratic_work(tmp_path, monkeypatch, start):
    """As video frames are kept: each name is compared with few of the files that end like it."""
    count, compared = 300, []
    touch(tmp_path, *(f"cam{i}/img/1.jpg" for i in range(count)))
    rank = PictureFinder._rank
    monkeypatch.setattr(PictureFinder, "_rank", lambda *args: compared.append(1) or rank(*args))
    names = [f"{start}cam{i}/img/1.jpg" for i in range(count)]
    assert resolve(tmp_path, *names) == [f"cam{i}/img/1.jpg" for i in range(count)]
    assert len(compared) <= 4 * count
