"""Which files of a folder or pattern are pictures."""

from pathlib import Path

from osdhuman_jax.listing import list_images


def test_listing_of_file_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "sub/[d].jpeg", "notes.txt", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(source: Path | str) -> list[str]:
        pairs = list_images(source)
        assert all(path.is_absolute() and path.is_file() for path, _ in pairs)
        return [name.as_posix() for _, name in pairs]

    assert names(tmp_path) == ["a.jpg", "b.PNG", "sub/[d].jpeg", "sub/c.webp"]
    assert names(tmp_path / "odd") == ["odd"]
    assert names(tmp_path / "sub/[d].jpeg") == ["[d].jpeg"]
    assert names(tmp_path / "*.*g") == ["a.jpg"]
    assert names(tmp_path / "**/*.webp") == ["sub/c.webp"]
    assert names(tmp_path / "none") == names(tmp_path / "none*") == []


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a.png").touch()
    assert [name.name for _, name in list_images(tmp_path)] == ["a.png"]
