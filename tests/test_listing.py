"""Which files of a folder or pattern are pictures."""

from pathlib import Path

from osdhuman_jax.listing import list_images, other_pictures


def test_listing_of_file_folder_and_pattern(tmp_path: Path) -> None:
    for name in (
        "b.PNG",
        "a.jpg",
        "sub/c.webp",
        "sub/[d].jpeg",
        "notes.txt",
        "odd",
        "e.jpe",
        "f.JFIF",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(source: Path | str) -> list[str]:
        pairs = list_images(source)
        assert all(path.is_absolute() and path.is_file() for path, _ in pairs)
        return [name.as_posix() for _, name in pairs]

    assert names(tmp_path) == ["a.jpg", "b.PNG", "e.jpe", "f.JFIF", "sub/[d].jpeg", "sub/c.webp"]
    assert names(tmp_path / "odd") == ["odd"]
    assert names(tmp_path / "sub/[d].jpeg") == ["[d].jpeg"]
    assert names(tmp_path / "*.*g") == ["a.jpg"]
    assert names(tmp_path / "**/*.webp") == ["sub/c.webp"]
    assert names(tmp_path / "none") == names(tmp_path / "none*") == []


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a.png").touch()
    assert [name.name for _, name in list_images(tmp_path)] == ["a.png"]


def test_other_pictures_are_counted_below_a_folder_alone(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.tif", "sub/c.TIF", "sub/d.gif", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert other_pictures(tmp_path) == "1 .gif, 2 .tif"
    for name in ("loop", "sub/loop"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "file.tif").symlink_to(tmp_path / "a.jpg")
    assert other_pictures(tmp_path) == "1 .gif, 3 .tif, 2 linked folders"
    for source in ("b.tif", "*", "none"):
        assert other_pictures(tmp_path / source) == ""
