"""Folder jobs: the faults that users, disks and memory bring."""

import errno
import hashlib
import os
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from damage import raising
from folder_files import files, lines, save, work
from picture_files import noise
from PIL import Image
from refusals import one_line
from tiny import halving

from osdhuman_jax.images.codec import read_image
from osdhuman_jax.inference import folder_run
from osdhuman_jax.inference.folder_run import Runner
from osdhuman_jax.inference.jobs import UsageError
from osdhuman_jax.inference.ledger import PROVENANCE, Ledger


def test_T12_odd_names_and_links_stay_inside_the_output_folder(tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    odd = ["a.b.png", "a.c.png", "ünïcödé 人.png", "x" * 251 + ".png", "-rf.png", "sp ace/q.png"]
    for name in odd:
        save(folder / name)
    (folder / "link.png").symlink_to(folder / "a.b.png")
    (folder / "sub").mkdir()
    assert work(f"{folder}/sub/../", output) == (7, {})
    assert set(files(output)) == {*odd, "link.png"}
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]

    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out2").mkdir()
    (tmp_path / "out2" / "sp ace").symlink_to(outside)
    with pytest.raises(UsageError, match="links lead out") as caught:
        work(folder, tmp_path / "out2")
    assert "sp ace" in str(caught.value) and not list(outside.iterdir())
    (tmp_path / "out3").mkdir()
    (tmp_path / "out3" / PROVENANCE).symlink_to(outside / "log")
    with pytest.raises(OSError):
        work(folder, tmp_path / "out3")
    (tmp_path / "out4").mkdir()
    (tmp_path / "out4" / "a.b.png").symlink_to(outside / "picture.png")
    with pytest.raises(UsageError, match="--overwrite"):
        work(folder / "a.b.png", tmp_path / "out4")
    work(folder / "a.b.png", tmp_path / "out4", overwrite=True)
    assert not (tmp_path / "out4" / "a.b.png").is_symlink() and not list(outside.iterdir())


@pytest.mark.parametrize("source", ["in", "in/*.png"])
def test_T12_a_link_to_itself_fails_alone(tmp_path, source):
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "gone.png").symlink_to("none.png")
    (tmp_path / "in" / "me.png").symlink_to("me.png")
    reasons = {"gone.png": os.strerror(errno.ENOENT), "me.png": os.strerror(errno.ELOOP)}
    assert work(tmp_path / source, tmp_path / "out") == (3, reasons)
    assert set(files(tmp_path / "out")) == {"a.png"}


