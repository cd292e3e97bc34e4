"""DiffBody's folder: imported from others' files, told of, loaded, and refused in one line."""

import json
import shutil
from pathlib import Path

import make_weights as files
import numpy as np
import pytest
import tiny_diffbody
from convert import call
from make_cleaners import ncnn_files, network
from refusals import one_line

from osdhuman_jax.commands.weights import main
from osdhuman_jax.config import SampleConfig, to_dict
from osdhuman_jax.inference import poses
from osdhuman_jax.weights import DIFFBODY, WeightsError, kind_of, load_diffbody
from osdhuman_jax.weights.choices import POSE_FILES


@pytest.fixture(scope="module")
def given(sources, nets, tmp_path_factory) -> Path:
    """sd/ with a tokenizer, x4.bin of a cleaner, and a folder of BlazePose's files."""
    folder = tmp_path_factory.mktemp("given")
    shutil.copytree(sources / "sd", folder / "sd")
    shutil.rmtree(folder / "sd" / "text_encoder")
    files.text_folder(folder / "sd", nets, files.VOCAB, files.MERGES)
    ncnn_files(folder / "x4", network().state_dict())
    (folder / "poses").mkdir()
    for name in POSE_FILES:
        (folder / "poses" / name).write_text(name)
    return folder


def words(given: Path, *more: str) -> list[str]:
    made = ["import", "--sd", f"{given}/sd", "--prompt", "text", "--control", "unet"]
    return [*made, "--cleaner", f"{given}/x4.bin", *more]


