"""The degradation command: folders in, folders out, the same bytes again."""

import hashlib
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from damage import raising
from picture_files import photo
from refusals import status

from osdhuman_jax.commands import degrade as command
from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.data.part_maps import write_part_map
from osdhuman_jax.degrade.second_order import degrade, sample_rng
from osdhuman_jax.images.codec import read_image, write_png

CONFIG = DegradationConfig()


@pytest.fixture
def folder(tmp_path):
    """Two photographs, one below a subfolder."""
    source = tmp_path / "hq"
    (source / "b").mkdir(parents=True)
    write_png(source / "c.png", photo(80))
    cv2.imwrite(str(source / "b" / "a.jpg"), photo(120)[:, :100])
    return source


def run(source, output, *flags: str) -> int:
    return status(command.main, "--input", source, "--output", output, "--seed", 5, *flags)


def log_lines(output) -> list[dict]:
    return [json.loads(line) for line in (output / command.LOG_NAME).read_text().splitlines()]


def test_command_degrades_a_folder(folder, tmp_path):
    out = tmp_path / "lq"
    assert run(folder, out) == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["b/a.png", "c.png", command.LOG_NAME]
    log = log_lines(out)
    for index, (name, entry) in enumerate(zip(["b/a.jpg", "c.png"], log, strict=True)):
        hq = read_image(folder / name).rgb
        lq, record, _ = degrade(hq, sample_rng(5, 0, index), CONFIG)
        np.testing.assert_array_equal(
            read_image((out / name).with_suffix(".png")).rgb, lq, strict=True
        )
        expected = {"file": name, "seed": 5, "epoch": 0, "index": index, "record": record}
        assert entry == expected


def complaints(capsys) -> list[str]:
    """Lines on stderr, those of the progress bar and what it leaves at its end not counted."""
    said = capsys.readouterr().err.splitlines()
    return [line for line in said if line.strip() and "picture/s]" not in line]


def test_command_crops_resizes_and_keeps_model_scale(folder, tmp_path):
    out = tmp_path / "lq"
    assert run(folder, out, "--resize_short", "64", "--crop", "48", "--model_scale") == 0
    assert read_image(out / "b" / "a.png").size == read_image(out / "c.png").size == (12, 12)
    hq = cv2.resize(photo(80), (64, 64), interpolation=cv2.INTER_AREA)[8:56, 8:56]
    small, _, _ = degrade(hq, sample_rng(5, 0, 1), CONFIG, full=False)
    np.testing.assert_array_equal(read_image(out / "c.png").rgb, small)
    assert run(folder, tmp_path / "full", "--resize_short", "40") == 0
    assert read_image(tmp_path / "full" / "b" / "a.png").size == (48, 40)


def test_people_move_by_maps_of_their_parts(folder, tmp_path, capsys):
    # A map for one of the two; in the other picture nothing can move.
    labels = np.zeros((80, 80), np.uint8)
    labels[20:60, 20:50] = 3
    (tmp_path / "parts").mkdir()
    write_part_map(tmp_path / "parts" / "c.png", labels)
    assert run(folder, tmp_path / "lq", "--parts", str(tmp_path / "parts")) == 0
    still, moving = (line["record"] for line in log_lines(tmp_path / "lq"))
    assert (still["state"], moving["state"]) == ("generic", "motion")
    assert moving["part"]["name"] in ("right_arm", "body")
    config = DegradationConfig(first_order=(0.0, 1.0, 0.0))
    lq, _, mask = degrade(photo(80), sample_rng(5, 0, 1), config, parts=labels)
    assert mask.any()
    np.testing.assert_array_equal(read_image(tmp_path / "lq" / "c.png").rgb, lq)
    # A map of another size fails with its picture alone.
    write_part_map(tmp_path / "parts" / "c.png", labels[1:])
    assert run(folder, tmp_path / "less", "--parts", str(tmp_path / "parts")) == 1
    assert "a part map of 80 x 79, its picture has 80 x 80" in complaints(capsys)[-1]


