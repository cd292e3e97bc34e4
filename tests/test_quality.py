"""The measures of the READMEs' tables, by closed forms, and the command with stubs for networks."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_diffbody
from skimage.data import astronaut

from benchmarks import diffbody_table, measures, quality
from benchmarks.measures import Column, Outcome
from osdhuman_jax.data.structures import read_poses
from osdhuman_jax.evaluation.niqe import Niqe
from osdhuman_jax.images.codec import read_image, write_png
from osdhuman_jax.weights import CLEANER, kind_of

FACE = np.ascontiguousarray(astronaut()[:256, 96:352])
NATURAL = Niqe(np.linspace(0.5, 2, 36), 0.1 * np.eye(36))


def flat(*colour: int) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


# Measures


def test_sharpness_of_a_ramp():
    plane = np.arange(0, 64, 2, dtype=np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    # The mirrored borders have no gradient.
    assert measures.sharpness(plane) == pytest.approx(2 * 30 / 32)


def test_edges_are_a_multiple_of_the_originals():
    assert measures.edges(FACE, FACE) == pytest.approx(1)
    assert measures.edges(FACE // 2 + 64, FACE) == pytest.approx(0.5, abs=0.01)


def test_grain_is_of_flat_places_and_edges_of_steep_ones():
    rng = np.random.default_rng(0)
    noisy = np.clip(FACE + rng.normal(0, 8, FACE.shape), 0, 255).astype(np.uint8)
    assert measures.grain(noisy, FACE) > 1.5 > measures.edges(noisy, FACE)


def test_a_picture_of_one_level_does_not_count_among_edges():
    pictures = {"face": FACE, "wall": flat(90, 90, 90)}
    assert measures.compared(measures.edges)(Outcome(pictures, pictures)) == pytest.approx(1)
    wall = {"wall": pictures["wall"]}
    assert measures.compared(measures.edges)(Outcome(wall, wall)) is None


def test_colour_difference_is_of_colours_and_not_of_noise():
    assert measures.colour_difference(flat(90, 90, 90), flat(90, 90, 90)) == 0
    # Sharma, Wu and Dalal: gray 50 and 51 of L* are about one unit apart.
    one = measures.colour_difference(flat(119, 119, 119), flat(122, 122, 122))
    assert one == pytest.approx(1.17, abs=0.1)
    noise = np.random.default_rng(0).choice([-20, 20], (64, 64, 1))
    grainy = (flat(119, 119, 119) + noise).astype(np.uint8)
    assert measures.colour_difference(grainy, flat(119, 119, 119)) < 1.2
    assert measures.colour_difference(flat(150, 90, 90), flat(90, 90, 90)) > 10


def test_faces_are_found_again_at_their_place():
    assert len(measures.faces(FACE)) == 1
    assert measures.found_again(FACE, FACE) == 1
    assert measures.found_again(np.roll(FACE, 128, axis=1), FACE) == 0
    assert measures.found_again(flat(90, 90, 90), FACE) == 0


# Tables


@pytest.mark.parametrize(
    "arrow, values, expected",
    [
        ("↑", (3, 1, 2), ["best", "", "second"]),
        ("↓", (3, 1, 2), ["", "best", "second"]),
        ("→ 1", (1.3, 0.9, 0.2), ["second", "best", ""]),
        ("↑", (2.001, 1, 2.004), ["best", "second", "best"]),
        ("↑", (None, 1, 2), ["", "second", "best"]),
        ("↓", (None, None, 2), ["", "", ""]),
        ("", (3, 1, 2), ["", "", ""]),
    ],
)
def test_marks(arrow, values, expected):
    shown = ["–" if value is None else f"{value:.2f}" for value in values]
    assert measures.marks(Column("", arrow, "", lambda made: None), values, shown) == expected


def test_table_of_photographs():
    originals = {"a": FACE}
    outcomes = {
        "degraded": Outcome({"a": FACE // 2}, originals),
        "x|y": Outcome({"a": FACE}, originals, {"a": FACE}, 1.5),
    }
    text = measures.table("n", outcomes, measures.with_originals(None, originals))
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in text.splitlines()]
    heads = "n, PSNR ↑, SSIM ↑, edges → 1, colour ΔE ↓, faces ↑, clean in ↑, seconds ↓"
    assert rows[0] == heads.split(", ")
    assert rows[3][1:] == [
        *("**80.00**", "**1.0000**", "**1.000**", "**0.00**", "**1 of 1**", "80.00", "1.50")
    ]
    assert rows[3][0] == "x\\|y"
    assert rows[2][-2:] == ["–", "–"]


def test_niqe_is_there_with_parameters_and_says_why_without():
    originals = {"a": astronaut()}
    columns = measures.with_originals(NATURAL, originals)
    title = f"NIQE (original {NATURAL(astronaut()):.2f}) ↓"
    assert [column.head for column in columns][3] == title
    assert "NIQE is left out" in measures.legend(None)
    assert "left out" not in measures.legend(NATURAL)
    assert [column.head for column in measures.without_originals(None)] == ["sharpness", "faces ↑"]
    # NIQE is not defined for small pictures.
    assert measures.looked_at(NATURAL)(Outcome({"a": flat(90, 90, 90)})) is None


def test_texts_are_put_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- quality shipped -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        quality.put(page, {"shipped": "new\n", "real": "not here\n"})
        text = "before\n<!-- quality shipped -->\nnew\n<!-- end -->\nafter\n"
        assert page.read_text() == text
    with pytest.raises(ValueError, match="quality photographs"):
        quality.put(page, {"photographs": "new\n"})
    assert page.read_text() == text


# The command


def stub(*arguments: str | Path) -> None:
    """A network that changes nothing, and says that it took two seconds."""
    places = dict(zip(arguments, arguments[1:], strict=False))
    inputs, outputs = Path(places["--input"]), Path(places["--output"])
    shutil.copytree(inputs, outputs, dirs_exist_ok=True)
    lines = [
        {"output": path.name, "status": status, "seconds": seconds}
        for path in inputs.iterdir()
        for status, seconds in (("ok", 30), ("ok", 2), ("failed", 0))
    ]
    (outputs / "provenance.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def moving_stub(*arguments: str | Path) -> None:
    """The same, in which something moves in every picture that has a map."""
    if "osdhuman_jax.commands.parts" in arguments:
        places = dict(zip(arguments, arguments[1:], strict=False))
        assert Path(str(places["--from"]).removeprefix("blazepose:")).is_absolute()
        shutil.copytree(places["--pictures"], places["--output"], dirs_exist_ok=True)
        return
    stub(*arguments)
    if "osdhuman_jax.commands.degrade" in arguments:
        places = dict(zip(arguments, arguments[1:], strict=False))
        state = "motion" if "--parts" in arguments and places["--parts"].is_dir() else "generic"
        line = json.dumps({"record": {"state": state}}) + "\n"
        (Path(places["--output"]) / quality.LOG_NAME).write_text(line)


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "run", stub)
    for name in ("photos", "low"):
        (tmp_path / name / "deep").mkdir(parents=True)
        write_png(tmp_path / name / "deep" / "a.png", FACE)
    flags = ["--input", tmp_path / "photos", "--real", tmp_path / "low", "--output"]
    return partial(_main, [*flags, tmp_path / "out"])


def _main(flags: list, *more: str | Path) -> int:
    return quality.main([str(flag) for flag in (*flags, *more)])


def test_the_command_writes_tables_and_sheets(command, tmp_path, capsys):
    shutil.copytree(tmp_path / "low", tmp_path / "theirs" / "real")
    pages = tmp_path / "page.md"
    pages.write_text(
        "".join(f"<!-- quality {n} -->\n<!-- end -->\n" for n in ("photographs", "real"))
    )
    peers = ("--peer", f"gone={tmp_path / 'gone'}", "--peer", f"peer={tmp_path}")
    others = ("--restored", f"others={tmp_path / 'theirs'}", "--write", pages)
    assert command(*peers, *others) == 0
    said = capsys.readouterr()
    assert "gone is left out" in said.err and "| gone" not in said.out
    # The stub changes nothing: what was put in comes out.
    assert "| bundled model | **80.00** |" in said.out and "| peer | **80.00** |" in said.out
    # The latest line that says "ok" counts.
    assert re.search(r"^\| bundled model .*\b2\.00\b[^|]* \|$", said.out, re.MULTILINE)
    photographs, real = pages.read_text().split("<!-- end -->\n")[:2]
    # Other programs gave no restored photographs, but real pictures.
    assert "others" not in photographs and "| others |" in real
    for name in ("sheet", "faces", "clean", "real"):
        assert read_image(tmp_path / "out" / f"{name}.png").size[1] > 600


def test_motion_blur_has_a_table_of_its_own(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "run", moving_stub)
    page = tmp_path / "page.md"
    page.write_text("<!-- quality moved -->\n<!-- end -->\n")
    assert command("--motion", "blazepose:of.whl", "--write", page) == 0
    said, text = capsys.readouterr().out, page.read_text()
    assert "mean of 1 photographs |" in said and "mean of 1 photographs |" not in text
    assert "| mean of 1 photographs, motion blur in 1 |" in text
    assert "| bundled model | **80.00** |" in text
    # Clean pictures are put in once, and count in both tables.
    assert re.search(r"^\| bundled model .*\b80\.00\b[^|]* \| [^|]* \|$", text, re.MULTILINE)
    assert read_image(tmp_path / "out" / "moved.png").size[1] > 600


def test_a_diffbody_has_a_row_for_each_ablation(tmp_path, monkeypatch, capsys):
    asked = []

    def note(*arguments: str | Path) -> None:
        places = dict(zip(arguments, arguments[1:], strict=False))
        if "poses" in arguments:
            assert Path(str(places["--from"]).removeprefix("blazepose:")).is_absolute()
            shutil.copytree(places["--pictures"], places["--output"], dirs_exist_ok=True)
            line = json.dumps({"file": "deep/a.png", "people": [[[1, 1, 1]] * 18]}) + "\n"
            (Path(places["--output"]) / "poses.jsonl").write_text(line)
            return
        if (pose := places.get("--pose")) and pose != "off":
            people = [len(people) > 0 for people in read_poses(pose / "poses.jsonl").values()]
            pose = people[0], (pose / "deep" / "a.png").is_file()
        asked.append((pose, places.get("--guidance"), Path(places["--output"]).name))
        stub(*arguments)

    monkeypatch.setattr(quality, "run", note)
    monkeypatch.setattr(diffbody_table, "run", note)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    write_png(tmp_path / "photos" / "deep" / "a.png", FACE)
    body = tiny_diffbody.save(tmp_path / "body", people=False)
    flags = ["--input", tmp_path / "photos", "--output", tmp_path / "out", "--diffbody", body]
    assert diffbody_table.main([*map(str, flags), "--from", "blazepose:of.whl"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if "|" in line]
    rows = [line.split("|")[1].strip() for line in table]
    ours = ["DiffBody", "guided", "without pose", "without attention", "without both"]
    assert rows[2:] == ["degraded", "non-local means", "bundled model", "cleaner alone", *ours]
    told = [(True, True), (True, True), (False, True), (True, False), "off"]
    led = ["0", "0.2", "0", "0", "0"]
    for place in (asked[-5:], asked[-12:-7]):  # degraded and clean pictures
        assert [(pose, scale) for pose, scale, _ in place] == [*zip(told, led, strict=True)]
    assert kind_of(tmp_path / "out" / "cleaner") == CLEANER


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--model", "nowhere"], "--model nowhere: no such folder"),
        (["--restored", "x=nowhere"], "--restored nowhere: no such folder"),
        (["--niqe", "nowhere.npz"], "nowhere.npz: not a .mat or .npz file"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(command, tmp_path, capsys, flags, line):
    assert command(*flags) == 2
    assert line in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_squares_are_as_large_as_is_asked_for(command, tmp_path, capsys):
    assert command("--side", "96") == 0
    assert "| mean of 1 photographs of 96 x 96 |" in capsys.readouterr().out
    for folder in ("clean", "degraded"):
        path = tmp_path / "out" / folder / "input" / "deep" / "a.png"
        assert read_image(path).size == (96, 96)
    assert command("--side", "0") == 2
    assert "--side must be at least 1, got 0" in capsys.readouterr().err


def test_pictures_of_another_set_are_refused(command, tmp_path, capsys):
    assert command() == 0
    (tmp_path / "photos" / "deep" / "a.png").rename(tmp_path / "photos" / "b.png")
    assert command() == 2
    assert "holds other pictures" in capsys.readouterr().err


def test_pictures_that_others_lack_are_named(command, tmp_path, capsys):
    (tmp_path / "theirs" / "clean").mkdir(parents=True)
    write_png(tmp_path / "theirs" / "clean" / "b.png", FACE)
    assert command("--restored", tmp_path / "theirs") == 2
    assert "clean: has no deep/a" in capsys.readouterr().err
