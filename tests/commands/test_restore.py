"""The command, end to end, on a folder of every kind of file, with a tiny random model."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from damage import raising
from picture_files import encoded, exif
from PIL import Image
from refusals import status
from tiny import PHOTO

from osdhuman_jax.commands import restore
from osdhuman_jax.config import UseConfig
from osdhuman_jax.images.codec import read_image
from osdhuman_jax.inference import folder_plan, ledger, pipeline


def fill(folder: Path) -> None:
    """Every kind of file: good ones, and five bad ones."""
    (folder / "sub").mkdir(parents=True)
    image = Image.fromarray(PHOTO)
    image.save(folder / "photo.jpg")
    image.save(folder / "sub" / "photo.jpg")
    Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]])).save(folder / "rgba.png")
    image.convert("L").save(folder / "gray.jpeg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("1").save(folder / "bits.png")
    Image.fromarray(PHOTO[:1, :1]).save(folder / "one.png")
    cv2.imwrite(str(folder / "deep.png"), PHOTO.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "deepgray.png"), PHOTO[..., 0].astype(np.uint16) * 257)
    image.save(folder / "turned.JPG", exif=exif(6))
    image.resize((3000, 200)).save(folder / "panorama.webp")
    (folder / "cut.jpg").write_bytes(encoded(image, "JPEG")[:900])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.webp").touch()
    (folder / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"noise" * 99)
    image.save(folder / "moving.webp", save_all=True, append_images=[Image.fromarray(255 - PHOTO)])


PLAIN = "photo sub/photo rgba gray cmyk palette bits deep deepgray".split()
SIZES = {f"{name}.png": (60, 48) for name in PLAIN}
SIZES |= {"one.png": (1, 1), "turned.png": (48, 60), "panorama.png": (200, 3000)}
BAD = {
    "cut.jpg": "damaged image",
    "text.png": "not a PNG, JPEG, WebP",
    "empty.webp": "empty file",
    "moving.webp": "animated image",
    "noise.png": "",
}


def run(model: Path, source: Path | str, output: Path, *flags: str) -> int:
    always = ["--input", source, "--output", output, "--model", model]
    # One size: few programs to compile.
    return status(restore.main, *always, "--batch_size", 2, *flags)


def refused(capsys, *flags: str) -> str:
    """What a run with these flags says before it exits with status 2."""
    assert status(restore.main, *flags) == 2
    return capsys.readouterr().err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_photo(folder: Path, name: str = "a.jpg") -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(PHOTO).save(folder / name)
    return folder


def pngs(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, Path, int]:
    """Inputs, outputs and exit status of one run on all kinds of files."""
    folder = tmp_path_factory.mktemp("mixed")
    fill(folder / "in")
    return folder / "in", folder / "out", run(model, folder / "in", folder / "out")


def test_good_files_are_restored_and_bad_ones_leave_nothing(mixed):
    _, out, ended = mixed
    assert ended == 1
    assert pngs(out) == sorted([*SIZES, "provenance.jsonl"])
    assert {name: read_image(out / name).size for name in SIZES} == SIZES
    assert (read_image(out / "rgba.png").alpha == PHOTO[..., 0]).all()


def test_provenance_has_a_line_for_each_file(mixed, model):
    source, out, _ = mixed
    lines = [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]
    by_input = {Path(line["input"]).relative_to(source).as_posix(): line for line in lines}
    assert len(lines) == len(by_input) == len(SIZES) + len(BAD)
    for name, reason in BAD.items():
        assert by_input[name]["status"] == "failed" and reason in by_input[name]["reason"]
    for line in lines:
        assert tuple(line)[: len(ledger.RECORD)] == ledger.RECORD
        assert line["model"] == "tiny" and line["model_digest"] == sha256(model / "config.json")
        if line["status"] == "ok":
            assert line["output_sha256"] == sha256(out / line["output"])
            assert line["input_sha256"] == sha256(Path(line["input"]))
            assert (line["output_height"], line["output_width"]) == SIZES[line["output"]]
    turned = by_input["turned.JPG"]
    assert (turned["width"], turned["height"]) == (60, 48)
    assert {line["precision"] for line in lines} == {"fp32"}
    assert {line["color_fix"] for line in lines} == {"none"}


def test_bad_files_are_named_at_the_end(tmp_path, model, capsys):
    one_photo(tmp_path / "in")
    (tmp_path / "in" / "text.png").write_text("not a picture")
    assert run(model, tmp_path / "in", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"failed: {tmp_path}/in/text.png: not a PNG")
    assert printed.out == f"restored 1 of 2 images to {tmp_path}/out\n"


def test_a_picture_that_the_model_is_not_made_for_is_named_and_restored(tmp_path, capsys):
    """By the settings of the model itself, which hold where no flag asks for others."""
    tiny.save(tmp_path / "model", UseConfig("wavelet", 0.25, sides=(64, 0)))
    one_photo(tmp_path / "in")
    assert run(tmp_path / "model", tmp_path / "in", tmp_path / "out", "--blend", "1") == 0
    text = "its shorter side has 48 pixels, the model is made for 64 and more"
    assert f"note: {tmp_path}/in/a.jpg: {text}" in capsys.readouterr().err
    line = json.loads((tmp_path / "out" / "provenance.jsonl").read_text())
    assert (line["color_fix"], line["blend"]) == ("wavelet", 1.0)


def test_what_a_folder_holds_besides_is_told(tmp_path, model, capsys):
    one_photo(tmp_path / "in")
    one_photo(tmp_path / "in", "b.jfif")
    for name in ("c.CR2", "d.cr2", "e.gif", "notes.txt"):
        (tmp_path / "in" / name).touch()
    assert run(model, tmp_path / "in", tmp_path / "out") == 0
    assert pngs(tmp_path / "out") == ["a.png", "b.png", "provenance.jsonl"]
    told = "not restored: 2 .cr2, 1 .gif\n"
    assert capsys.readouterr().err.endswith(told)
    for name in ("a.jpg", "b.jfif"):
        (tmp_path / "in" / name).unlink()
    message = refused(capsys, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert message.endswith("in (but 2 .cr2, 1 .gif)\n")


def test_flags_reach_the_pictures(tmp_path, model):
    one_photo(tmp_path / "in")
    flags = ["--upscale", "1.5", "--precision", "bf16", "--color_fix", "wavelet"]
    assert run(model, tmp_path / "in" / "*.jpg", tmp_path / "out", *flags) == 0
    assert read_image(tmp_path / "out" / "a.png").size == (90, 72)
    line = json.loads((tmp_path / "out" / "provenance.jsonl").read_text())
    assert (line["upscale"], line["precision"], line["color_fix"]) == (1.5, "bf16", "wavelet")


def test_existing_outputs_stand_without_overwrite(tmp_path, model, capsys):
    one_photo(tmp_path / "in")
    one_photo(tmp_path / "in", "b.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("precious")
    assert run(model, tmp_path / "in", tmp_path / "out") == 2
    assert "out/a.png" in capsys.readouterr().err
    assert pngs(tmp_path / "out") == ["a.png"]
    assert (tmp_path / "out" / "a.png").read_text() == "precious"
    assert run(model, tmp_path / "in", tmp_path / "out", "--overwrite") == 0
    assert read_image(tmp_path / "out" / "a.png").size == (60, 48)


def test_own_outputs_inside_the_input_folder_are_no_inputs(tmp_path, model):
    one_photo(tmp_path)
    assert run(model, tmp_path, tmp_path / "out") == 0
    assert run(model, tmp_path, tmp_path / "out", "--overwrite") == 0
    assert pngs(tmp_path / "out") == ["a.png", "provenance.jsonl"]
    assert run(model, tmp_path / "out" / "a.png", tmp_path / "out" / "again") == 0


def test_where_no_picture_can_be_restored_no_folder_is_left(tmp_path, model, capsys):
    """The header is whole, so that the fault is found while the folder is held."""
    whole = (one_photo(tmp_path / "in") / "a.jpg").read_bytes()
    (tmp_path / "in" / "a.jpg").write_bytes(whole[:900])
    for source in (tmp_path / "in", tmp_path / "in" / "a.jpg"):
        assert run(model, source, tmp_path / "new" / "out") == 2
        printed = capsys.readouterr()
        assert printed.err.splitlines()[-1].startswith(f"failed: {tmp_path}/in/a.jpg: damaged")
        assert not printed.out and not (tmp_path / "new").exists()
    (tmp_path / "out").mkdir()
    assert run(model, tmp_path / "in", tmp_path / "out") == 2
    assert pngs(tmp_path / "out") == ["provenance.jsonl"]


def test_too_large_after_upscaling(tmp_path, model, capsys, monkeypatch):
    one_photo(tmp_path / "in")
    monkeypatch.setattr(folder_plan, "MAX_PIXELS", 60 * 48)
    assert run(model, tmp_path / "in", tmp_path / "out", "--upscale", "2") == 2
    assert "more than 2880 pixels after upscaling" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--upscale", "0.5"],
        ["--upscale", "nan"],
        ["--upscale", "x"],
        ["--batch_size", "0"],
        ["--precision", "int8"],
        ["--color_fix", "sepia"],
        ["--blend", "1.1"],
        ["--format", "tiff"],
        ["--quality", "0"],
        ["--max_memory", "much"],
        ["--what", "1"],
        ["--model", "a", "--checkpoint", "b"],
    ],
)
def test_bad_flags_are_refused_in_one_line(tmp_path, capsys, flags):
    message = refused(capsys, "--input", tmp_path, "--output", tmp_path / "out", *flags)
    assert message.startswith("infer.py: ") and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_input_needs_no_flag_and_then_no_output(tmp_path, capsys):
    args = restore.parse_args(["a.jpg"])
    assert (args.input, args.output) == ("a.jpg", Path("restored"))
    args = restore.parse_args(["a.jpg", "--output", "b"])
    assert (args.input, args.output) == ("a.jpg", Path("b"))
    for words in ([], ["a.jpg", "--input", "b.jpg"], ["--output", "c"]):
        assert "name what to restore once" in refused(capsys, *words)
    # What a shell makes of a pattern without quotes.
    for words in (["a.jpg", "b.jpg"], ["--input", "a.jpg", "b.jpg"], ["--input", *"abc"]):
        assert "one INPUT at a time: name their folder" in refused(capsys, *words)


def test_what_is_not_there_is_told_from_what_holds_no_picture(tmp_path, capsys):
    output = ("--output", tmp_path / "out")
    assert "no such file or folder" in refused(capsys, tmp_path / "gone", *output)
    for found in (tmp_path, tmp_path / "*.png"):
        assert f"{found} (not one .jpg .jpeg" in refused(capsys, found, *output)


def test_a_finished_folder_needs_no_model(tmp_path, model, monkeypatch):
    one_photo(tmp_path / "in")
    assert run(model, tmp_path / "in", tmp_path / "out") == 0

    monkeypatch.setattr(restore, "load_pipeline", raising(AssertionError("a model is loaded")))
    assert run(model, tmp_path / "in", tmp_path / "out") == 0
    with pytest.raises(AssertionError, match="is loaded"):
        run(model, tmp_path / "in", tmp_path / "out", "--overwrite", "--blend", "0.5")


@pytest.mark.parametrize("flag", ["--model", "--checkpoint"])
def test_a_bad_model_is_refused_in_one_line(tmp_path, capsys, flag):
    source = one_photo(tmp_path / "in")
    message = refused(capsys, "--input", source, "--output", tmp_path / "out", flag, tmp_path)
    assert str(tmp_path) in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text,expected",
    [("run", ("run", None)), ("a@b/run@70", ("a@b/run", 70)), ("a@b", ("a@b", None))],
)
def test_checkpoint_names_a_run_and_a_step(monkeypatch, text, expected):
    asked = []
    monkeypatch.setattr(pipeline.Pipeline, "from_run", lambda *args, **_: asked.append(args[:2]))
    restore.load_pipeline(
        restore.parse_args(["--input", "i", "--output", "o", "--checkpoint", text])
    )
    assert asked == [expected]


@pytest.mark.parametrize(("flags", "limit"), [([], None), (["--max_memory", "3GiB"], 3 * 2**30)])
def test_memory_and_batch_size_reach_the_pipeline(model, monkeypatch, flags, limit):
    monkeypatch.setattr(pipeline, "budget", lambda: 12_345)
    always = ["--input", "i", "--output", "o", "--model", str(model), "--batch_size", "3"]
    made = restore.load_pipeline(restore.parse_args([*always, *flags]))
    assert made.max_memory == (limit or 12_345) and made.batch_size == 3


def test_script_runs_from_another_folder_without_torch(tmp_path, model):
    one_photo(tmp_path / "in")
    code = (
        "import sys, runpy; sys.modules['torch'] = None; del sys.argv[0];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = Path(__file__).parents[2] / "infer.py"
    flags = ["--input", "in", "--output", "out", "--model", str(model)]
    command = [sys.executable, "-c", code, str(script), *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pngs(tmp_path / "out") == ["a.png", "provenance.jsonl"]
    assert done.stdout == "restored 1 of 1 images to out\n"