def test_T12_names_that_would_collide_are_refused_before_any_work(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg"):
        save(tmp_path / "in" / name)
    with pytest.raises(UsageError, match="one output") as caught:
        work(tmp_path / "in", tmp_path / "out")
    assert "b.jpg" not in str(caught.value) and not (tmp_path / "out").exists()


def test_outputs_among_the_inputs_are_refused_where_they_would_become_inputs(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path / name)
    for source in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**/*.[jp][pn]g", f"{tmp_path}/."):
        with one_line(UsageError, "is the folder of the inputs"):
            work(source, tmp_path)
        assert len(files(tmp_path)) == 2
    for source, count in [(tmp_path / "a.jpg", 1), (f"{tmp_path}/*.jpg", 1)]:  # go on, as it were
        assert work(source, tmp_path) == (count, {})
        assert work(source, tmp_path) == (0, {})
    before = files(tmp_path)
    with pytest.raises(UsageError, match="outputs would replace inputs"):
        work(tmp_path / "a.png", tmp_path, overwrite=True)
    assert files(tmp_path) == before


def test_an_output_that_would_be_a_folder_too_is_refused(tmp_path):
    for name in ("a.jpg", "a.png/b.jpg", "c.jpg"):
        save(tmp_path / "in" / name)
    with pytest.raises(UsageError, match="also be folders of others:\n  a.png$"):
        work(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_T13_a_full_disk_leaves_no_half_file_and_a_resume_does_the_rest(tmp_path, monkeypatch):
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", seed=i)
    work(tmp_path / "in", tmp_path / "all")
    real = os.fsync
    seen: list[int] = []

    def full(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(".tmp"):
            seen.append(descriptor)
            if len(seen) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    _, failures = work(tmp_path / "in", tmp_path / "out")
    monkeypatch.undo()
    assert set(failures) == {"2.png", "3.png"}
    assert all("No space left on device" in reason for reason in failures.values())
    expected = files(tmp_path / "all")
    assert files(tmp_path / "out") == {name: expected[name] for name in ("0.png", "1.png")}
    assert work(tmp_path / "in", tmp_path / "out") == (2, {})
    assert files(tmp_path / "out") == expected


def test_T13_a_record_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    """Without its line a picture must not appear: the next run would not know it."""
    source = save(tmp_path / "in" / "a.png")
    real = Ledger.add

    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Ledger, "add", raising(full))
    with pytest.raises(OSError, match="No space"):
        work(source, tmp_path / "out")
    assert not files(tmp_path / "out")
    monkeypatch.setattr(Ledger, "add", real)
    assert work(source, tmp_path / "out") == (1, {})


def test_T13_killed_between_line_and_file_is_done_again(tmp_path, monkeypatch):
    source = save(tmp_path / "in" / "a.png")

    class Killed(BaseException):
        """Stands for the end of the process."""

    @contextmanager
    def killed(path, data):
        yield
        raise Killed

    monkeypatch.setattr(folder_run, "staged", killed)
    with pytest.raises(Killed):
        work(source, tmp_path / "out")
    monkeypatch.undo()
    assert lines(tmp_path / "out")[0]["status"] == "ok" and not files(tmp_path / "out")
    assert work(source, tmp_path / "out") == (1, {})
    (line,) = {text["output_sha256"] for text in lines(tmp_path / "out")}
    assert hashlib.sha256(files(tmp_path / "out")["a.png"]).hexdigest() == line


def test_T14_a_tiny_memory_limit_fails_pictures_by_name_and_goes_on(tmp_path):
    save(tmp_path / "in" / "small.png")
    Image.fromarray(noise(300, 300)).save(tmp_path / "in" / "large.png")
    small = halving()
    small.restore([read_image(tmp_path / "in" / "small.png")])
    limit = small.programs.memory("whole", (1, 128, 128, 3))
    _, failures = work(tmp_path / "in", tmp_path / "out", halving(max_memory=limit))
    assert list(failures) == ["large.png"] and "out of memory" in failures["large.png"]
    assert list(files(tmp_path / "out")) == ["small.png"]


def test_the_record_tells_whole_pictures_from_tiles(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    for name, size in [("b.png", (300, 300)), ("c.png", (1200, 1100))]:
        Image.fromarray(noise(*size)).save(tmp_path / name)
    pipeline = halving()
    follow = pipeline.one_step.run

    def tight(plan, *rest):
        if plan.tile is None and plan.pixels > 128**2:
            raise MemoryError
        return follow(plan, *rest)

    monkeypatch.setattr(pipeline.one_step, "run", tight)
    assert work(tmp_path, tmp_path / "out", pipeline) == (3, {})
    found = {line["output"]: line["tile"] for line in lines(tmp_path / "out")}
    assert found == {"a.png": None, "b.png": "256x256x1", "c.png": "512x512x4"}


@pytest.mark.parametrize(("alone", "most"), [(0, {1}), (10**9, {2, 3})])
def test_large_pictures_are_in_memory_one_at_a_time(tmp_path, monkeypatch, alone, most):
    for i in range(5):
        save(tmp_path / "in" / f"{i}.png", seed=i)
    monkeypatch.setattr(folder_run, "ALONE", alone)
    held_now: set[Path] = set()
    seen: list[int] = []
    load, write = Runner._load, Runner._write_all

    def loading(self, batch):
        held_now.add(batch[0].source)
        seen.append(len(held_now))
        return load(self, batch)

    def writing(self, loaded, *rest):
        time.sleep(0.05)  # a slow disk
        count = write(self, loaded, *rest)
        held_now.discard(loaded[0].job.source)
        return count

    monkeypatch.setattr(Runner, "_load", loading)
    monkeypatch.setattr(Runner, "_write_all", writing)
    assert work(tmp_path / "in", tmp_path / "out") == (5, {})
    assert len(files(tmp_path / "out")) == 5 and max(seen) in most


def test_names_that_are_no_utf8_are_restored_recorded_and_resumed(tmp_path):
    """Two names that would read alike are two pictures."""
    odd = {rb"Mu\xf1oz.png": r"Mu\x5cxf1oz.png", b"Mu\xf1oz.png": r"Mu\xf1oz.png"}
    for seed, name in enumerate(odd):
        save(tmp_path / "in" / os.fsdecode(name), seed)
    output = tmp_path / os.fsdecode(b"out\xff")
    assert work(tmp_path / "in", output) == (2, {})
    assert {os.fsencode(path.name) for path in output.glob("*.png")} == set(odd)
    assert [line["output"] for line in lines(output)] == sorted(odd.values())
    assert work(tmp_path / "in", output) == (0, {})
    assert work(f"{tmp_path}/in/*oz.png", output) == (0, {})


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_hidden_colours_are_not_mixed_into_the_seen(tmp_path, kind):
    clear = np.zeros((20, 20, 4), np.uint8)
    clear[5:15, 5:15] = (230, 40, 40, 255)
    Image.fromarray(clear).save(tmp_path / "a.png")
    work(tmp_path / "a.png", tmp_path / "out", blend=0.0, upscale=2.0, format=kind, quality=100)
    result = read_image(next((tmp_path / "out").glob(f"a.{kind}")))
    assert result.alpha is not None and result.alpha[20, 20] == 255
    seen = result.rgb[result.alpha > 0].astype(int)
    assert np.abs(seen - (230, 40, 40)).max() <= 1