def test_command_goes_on_after_a_corrupt_image(folder, tmp_path, capsys):
    (folder / "b" / "b.jpg").write_bytes(b"not an image")
    (folder / "me.png").symlink_to("me.png")
    write_png(folder / "small.png", photo(31))
    assert run(folder, tmp_path / "lq") == 1
    errors, bad = complaints(capsys), ["b/b.jpg", "me.png", "small.png"]
    assert [f"{folder / name}: " in said for name, said in zip(bad, errors, strict=True)] == [
        True
    ] * 3
    entries = [(entry["file"], entry["index"]) for entry in log_lines(tmp_path / "lq")]
    assert entries == [("b/a.jpg", 0), ("c.png", 2)]
    assert not (tmp_path / "lq" / "b" / "b.png").exists()


def test_command_refuses_before_it_begins(folder, tmp_path, capsys):
    out = tmp_path / "lq"
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, target, flags in [
        (empty, out, ()),
        (tmp_path / "missing", out, ()),
        (folder, folder / "lq", ()),
        (folder / "c.png", folder, ("--overwrite",)),
        (folder, folder.parent / "hq" / "c.png" / "x", ()),
        (folder, out, ("--crop", "31")),
        (folder, out, ("--resize_short", "many")),
        (folder, out, ("--seed", "-1")),
        (folder, out, ("--full", "--model_scale")),
        (folder, out, ("--parts", str(tmp_path / "missing"))),
        (folder, out, ("--parts", str(empty), "--crop", "48")),
    ]:
        assert run(source, target, *flags) == 2, (source, target, flags)
        assert capsys.readouterr().err
    write_png(folder / "b" / "a.png", photo(64))
    assert run(folder, out) == 2
    assert "a.jpg and b/a.png" in capsys.readouterr().err
    assert not out.exists()


def test_command_overwrites_only_when_told(folder, tmp_path, capsys):
    out = tmp_path / "lq"
    assert run(folder, out) == 0
    first = (out / "c.png").read_bytes()
    (out / "c.png").write_bytes(b"mine")
    assert run(folder, out) == 2 and "--overwrite" in capsys.readouterr().err
    assert (out / "c.png").read_bytes() == b"mine"
    assert run(folder, out, "--overwrite") == 0
    assert (out / "c.png").read_bytes() == first
    (out / "c.png").unlink()
    (out / "b" / "a.png").unlink()
    assert run(folder, out) == 2  # the log alone


