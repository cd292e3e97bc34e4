"""What is refused in one line by every command, with nothing made."""

import importlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from damage import raising
from PIL import Image
from refusals import one_line, status

from osdhuman_jax import cli
from osdhuman_jax.cli import (
    CommandError,
    Parser,
    call_config,
    check_file,
    check_folder,
    check_input,
    end,
)

ROOT = Path(__file__).parents[2]
NANO = ROOT / "models" / "nano"


@pytest.fixture
def places(tmp_path) -> Path:
    """A folder with a file and a link that leads nowhere."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("check", "name", "said"),
    [
        (check_folder, "file", "is no folder"),
        (check_folder, "file/run", "is no folder"),
        (check_folder, "file/a/b", "is no folder"),
        (check_folder, "dangling", "is no folder"),
        (check_file, "", "is a folder; name a file in it"),
        (check_file, "file/a.png", "is no folder"),
        (check_input, "file", "file: is a file, not a folder"),
        (check_input, "none", "none: no such folder"),
    ],
)
def test_a_place_that_cannot_be_is_refused(places, check, name, said):
    with one_line(CommandError, f"--it .*{said}"):
        check("it", places / name)


def test_other_places_are_fine_and_nothing_is_made(places):
    for check, names in ((check_folder, ("", "new/run")), (check_file, ("file", "new/a.png"))):
        for name in names:
            check("it", places / name)
    check_input("it", places)
    assert not (places / "new").exists()


def test_what_cannot_be_written_or_read_is_refused(tmp_path, monkeypatch):
    """Root may write anywhere, so that the answer is given here."""
    denied: list[int] = []
    monkeypatch.setattr(os, "access", lambda path, mode: bool(denied.append(mode)))
    with pytest.raises(CommandError, match=f"{tmp_path} cannot be written; name another"):
        check_folder("output", tmp_path / "new")
    with pytest.raises(CommandError, match="cannot be written"):
        check_file("output", tmp_path / "a.png")
    with pytest.raises(CommandError, match="cannot be read"):
        check_input("weights", tmp_path)
    assert denied == [os.W_OK | os.X_OK] * 2 + [os.R_OK | os.X_OK]


def test_a_bad_flag_is_one_line(capsys):
    parser = Parser("it", "Does it.")
    below = parser.add_subparsers(dest="which").add_parser("that")
    below.add_argument("--size", type=int, required=True)
    for argv, said in (
        (["those"], "it: argument which: invalid choice"),
        (["that", "--size=x"], "it that: argument --size: invalid int"),
        (["that", "--siz=3"], "it that: the following arguments are required: --size"),
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(argv)
        printed = capsys.readouterr()
        assert ended.value.code == 2 and not printed.out
        assert printed.err.startswith(said) and printed.err.count("\n") == 1


def test_an_interrupted_command_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        end("it", lambda: 3)
    assert ended.value.code == 3

    with pytest.raises(SystemExit) as ended:
        end("it", raising(KeyboardInterrupt()), "the same command goes on")
    assert ended.value.code == 130
    assert capsys.readouterr().err == "it: interrupted; the same command goes on\n"


def test_arguments_reach_a_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(kind='plain'):\n    return kind * 2\n")
    assert (call_config(path), call_config(path, "a")) == ("plainplain", "aa")
    with pytest.raises(CommandError, match="TypeError"):
        call_config(path, "a", "b")


# Every command but train.py, in this process: what is given, and what the line says.


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(path)
    return path


COMMANDS = {
    "infer": "osdhuman_jax.commands.restore --input {photos} --output {out}",
    "degrade": "osdhuman_jax.commands.degrade --seed 0 --input {photos} --output {out}",
    "evaluate": "osdhuman_jax.commands.evaluate --restored A={photos} --metrics psnr "
    "--reference {photos} --output {out}",
    "compare": "osdhuman_jax.commands.compare --columns A={photos} --output {out}/sheet.png",
    "export": f"osdhuman_jax.commands.export --model {NANO} --output {{out}}/nano.npz",
    "weights": f"osdhuman_jax.commands.weights export {NANO} --to peft --output {{out}}/peft",
    "label": f"osdhuman_jax.commands.label --model {NANO} --input {{photos}} --output {{out}}",
    "parts": "osdhuman_jax.commands.parts --from instances:{photos}/none.json "
    "--pictures {photos} --output {out}",
    "poses": "osdhuman_jax.commands.poses --from onnx:{photos}/none.onnx "
    "--pictures {photos} --output {out}",
    "captions": f"osdhuman_jax.commands.captions --ram {NANO} --pictures {{photos}} "
    "--output {out}/captions.jsonl",
    "curate": "curate.run --source person={photos} --workers 0 --output {out}",
    "niqe": "curate.niqe {photos} --output {out}/niqe.npz",
    "demo": "curate.demo --output {out}",
}


def refused(capsys, line: str, **places: Path) -> str:
    """The one line that a command prints before it ends with status 2."""
    return refused_words(capsys, line.format(**places).split())


def refused_words(capsys, words: list[str]) -> str:
    """The same of a line in words, which may be empty."""
    name, *argv = words
    ended = status(importlib.import_module(name).main, *argv)
    said = capsys.readouterr().err
    assert ended == 2 and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_below_a_file_is_refused(tmp_path, capsys, name):
    photo = picture(tmp_path / "photos" / "a.png")
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        said = refused(capsys, COMMANDS[name], photos=photo.parent, out=out)
        assert f"{tmp_path / 'file'} is no folder; name another one" in said
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "photos"]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_cannot_be_written_is_refused(tmp_path, capsys, monkeypatch, name):
    photo = picture(tmp_path / "photos" / "a.png")
    real = os.access
    monkeypatch.setattr(
        cli.os, "access", lambda path, mode: not mode & os.W_OK and real(path, mode)
    )
    said = refused(capsys, COMMANDS[name], photos=photo.parent, out=tmp_path / "out")
    assert f"{tmp_path} cannot be written; name another folder" in said
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize("name", [name for name in COMMANDS if "{photos}" in COMMANDS[name]])
def test_a_missing_input_is_refused(tmp_path, capsys, name):
    said = refused(capsys, COMMANDS[name], photos=tmp_path / "none", out=tmp_path / "out")
    assert str(tmp_path / "none") in said and not os.listdir(tmp_path)


PLACES = {  # commands in whose every path-like flag a path may be missing
    **COMMANDS,
    "infer": COMMANDS["infer"] + f" --model {NANO}",
    "checkpoint": COMMANDS["infer"] + " --checkpoint {photos}",
    "app": f"osdhuman_jax.commands.app --model {NANO}",
    "evaluate": COMMANDS["evaluate"] + " --degraded {photos} --weights {photos} --model {photos}",
    "import": "osdhuman_jax.commands.weights import --sd {photos} --ram {photos} --dape {photos} "
    "--lpips {photos} --clip {photos} --tags {photos} --prompt_file {photos} "
    "--generator {photos} --control {photos} --output {out}",
    "cleaner": "osdhuman_jax.commands.weights import --cleaner {photos} --output {out}",
    "info": f"osdhuman_jax.commands.weights info {NANO}",
    "unpack": "curate.unpack {photos} --output {out}",
    "curate": COMMANDS["curate"] + " --config {photos} --stats {photos} --exclude {photos}",
}


@pytest.mark.parametrize("name", PLACES)
def test_an_empty_path_is_not_this_folder(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    places = {"photos": tmp_path / "photos", "out": tmp_path / "out"}
    words = PLACES[name].format(**places).split()
    given = [i for i, word in enumerate(words) if "/" in word and "person=" not in word]
    assert given
    for index in given:
        said = refused_words(capsys, [*words[:index], "", *words[index + 1 :]])
        assert "the path is empty; name one" in said, words[index - 1]
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["evaluate", "compare", "curate", "niqe"])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path, capsys, name):
    photo = picture(tmp_path / "a.png")
    said = refused(capsys, COMMANDS[name], photos=photo, out=tmp_path / "out")
    assert str(photo) in said and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["infer", "degrade"])
def test_a_file_that_is_no_picture_makes_nothing(tmp_path, capsys, name):
    photo = picture(tmp_path / "a.png")
    for data in (b"text", photo.read_bytes()[:60], b""):
        photo.write_bytes(data)
        said = refused(capsys, COMMANDS[name], photos=photo, out=tmp_path / "out")
        assert f"{photo}: " in said and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("osdhuman_jax.commands.app --model {none}", "none"),
        ("osdhuman_jax.commands.app --model {none} --port 70000", "--port 70000"),
        ("osdhuman_jax.commands.app --model {none} --max_pixels 0", "--max_pixels 0"),
        ("osdhuman_jax.commands.export --model {none} --output {none}.npz", "none"),
        ("osdhuman_jax.commands.weights info {none}", "none"),
        ("osdhuman_jax.commands.weights export {none} --to peft --output {out}", "none"),
        ("osdhuman_jax.commands.weights export x --to paint --output {out}", "--to"),
        (
            "osdhuman_jax.commands.evaluate --restored {photos} --output {out} --model {none}",
            "--model",
        ),
        ("curate.unpack {none} --output {out}", "no packed split"),
        ("curate.run gc --output {none}", "no such folder"),
        ("curate.run select --output {none}", "no sources"),
        ("curate.run --output {out} --config {none}", "no such file"),
        ("curate.run --output {out} --config {bad}", "ZeroDivisionError"),
        ("curate.run --output {out} --workers -1", "--workers -1"),
        ("curate.run paint --output {out}", "invalid choice"),
        ("curate.demo", "--output"),
        ("curate.niqe --output {out}", "folder"),
    ],
)
def test_other_places_and_flags_are_refused(tmp_path, capsys, line, said):
    photo = picture(tmp_path / "photos" / "a.png")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    places = {name: tmp_path / name for name in ("none", "out")}
    found = refused(capsys, line, photos=photo.parent, bad=tmp_path / "bad.py", **places)
    assert said in found and sorted(os.listdir(tmp_path)) == ["bad.py", "photos"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("coco={bad},{empty}", "bad.json: not a json file"),
        ("voc={bad}", "bad.json is a file; needs DIR"),
        ("person={empty}", "empty: no pictures"),
    ],
)
def test_a_source_that_cannot_be_read_makes_nothing(tmp_path, capsys, source, said):
    places = {"bad": tmp_path / "bad.json", "empty": tmp_path / "empty"}
    places["bad"].write_text("{bad")
    places["empty"].mkdir()
    line = f"curate.run --source {source} --workers 0 --output {{out}}"
    assert said in refused(capsys, line, out=tmp_path / "new" / "out", **places)
    assert sorted(os.listdir(tmp_path)) == ["bad.json", "empty"]


def test_an_unpacked_split_is_whole(tmp_path, capsys):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "index.parquet").write_bytes(b"no Parquet")
    line = "curate.unpack {packed} --output {out}"
    said = refused(capsys, line, packed=tmp_path / "packed", out=tmp_path / "out")
    assert str(tmp_path / "packed") in said and os.listdir(tmp_path) == ["packed"]


@pytest.mark.parametrize("name", sorted({line.split()[0] for line in PLACES.values()}))
def test_help_is_no_error(capsys, name):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(["--help"])
    printed = capsys.readouterr()
    assert not ended.value.code and "--" in printed.out and not printed.err


NAMED = ("degrade", "evaluate", "compare", "curate")  # of infer, tests/inference tells


@pytest.mark.parametrize("name", NAMED)
def test_names_that_are_no_utf8_are_read_and_written(tmp_path, capsys, name):
    """Pictures and folders of such names; what is printed is text."""
    photos, out = (tmp_path / os.fsdecode(part + b"\xf1") for part in (b"in", b"out"))
    picture(photos / os.fsdecode(b"Mu\xf1oz.png"))
    (photos / "._a.png").write_bytes(b"\0\5\26\7")
    module, *argv = COMMANDS[name].split()
    flags = [word.format(photos=photos, out=out) for word in argv]
    assert importlib.import_module(module).main(flags) == (2 if name == "curate" else 0)
    assert any(path.is_file() for path in out.rglob("*"))
    capsys.readouterr().out.encode()
