"""The command and the page with a DiffBody, the tiny one, end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_diffbody
from PIL import Image
from refusals import status

from osdhuman_jax.api import Restorer
from osdhuman_jax.commands import export, restore
from osdhuman_jax.commands.page import Upload, restore_file
from osdhuman_jax.commands.page_controls import controls, read_wish
from osdhuman_jax.data.structures import pose_line
from osdhuman_jax.images.codec import encode_png
from osdhuman_jax.inference import many_steps


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has no BlazePose, so that no test needs its files."""
    return tiny_diffbody.save(tmp_path_factory.mktemp("body") / "body", people=False)


@pytest.fixture
def source(tmp_path) -> Path:
    """Two pictures of one size, one of which lies deeper."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "sub/b.png")):
        Image.fromarray(tiny_diffbody.picture(seed)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def run(body: Path, source: Path, output: Path, *flags: object) -> int:
    return status(restore.main, "--input", source, "--output", output, "--model", body, *flags)


def lines(output: Path) -> dict[str, dict]:
    read = map(json.loads, (output / "provenance.jsonl").read_text().splitlines())
    return {line["output"]: line for line in read}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_folder_is_restored_and_says_how(body, source, tmp_path, capsys):
    out, flags = tmp_path / "out", ("--seed", 3, "--prompt", "a dog", "--steps", 3, "--pose", "off")
    assert run(body, source, out, *flags) == 0
    told = capsys.readouterr()
    assert "step 3 of 3" in told.err and "note:" not in told.err
    found = lines(out)
    assert list(found) == ["a.png", "sub/b.png"]
    for line in found.values():
        want = {"steps": 3, "sampler": "ddpm", "cfg": None, "prompt": "a dog", "negative": None}
        want |= {"control_scale": 1.0, "part_guidance": 0.0, "seed": 3, "pose": "off"}
        want |= {"captions": None, "text": "a dog", "text_scale": 4.0, "people": 0}
        want |= {"guided": False, "color_fix": "wavelet", "status": "ok", "tile": None}
        assert {key: line[key] for key in want} == want
    # The same again is there already; another seed is another picture, and other pictures' bytes
    # do not depend on which were there before.
    assert run(body, source, out, *flags) == 0
    assert "(2 were there already)" in capsys.readouterr().out
    assert run(body, source, out, "--seed", 4) == 2
    assert "outputs of other inputs or settings exist" in capsys.readouterr().err
    assert run(body, source / "sub" / "b.png", tmp_path / "one", *flags) == 0
    assert run(body, source, tmp_path / "again", *flags, "--batch_size", 2) == 0
    assert (pixels(tmp_path / "again" / "a.png") == pixels(out / "a.png")).all()
    assert (pixels(tmp_path / "again" / "sub" / "b.png") == pixels(out / "sub" / "b.png")).all()
    # Of a single file the name is another one, and so is its noise.
    assert (pixels(tmp_path / "one" / "b.png") != pixels(out / "sub" / "b.png")).any()


def test_captions_and_poses_are_those_of_files(body, source, tmp_path, capsys):
    (tmp_path / "captions.jsonl").write_text('{"file": "sub/b.png", "text": "a cat"}\n')
    person = np.full((1, 18, 3), 9.0, np.float32)
    person[..., 2] = 1  # their score
    poses = tmp_path / "poses"
    poses.mkdir()
    told = [pose_line("a.png", person), pose_line("sub/b.png", person[:0])]
    (poses / "poses.jsonl").write_text("\n".join(map(json.dumps, told)))
    Image.fromarray(np.full((24, 16), 200, np.uint8)).save(poses / "a.png")
    flags = ("--captions", tmp_path / "captions.jsonl", "--pose", poses / "poses.jsonl")
    assert run(body, source, tmp_path / "out", *flags) == 0
    a, b = (lines(tmp_path / "out")[name] for name in ("a.png", "sub/b.png"))
    assert (a["text"], a["text_scale"], a["people"]) == ("", 1.0, 1)
    assert (b["text"], b["text_scale"], b["people"]) == ("a cat", 4.0, 0)
    assert len(a["pose"]) == len(a["captions"]) == 64
    # The Python class makes the same of the same.
    restorer = Restorer.load(body)
    options = {"captions": tmp_path / "captions.jsonl", "pose": poses, "names": ["a.png"]}
    got = restorer(tiny_diffbody.picture(0), **options)
    np.testing.assert_array_equal(got, pixels(tmp_path / "out" / "a.png"))
    # Another map is another setting, as is one more.
    assert run(body, source, tmp_path / "out", *flags) == 0
    for name in ("a.png", "sub/b.png"):
        (poses / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((24, 16), 100, np.uint8)).save(poses / name)
        assert run(body, source, tmp_path / "out", *flags) == 2
        assert "outputs of other inputs or settings exist" in capsys.readouterr().err
        assert run(body, source, tmp_path / "out", *flags, "--overwrite") == 0
    assert lines(tmp_path / "out")["sub/b.png"]["pose"] != b["pose"]
    (poses / "sub/b.png").unlink()
    # A map of another size is the fault of one picture, which is named.
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(poses / "a.png")
    assert run(body, source, tmp_path / "other", *flags) == 1
    assert "a.png: an attention map of 9 x 9, its picture has 16 x 24" in capsys.readouterr().err


def captions(folder: Path, *files: str) -> str:
    text = "\n".join(json.dumps({"file": file, "text": "x"}) for file in files)
    (folder / "c.jsonl").write_text(text)
    return str(folder / "c.jsonl")


def poses_of(folder: Path, *files: str) -> str:
    text = "\n".join(json.dumps({"file": file, "people": []}) for file in files)
    (folder / "p.jsonl").write_text(text)
    return str(folder / "p.jsonl")


REFUSED = {
    "caption of no picture": (lambda f: ["--captions", captions(f, "a", "c.jpg")], "c is none of"),
    "no captions": (lambda f: ["--captions", f / "none"], "none: no such file"),
    "odd captions": (lambda f: ["--captions", poses_of(f, "a")], "p.jsonl, line 1: no 'text'"),
    "pose without a picture": (lambda f: ["--pose", poses_of(f, "a")], "has no line for sub/b"),
    "no poses": (lambda f: ["--pose", f / "none"], "none: no such file"),
    "steps": (lambda f: ["--steps", 1001], "steps must be between 1 and 1000, got 1001"),
    "guidance": (lambda f: ["--guidance", -1], "guidance must be at least 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(case, body, source, tmp_path, capsys):
    flags, said = REFUSED[case]
    assert run(body, source, tmp_path / "out", *flags(tmp_path)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note")]
    assert len(error) == 1 and said in error[0] and not (tmp_path / "out").exists()


FLAGS = ["--steps=3", "--sampler=ddim", "--cfg=2", "--prompt=x", "--negative=x", "--seed=1"]
FLAGS += ["--control_scale=1", "--pose=off"]


@pytest.mark.parametrize("flag", FLAGS)
def test_models_of_one_step_refuse_the_flags(flag, model, source, tmp_path, capsys):
    assert run(model, source, tmp_path / "out", flag) == 2
    error = capsys.readouterr().err
    name = flag[2:].partition("=")[0]
    assert f"{name}: for models of many steps (DiffBody)" in error and error.count("\n") == 1


def test_a_model_that_finds_nobody_says_so(body, source, tmp_path, capsys):
    assert run(body, source, tmp_path / "out") == 0
    assert "note: this model has no BlazePose" in capsys.readouterr().err
    assert {line["pose"] for line in lines(tmp_path / "out").values()} == {"off"}


def test_a_failure_of_one_picture_is_its_own(body, source, tmp_path, capsys, monkeypatch):
    key = many_steps.key_data

    def fail(seed: int, name: str):
        if name == "a":
            raise RuntimeError("no key")
        return key(seed, name)

    monkeypatch.setattr(many_steps, "key_data", fail)
    assert run(body, source, tmp_path / "out") == 1
    assert "a.png: no key" in capsys.readouterr().err
    assert {n: line["status"] for n, line in lines(tmp_path / "out").items()}["sub/b.png"] == "ok"


def test_the_class_refuses_in_words(body):
    restorer, image = Restorer.load(body), tiny_diffbody.picture(0)
    for options, error, said in (
        ({"names": ["a", "b"]}, ValueError, "2 names for 1 pictures"),
        ({"step": 3}, TypeError, "step is no option"),
        ({"steps": 0}, ValueError, "steps must be between"),
    ):
        with pytest.raises(error, match=said):
            restorer(image, **options)
    done: list[tuple[int, int]] = []
    made = restorer(image, steps=2, progress=lambda *at: done.append(at))
    assert done == [(1, 2), (2, 2)] and made.shape == image.shape
    assert (made == restorer(image, steps=2)).all()


def test_a_program_in_one_file_is_refused(body, tmp_path, capsys):
    words = ["--model", str(body), "--output", str(tmp_path / "a.npz"), "--size", "16"]
    assert export.main(words) == 2
    assert "takes many steps (DiffBody)" in capsys.readouterr().err


def test_the_page_asks_for_what_the_model_takes(body):
    pipeline = Restorer.load(body).pipeline
    names = [control.name for control in controls(pipeline)]
    others = [control.name for control in controls(tiny.halving())]
    assert set(names) - set(others) == {"steps", "seed", "prompt"}
    form = {"color_fix": "none", "steps": "2", "seed": "7", "prompt": "a dog"}
    told: list[object] = []
    given = Upload(encode_png(tiny_diffbody.picture(0)), "a.png", {})
    wish = read_wish(form, pipeline)
    made = restore_file(pipeline, given, wish, 60_000, lambda *at: told.append(at))
    assert told == [(1, 2), (2, 2)]
    want = Restorer(pipeline)(
        tiny_diffbody.picture(0), color_fix="none", steps=2, seed=7, prompt="a dog", names=["a.png"]
    )
    np.testing.assert_array_equal(made.picture.rgb, want)