def test_a_run_that_is_interrupted_tells_of_what_it_made(folder, tmp_path, monkeypatch):
    out, work = tmp_path / "lq", command._degrade_file
    assert run(folder, out) == 0

    def interrupted(source, targets, index, args):
        if index:
            raise KeyboardInterrupt
        return work(source, targets, index, args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(command, "_degrade_file", interrupted)
        run(folder, out, "--overwrite")
    assert [line["file"] for line in log_lines(out)] == ["b/a.jpg"]
    assert run(folder, out, "--overwrite") == 0
    assert [line["file"] for line in log_lines(out)] == ["b/a.jpg", "c.png"]


def test_a_log_that_cannot_be_written_ends_the_run(folder, tmp_path, monkeypatch, capsys):
    full = raising(OSError(28, "No space left on device"))
    monkeypatch.setattr(command, "append_line", full)
    assert run(folder, tmp_path / "lq") == 1
    (said,) = complaints(capsys)
    assert f"{command.LOG_NAME}: [Errno 28] No space left on device" in said
    assert len(log_lines(tmp_path / "lq")) == 1


def profile(source, output, *flags: str) -> int:
    sides = () if "--crop" in flags else ("--crop", "64")
    return run(source, output, "--profile", "persona-val", *sides, *flags)


def test_profile_makes_pairs_at_both_sizes(folder, tmp_path):
    out = tmp_path / "val"
    assert profile(folder, out) == 0
    sizes = {"hq": (64, 64), "lq": (64, 64), "lq_small": (16, 16)}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert files == {f"{kind}/{name}.png" for kind in sizes for name in ("b/a", "c")}
    for kind, size in sizes.items():
        assert read_image(out / kind / "c.png").size == size
    hq = read_image(out / "hq" / "c.png").rgb
    np.testing.assert_array_equal(hq, cv2.resize(photo(80), (64, 64), interpolation=3))
    content, rng = command.content_rng(5, hq)
    lq, record, _ = degrade(hq, rng, CONFIG)
    entry = log_lines(out)[1]
    assert (entry["file"], entry["seed"], entry["content"]) == ("c.png", 5, content)
    assert entry["record"] == record
    np.testing.assert_array_equal(read_image(out / "lq" / "c.png").rgb, lq)
    small = degrade(hq, command.content_rng(5, hq)[1], CONFIG, full=False)[0]
    np.testing.assert_array_equal(read_image(out / "lq_small" / "c.png").rgb, small)


def test_profile_depends_on_content_alone(folder, tmp_path):
    """Not on names, neighbours or order; but on the seed."""
    assert profile(folder, tmp_path / "all") == 0
    (folder / "b" / "a.jpg").unlink()
    (folder / "c.png").rename(folder / "renamed.png")
    assert profile(folder, tmp_path / "one") == 0
    for kind in command.PAIR:
        one, two = tmp_path / "one" / kind / "renamed.png", tmp_path / "all" / kind / "c.png"
        assert one.read_bytes() == two.read_bytes()
    hq = read_image(tmp_path / "one" / "hq" / "renamed.png").rgb
    assert command.content_rng(5, hq)[0] != command.content_rng(6, hq)[0]
    assert command.content_rng(5, hq)[0] != command.content_rng(5, hq.reshape(32, 128, 3))[0]


# The command as a process in which none of these can be imported.
ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys(("jax", "flax", "torch"))
runpy.run_module("osdhuman_jax.commands.degrade", run_name="__main__")
"""


def test_profile_gives_the_same_bytes_on_another_processor_and_without_jax(folder, tmp_path):
    """Without AVX-512 and with one thread; the log has the digest of every file."""
    assert profile(folder, tmp_path / "here") == 0
    flags = "--profile persona-val --crop 64 --seed 5 --input".split()
    command_line = [sys.executable, "-c", ALONE, *flags, str(folder)]
    off = {"OPENCV_CPU_DISABLE": "AVX512-SKX", "OPENCV_FOR_THREADS_NUM": "1"}
    subprocess.run(
        [*command_line, "--output", str(tmp_path / "there")],
        env={**os.environ, **off, "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX"},
        check=True,
    )
    assert log_lines(tmp_path / "here") == log_lines(tmp_path / "there")
    entry = log_lines(tmp_path / "there")[1]
    for kind in command.PAIR:
        data = (tmp_path / "there" / kind / "c.png").read_bytes()
        assert entry["sha256"][kind] == hashlib.sha256(data).hexdigest()


def test_profile_takes_its_own_sizes(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "x", "--profile", "persona-val", "--full") == 2
    assert run(folder, tmp_path / "x", "--profile", "other") == 2
    assert profile(folder, folder) == 2
    assert not (tmp_path / "x").exists()
    capsys.readouterr()
    assert run(folder / "c.png", tmp_path / "y", "--profile", "persona-val") == 0
    assert read_image(tmp_path / "y" / "lq_small" / "c.png").size == (128, 128)


def test_hidden_colours_are_no_part_of_what_is_degraded(tmp_path):
    source = tmp_path / "hq"
    source.mkdir()
    alpha = np.zeros((64, 64), np.uint8)
    alpha[16:48, 16:48] = 255
    write_png(
        source / "a.png",
        np.where(alpha[..., None] > 0, np.uint8(200), np.uint8(0)).repeat(3, -1),
        alpha,
    )
    assert run(source, tmp_path / "lq", "--profile", "persona-val", "--crop", "64") == 0
    assert read_image(tmp_path / "lq" / "hq" / "a.png").rgb.min() == 200
