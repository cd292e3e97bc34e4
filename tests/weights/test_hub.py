"""A model pushed to a hub on this machine, and loaded from there as the bytes that were pinned."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback_hub import COMMIT, Hub, serving
from refusals import one_line
from tiny_models import MODEL

from osdhuman_jax import Restorer
from osdhuman_jax.commands.weights import main
from osdhuman_jax.weights import random_restorer, save_model
from osdhuman_jax.weights.hub import LOCK, fetch_model
from osdhuman_jax.weights.torch_files import WeightsError

NAME = "someone/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, MODEL, random_restorer(MODEL, 0))
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def push(hub: Hub, *words: str | Path) -> int:
    """The command's status, where HF_ENDPOINT was set before huggingface_hub was imported."""
    with pytest.MonkeyPatch.context() as early:
        early.setattr(constants, "ENDPOINT", hub.address)
        return main(["push", *map(str, words)])


def put(hub: Hub, folder: Path) -> None:
    for path in folder.iterdir():
        hub.put(NAME, path.name, path.read_bytes())


def files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()] if place.exists() else []


def test_pushed_and_loaded(hub, folder, tmp_path, capsys):
    """Dry first; the card is made; the commit that push names is what is loaded."""
    assert push(hub, folder, NAME, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"{folder} -> {NAME} at {hub.address}" in said and "nothing was pushed" in said
    assert "base.safetensors: " in said and not hub.log
    assert push(hub, folder, NAME) == 0
    line = f'pushed: Restorer.from_pretrained("{NAME}", revision="{COMMIT}")'
    assert line in capsys.readouterr().out
    card = hub.files[f"/{NAME}/resolve/main/README.md"].decode()
    assert card.startswith("---\nlibrary_name: osdhuman-jax\n") and "license: unknown" in card
    assert f'Restorer.from_pretrained("{NAME}")' in card and "prompt hfie" in card
    assert str(folder) not in card and not (folder / "README.md").exists()
    for file in ("config.json", "base.safetensors"):
        assert hub.files[f"/{NAME}/resolve/main/{file}"] == (folder / file).read_bytes()
    loaded = Restorer.from_pretrained(NAME)
    assert isinstance(loaded, Restorer)
    assert loaded.pipeline.model.digest == Restorer.load(folder).pipeline.model.digest
    # Nothing but what config.json names was fetched.
    assert not [path for path in hub.asked() if "README" in path]


def test_own_card_is_kept(hub, folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "README.md").write_text("# Mine\n")
    assert push(hub, own, NAME) == 0
    assert hub.files[f"/{NAME}/resolve/main/README.md"] == b"# Mine\n"


def test_a_name_stays_what_it_was(hub, folder, tmp_path):
    """The branch moves on; the name does not, and needs no network any more."""
    put(hub, folder)
    place = fetch_model(NAME)
    (lock,) = (path for path in files(tmp_path / "cache") if path.name == LOCK)
    assert json.loads(lock.read_text())["main"]["commit"] == COMMIT == place.name
    hub.log.clear()
    hub.put(NAME, "config.json", b"{}")
    assert fetch_model(NAME) == place and not hub.log


@pytest.mark.parametrize("file", ["config.json", "base.safetensors"])
def test_other_bytes_under_the_name_are_refused(hub, folder, tmp_path, file):
    """A cache that was emptied but for the lock, and a hub that gives other bytes."""
    put(hub, folder)
    place = fetch_model(NAME)
    for kind in ("snapshots", "blobs", "refs"):
        shutil.rmtree(place.parents[1] / kind)
    data = (folder / file).read_bytes()
    hub.put(
        NAME, file, data.replace(b'"format": 1', b'"format":  1') if file[0] == "c" else data[::-1]
    )
    said = "config.json of main has SHA-256 .* not .* as when it was first fetched"
    said = said if file[0] == "c" else "base.safetensors: its bytes do not match the digest"
    for _ in range(2):
        with one_line(WeightsError, said):
            fetch_model(NAME)
    # What was wrong is not kept.
    hub.put(NAME, file, data)
    assert fetch_model(NAME) == place


def test_a_damaged_lock_lets_nothing_pass(hub, folder):
    put(hub, folder)
    lock = fetch_model(NAME).parents[1] / LOCK
    for text in ("", "[]", '{"main": {"commit": 1}}'):
        lock.write_text(text)
        with one_line(WeightsError, "no lock that can be read; remove it"):
            fetch_model(NAME)


def test_what_is_no_model_is_one_line_and_leaves_no_file(hub, folder, tmp_path, monkeypatch):
    for name in ("", "tiny", "a/b/c", "../x/y", "a b/c", "/a/b"):
        with one_line(ValueError, "no repository of the hub; give ORG/NAME"):
            Restorer.from_pretrained(name)
    hub.put("an/other", "README.md", b"no model")
    for name, said in (
        ("no/one", "no such repository, or a private one"),
        ("an/other", "has no config.json; it holds no model of this package"),
    ):
        with one_line(WeightsError, f"{name}: {said}"):
            fetch_model(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with one_line(WeightsError, "the hub cannot be reached .* and the cache lacks it"):
        fetch_model(NAME)
    # huggingface_hub notes which file a commit lacks; nothing of a model is there, and no lock.
    assert not [path for path in files(tmp_path / "cache") if path.name == LOCK]
    assert sum(path.stat().st_size for path in files(tmp_path / "cache")) < 100


def test_a_stranger_cannot_name_files_of_this_machine(hub, folder):
    meta = json.loads((folder / "config.json").read_text())
    meta["digests"] = {"../../secret": "0" * 64}
    hub.put(NAME, "config.json", json.dumps(meta).encode())
    with one_line(WeightsError, "../../secret is no file of the folder"):
        fetch_model(NAME)
    assert not [path for path in hub.asked() if "secret" in path]


def test_what_cannot_be_pushed_is_one_line(hub, folder, tmp_path, capsys):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "base.safetensors").write_bytes(b"x")
    for words, said in (
        ((tmp_path / "none", NAME), "no model folder"),
        ((broken, NAME), "its bytes do not match the digest"),
        ((folder, "tiny"), "no repository of the hub; give ORG/NAME"),
    ):
        assert push(hub, *words) == 2
        printed = capsys.readouterr()
        assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not hub.log