def test_import_without_ram_and_load(given, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(poses, "_network", lambda name, data: asked.append(name))
    pose = ["--pose", f"{given}/poses", "--output", str(tmp_path / "model")]
    assert main(words(given, *pose)) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{tmp_path}/model: prompt text, DiffBody, many steps"
    assert told[1].startswith("use: color_fix wavelet, blend 1, work_side 512")
    for line in (
        "control: ControlNet of restored picture, pose, attention",
        "cleaner: (RRDBNet), x4, 2 blocks of width 8 + 4",
        "steps: 50, ddpm, control_scale 1",
        "text: cfg 4; where no text is given, the empty one",
        "people: BlazePose",
        "guidance by parts: BlazePose",
    ):
        assert line in told
    assert not [line for line in told if "RAM" in line or "hfie" in line]
    assert tuple(asked) == POSE_FILES and kind_of(tmp_path / "model") == DIFFBODY
    loaded = load_diffbody(tmp_path / "model")
    assert loaded.poses == tmp_path / "model" and loaded.use.work_side == 512
    assert loaded.encode is not None and loaded.encode(["dog"]).shape == (1, 7, 32)
    assert loaded.prompter is loaded.tagger is loaded.parser is None
    image = np.zeros((1, 64, 64, 3), np.float32)
    assert call(loaded.restorer, image, method="clean").shape == image.shape


def test_a_parser_comes_from_another_folder(given, tmp_path, capsys):
    other, made = tiny_diffbody.save(tmp_path / "parts"), tmp_path / "model"
    flags = ["--parser", str(other), "--output", str(made)]
    assert main(words(given, *flags)) == 0
    assert "guidance by parts: parser" in capsys.readouterr().out.splitlines()
    assert load_diffbody(made).abilities.parser
    file = "parser.safetensors"
    assert (made / file).read_bytes() == (other / file).read_bytes()
    # Sizes that are not those of its tensors.
    resize(other, block_out_channels=[4, 8])
    flags[-1] = str(tmp_path / "again")
    assert main(words(given, *flags)) == 2
    error = capsys.readouterr().err
    assert f"{other / file}: tensors" in error and error.count("\n") == 1
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("text", [True, False])
def test_a_folder_comes_back(text, tmp_path):
    folder = tiny_diffbody.save(tmp_path / "model", text=text)
    loaded = load_diffbody(folder, "bf16")
    can = loaded.abilities
    assert (can.text, can.tags, can.people, can.parser, can.structure) == (text, False, *[True] * 3)
    assert (loaded.encode is None) != text and (loaded.prompter is None) == text
    assert loaded.use.sample == can.sample and can.sample.steps == 2


def edited(**values):
    def change(folder: Path) -> None:
        files.edit_json(folder / "config.json", **values)

    return change


def drop(part: str):
    def change(folder: Path) -> None:
        parts = json.loads((folder / "config.json").read_text())["parts"]
        del parts[part]
        files.edit_json(folder / "config.json", parts=parts)

    return change


def resize(folder: Path, **sizes: object) -> None:
    """Other sizes of the parser than its tensors have."""
    parts = json.loads((folder / "config.json").read_text())["parts"]
    parts["parser"] |= sizes
    files.edit_json(folder / "config.json", parts=parts)


SAMPLE = to_dict(SampleConfig())
FAULTS = {
    "no cleaner": (drop("cleaner"), "lacks the part cleaner of a DiffBody"),
    "no control": (drop("control"), "lacks the part control of a DiffBody"),
    "no clip": (drop("clip"), "for prompts of kind text it lacks clip"),
    "other prompts": (edited(prompt="null"), "its prompts are of kind null; DiffBody's are text"),
    "changed poses": (
        lambda folder: (folder / POSE_FILES[1]).write_text("other"),
        f"{POSE_FILES[1]}: its bytes do not match",
    ),
    "no restorer": (edited(kind="toaster"), "kind 'toaster' is none of"),
    "no table": (edited(parts=5), "config.json: parts is no table"),
    "a part that is none": (edited(parts={"control": 5}), "config.json: control is no table"),
    "no digests": (edited(digests=None), "config.json: digests is no table"),
    "steps in words": (
        edited(use=to_dict(tiny_diffbody.USE) | {"sample": {**SAMPLE, "steps": "2"}}),
        "SampleConfig: steps is '2', of another type",
    ),
    "a sampler of another name": (
        edited(use=to_dict(tiny_diffbody.USE) | {"sample": {**SAMPLE, "sampler": "euler"}}),
        "config.json: use.sample.sampler is 'euler', none of ddpm, ddim",
    ),
    "a parser of no group": (
        lambda folder: resize(folder, norm_num_groups=0),
        "config.json: parts.parser.norm_num_groups is 0, not above 0",
    ),
    "a parser of no level": (
        lambda folder: resize(folder, block_out_channels=[]),
        "config.json: parser: sizes that make no network",
    ),
    "use": (edited(use={"color_fix": "none", "blend": 1, "work_side": 0, "sample": 3}), "Sample"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_none_is_refused(fault, tmp_path):
    change, said = FAULTS[fault]
    change(tiny_diffbody.save(tmp_path))
    with one_line(WeightsError, said):
        load_diffbody(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pose", "{given}/none"], "none: no wheel of mediapipe and no folder"),
        (["--pose", "{given}/poses"], "pose_detection.tflite: not a .tflite file"),
        (["--parser", "{given}/none"], "none: no such file or folder (--parser)"),
        (["--parser", "{given}/poses"], "poses: not a model folder (no config.json)"),
        (["--generator", "g"], "--cleaner goes alone, without --generator"),
        (["--prompt", "null"], "--control goes with --prompt hfie or text, not null"),
        (["--prompt", "hfie"], "import needs --sd and --ram"),
        (["--clip", "{given}/x4.bin"], "x4.bin"),
        (["--control", "gone.pth"], "gone.pth: no such file or folder (--control)"),
    ],
)
def test_an_import_that_cannot_be_is_refused(flags, said, given, tmp_path, capsys):
    flags = [flag.format(given=given) for flag in flags]
    assert main(words(given, *flags, "--output", str(tmp_path / "model"))) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_is_no_cleaner_is_told_by_its_parts(tmp_path, capsys):
    folder = tiny_diffbody.save(tmp_path / "model")
    parts = json.loads((folder / "config.json").read_text())["parts"]
    beside = ", ".join(parts)
    for left, said in (
        (parts, f"a DiffBody, which restores in many steps, with the parts {beside}; needed here"),
        ({"parser": parts["parser"]}, "a restorer with the part parser; needed here is a cleaner"),
        ({}, "a restorer of one diffusion step; needed here is a cleaner"),
    ):
        edited(parts=left)(folder)
        assert main(["import", "--cleaner", str(folder), "--output", str(tmp_path / "o")]) == 2
        error = capsys.readouterr().err
        assert f"{folder}: {said}" in error and error.count("\n") == 1


@pytest.mark.parametrize("flag", [["--pose", "p"], ["--parser", "p"], ["--prompt", "text"]])
def test_what_goes_with_a_controlnet(flag, capsys):
    assert main(["import", "--sd", "s", *flag, "--output", "o"]) == 2
    assert f"{' '.join(flag).replace(' p', '')} goes with --control" in capsys.readouterr().err
