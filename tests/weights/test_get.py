"""Published files from a hub and plain addresses on this machine: resumed, checked, refused."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from loopback_hub import Fault, Hub, serving

from osdhuman_jax.weights import download
from osdhuman_jax.weights.download import (
    BY_HOME,
    BY_TABLE,
    DiskFullError,
    Downloader,
    Received,
)
from osdhuman_jax.weights.download_folder import RECORD, DownloadFolder, find
from osdhuman_jax.weights.homes import TABLE, UNVERIFIED, Home, Source, WeightFile, read_homes
from osdhuman_jax.weights.torch_files import WeightsError

DATA = bytes(range(256)) * 800  # as long as several packets
DIGEST = hashlib.sha256(DATA).hexdigest()
PINNED = WeightFile("unet/model.bin", len(DATA), DIGEST, "this test")
FILE = WeightFile("unet/model.bin")
FIRST, SECOND = Home(hub="a/first", seen="x"), Home(hub="b/second", seen="x")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(download, "PAUSE", 0.0)
        yield served


def source(*homes: Home) -> Source:
    return Source("It", "it", "Some-1.0", "https://licence", homes, (FILE,))


def fetch(
    origin: Source, file: WeightFile, folder: Path, note: Callable[[str], object] = print
) -> Received:
    return Downloader(folder, note).fetch(origin, file)


def place(folder: Path) -> Path:
    return folder / "it" / "unet" / "model.bin"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in place(folder).parent.glob("*"))


@pytest.mark.parametrize("data", [b"small", DATA])
def test_what_the_hub_says_of_a_file_is_checked(hub: Hub, tmp_path: Path, data: bytes) -> None:
    """Of a large one it says SHA-256, of a small one git's digest."""
    hub.put("a/first", FILE.name, data)
    got = fetch(source(FIRST), FILE, tmp_path)
    digest = hashlib.sha256(data).hexdigest()
    address = f"{hub.address}/a/first/resolve/main/{FILE.name}"
    assert got == Received(place(tmp_path), address, len(data), digest, BY_HOME)
    assert place(tmp_path).read_bytes() == data and left(tmp_path) == ["model.bin"]


def test_repositories_of_other_kinds_and_folders(hub: Hub, tmp_path: Path) -> None:
    hub.put("spaces/a/first", f"deep/{FILE.name}", DATA)
    home = Home(hub="spaces/a/first", path="deep", seen="x")
    assert fetch(source(home), PINNED, tmp_path).checked == BY_TABLE


def test_the_token_is_the_hubs_alone(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.put("a/first", FILE.name, DATA)
    hub.put("", FILE.name, DATA)
    fetch(source(FIRST), FILE, tmp_path / "hub")
    fetch(source(Home(url=hub.plain, seen="x")), PINNED, tmp_path / "plain")
    given = {(r.host, r.path.split("/")[1]): "authorization" in r.headers for r in hub.log}
    hosts = (f"127.0.0.1:{hub.port}", f"localhost:{hub.store_port}")
    assert given == {
        (hosts[0], "a"): True,
        (hosts[1], "store"): False,
        (hosts[0], "plain"): False,
    }


@pytest.mark.parametrize("home", [FIRST, Home(url="PLAIN", seen="x")])
def test_a_broken_connection_is_taken_up(hub: Hub, tmp_path: Path, home: Home) -> None:
    """Within one run, and only for what is missing."""
    hub.put("a/first", FILE.name, DATA, Fault(after=50_000, times=2))
    hub.put("", FILE.name, DATA, Fault(after=50_000, times=2))
    home = replace(home, url=hub.plain) if home.url else home
    fetch(source(home), PINNED, tmp_path)
    asked = [r.headers.get("Range") for r in hub.log if r.method == "GET" and "store" in r.path]
    plain = [r.headers.get("Range") for r in hub.log if "plain" in r.path]
    assert (plain if home.url else asked) == [None, "bytes=50000-", "bytes=100000-"]
    assert place(tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("file", [PINNED, FILE])
def test_the_next_run_goes_on(hub: Hub, tmp_path: Path, monkeypatch, file: WeightFile) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    hub.put("a/first", FILE.name, DATA, Fault(after=70_000, times=1))
    with pytest.raises(WeightsError, match="model.bin: no home gave it .*same command again"):
        fetch(source(FIRST), file, tmp_path)
    assert left(tmp_path) == ["model.bin.part", "model.bin.part.json"]
    fetch(source(FIRST), file, tmp_path)
    assert hub.log[-1].headers["Range"] == "bytes=70000-"
    assert place(tmp_path).read_bytes() == DATA and left(tmp_path) == ["model.bin"]


@pytest.mark.parametrize(
    ("fault", "ranged"),
    [(Fault(tag="2"), True), (Fault(tag="1", ranges=False), True), (Fault(), True)],
)
def test_a_file_that_changed_is_begun_anew(
    hub: Hub, tmp_path: Path, monkeypatch, fault: Fault, ranged: bool
) -> None:
    """Two halves of two files are no file; nor is a half, where a server gives wholes alone."""
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    home, new = Home(url=hub.plain, seen="x"), DATA[::-1]
    hub.put("", FILE.name, DATA, Fault(after=70_000, tag="1"))
    with pytest.raises(WeightsError):
        fetch(source(home), FILE, tmp_path)
    hub.put("", FILE.name, new, fault)
    fetch(source(home), FILE, tmp_path)
    assert ("Range" in hub.log[-1].headers) is ranged
    assert place(tmp_path).read_bytes() == new


def test_without_a_strong_tag_nothing_is_taken_up(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    home = Home(url=hub.plain, seen="x")
    hub.put("", FILE.name, DATA, Fault(after=70_000, times=1))
    with pytest.raises(WeightsError):
        fetch(source(home), FILE, tmp_path)
    fetch(source(home), FILE, tmp_path)
    assert "Range" not in hub.log[-1].headers and place(tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=404), "HTTP 404"),
        (Fault(status=401), "HTTP 401: gone, or it asks for HF_TOKEN"),
        (Fault(html=True, instead=b"<html>" + b" " * 2000), "a web page came in its place"),
        (Fault(instead=b" <!DOCTYPE html><p>" + b"x" * (len(DATA) - 19)), "a web page or a point"),
        (Fault(instead=DATA[:-1]), "its bytes: 204,799, not 204,800"),
        (Fault(instead=DATA[::-1]), "SHA-256 .*, not .* as in the table"),
    ],
)
def test_the_next_home_is_tried(hub: Hub, tmp_path: Path, fault: Fault, said: str) -> None:
    """And a line says so; nothing of the wrong file is left."""
    hub.put("a/first", FILE.name, DATA, fault)
    hub.put("b/second", FILE.name, DATA)
    lines: list[str] = []
    got = fetch(source(FIRST, SECOND), PINNED, tmp_path, lines.append)
    assert "/b/second/" in got.address and left(tmp_path) == ["model.bin"]
    assert len(lines) == 1 and lines[0].endswith("; trying hub b/second")
    pytest.raises(WeightsError, fetch, source(FIRST), PINNED, tmp_path / "x").match(said)
    assert left(tmp_path / "x") == []


@pytest.mark.parametrize("home", [Home(hub="a/b/c/d"), Home(url="http://[::1/")])
def test_an_impossible_home_is_one_line(tmp_path: Path, home: Home) -> None:
    with pytest.raises(WeightsError, match="model.bin: no home gave it"):
        fetch(source(home), FILE, tmp_path)


def test_a_home_that_failed_is_asked_last(hub: Hub, tmp_path: Path) -> None:
    hub.put("b/second", FILE.name, DATA)
    hub.put("b/second", "other.bin", DATA)
    downloader = Downloader(tmp_path)
    downloader.fetch(source(FIRST, SECOND), FILE)
    hub.log.clear()
    downloader.fetch(source(FIRST, SECOND), WeightFile("other.bin"))
    assert not any("first" in path for path in hub.asked("HEAD"))


def test_a_pointer_of_git_lfs_is_no_file(hub: Hub, tmp_path: Path) -> None:
    hub.put("", FILE.name, b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(WeightsError, match="a pointer in the place"):
        fetch(source(Home(url=hub.plain)), FILE, tmp_path)


def test_what_the_hub_calls_otherwise_is_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.put("a/first", FILE.name, DATA[::-1])
    with pytest.raises(WeightsError, match="its SHA-256: .* as in the table"):
        fetch(source(FIRST), PINNED, tmp_path)
    assert hub.asked("HEAD") and not hub.asked("GET")


def test_what_is_no_hub_is_said(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.plain.rstrip("/"))
    hub.put("", f"a/first/resolve/main/{FILE.name}", DATA, Fault(tag="x"))
    with pytest.raises(WeightsError, match="is no Hugging Face hub; see HF_ENDPOINT"):
        fetch(source(FIRST), FILE, tmp_path)


def test_without_a_network_nothing_is_asked(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    homes = (FIRST, Home(url=hub.plain, seen="x"))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set; .*HF_HUB_OFFLINE is set"):
        fetch(source(*homes), FILE, tmp_path, lambda _: None)
    assert not hub.log


def test_a_disk_without_room_is_one_line(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    """Other homes would not help, so that they are not asked."""
    hub.put("a/first", FILE.name, DATA)
    usage = SimpleNamespace(free=len(DATA) - 1)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError, match="204,800 more bytes are needed and 204,799 are free"):
        fetch(source(FIRST, SECOND), PINNED, tmp_path)
    assert not any("second" in path for path in hub.asked("HEAD"))


def test_a_disk_that_fills_is_one_line(hub: Hub, tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    hub.put("a/first", FILE.name, DATA)
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path).with_name("model.bin.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="the disk is full; make room and give the same"):
        fetch(source(FIRST, SECOND), PINNED, tmp_path)
    assert not any("second" in path for path in hub.asked("HEAD"))


# The folder of downloads


def test_what_was_fetched_is_recorded_and_proved(tmp_path: Path) -> None:
    folder, it = DownloadFolder(tmp_path), source(FIRST)
    target = place(tmp_path)
    target.parent.mkdir(parents=True)
    target.write_bytes(DATA)
    assert folder.has(it, PINNED) and not folder.has(it, FILE)  # nothing proves the latter
    got = Received(target, "https://here", len(DATA), DIGEST, BY_HOME)
    folder.record(it, FILE, got)
    folder.record(it, FILE, got)
    (row,) = json.loads((tmp_path / RECORD).read_text())
    assert (row["file"], row["address"]) == ("it/unet/model.bin", "https://here")
    assert (row["bytes"], row["sha256"], row["checked"]) == (len(DATA), DIGEST, BY_HOME)
    assert row["licence"] == "Some-1.0" and row["date"][:2] == "20"
    assert folder.proved(it, FILE).sha256 == DIGEST
    target.write_bytes(DATA[::-1])
    for file in (FILE, PINNED):
        with pytest.raises(WeightsError, match="remove it and give the same command again"):
            folder.proved(it, file)


def test_own_files_are_found_by_name_and_linked(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for name in ("vae/model.bin", "deep/unet/model.bin", "deep/er/unet/model.bin"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(DATA if "er" in name else b"short")
    assert find(own, [FILE, PINNED, WeightFile("none.bin")]) == {
        FILE: own / "deep/unet/model.bin",
        PINNED: own / "deep/er/unet/model.bin",
    }
    folder = DownloadFolder(tmp_path / "downloads")
    got = folder.link(source(), PINNED, own / "deep/er/unet/model.bin")
    assert got.path.is_symlink() and got.path.read_bytes() == DATA and got.checked == BY_TABLE
    assert folder.link(source(), FILE, own / "vae/model.bin").checked == UNVERIFIED
    with pytest.raises(WeightsError, match="own/vae/model.bin: 5 bytes, not 204,800 as in"):
        folder.link(source(), PINNED, own / "vae/model.bin")


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = DownloadFolder(tmp_path / "d")
    with (
        folder.locked(),
        pytest.raises(WeightsError, match="another process downloads into it"),
        folder.locked(),
    ):
        pass


# The table


def test_the_packages_table_is_sound() -> None:
    """No digest without the one who says so, and a home for everything."""
    models = read_homes()
    assert set(models) == {"osediff", "haodiff"}
    for model in models.values():
        assert model.bytes > 1e9
        for origin, file in model.files():
            assert origin.homes and origin.licence and origin.licence_link.startswith("https://")
            assert not (file.bytes or file.sha256) or file.known, file.name


def test_the_documentation_lists_every_file_and_home() -> None:
    text = (TABLE.parents[2] / "docs" / "weights.md").read_text()
    for model in read_homes().values():
        for origin, file in model.files():
            assert os.path.basename(file.name) in text, file.name
            assert not file.sha256 or file.sha256[:8] in text, file.name
            for home in origin.homes:
                assert (home.hub or home.url or home.by_hand).rstrip("/") in text, home


GOOD = """[models.m]
sources = ["s"]
[sources.s]
title = "It"
folder = "it"
licence = "L"
licence_link = "https://l"
homes = [{hub = "a/b"}]
files = [{name = "f"}]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[models.m]", "models", "not a table of homes"),
        ("[models.m]\nsources", "[other]\nsources", r"holds no \[models.NAME\]"),
        ('["s"]', '["t"]', "no such source: t"),
        ('title = "It"', 'titel = "It"', "unknown: titel"),
        ('title = "It"', "title = 3", "title has a value of another type"),
        ('title = "It"\n', "", "lacks title"),
        ('[{hub = "a/b"}]', '"a/b"', r"holds no \[\[sources.s.homes\]\]"),
        ('hub = "a/b"', 'seen = "x"', "each has one of hub, url and by_hand"),
        ('hub = "a/b"', 'url = "file:///etc/"', "is no http.s. address that ends in /"),
        ('name = "f"', 'name = "../f"', "is no name below a folder"),
        ('folder = "it"', 'folder = "/it"', "is no name below a folder"),
        ('name = "f"', 'name = "f", sha256 = "abc"', "is not 64 hexadecimal digits"),
        ('name = "f"', f'name = "f", sha256 = "{DIGEST}"', "say under `known` who says its"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "homes.toml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert read_homes(path)["m"].files()[0][1] == WeightFile("f")
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(WeightsError, match=said) as caught:
        read_homes(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
