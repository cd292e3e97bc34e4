"""Folder jobs: planned, recorded, resumed, refused; the faults that users and disks bring."""

import errno
import hashlib
import json
import os
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from damage import raising
from picture_files import SRGB, exif, noise, with_chunks
from PIL import Image
from refusals import one_line
from tiny import halving

from osdhuman_jax.images.codec import decode, read_image, to_float, to_uint8
from osdhuman_jax.images.png import chunk
from osdhuman_jax.inference import folder_run
from osdhuman_jax.inference.folder_plan import plan
from osdhuman_jax.inference.folder_run import Runner
from osdhuman_jax.inference.jobs import UsageError
from osdhuman_jax.inference.ledger import PROVENANCE, Ledger, held, remaining
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.settings import Settings, identity


def save(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(20, 30, seed)).save(path, **options)
    return path


def work(
    source: Path | str,
    output: Path,
    pipeline: Pipeline | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> tuple[int, dict[str, str]]:
    """One run: how many jobs it had left, and the reasons of failures by the input's name."""
    pipeline, chosen = pipeline or halving(), Settings(**settings)
    found = plan(str(source), output, chosen)
    with held(output) as ledger:
        made = identity(pipeline.model.digest, pipeline.precision, chosen)
        left = remaining(found, output, ledger, made, overwrite)
        runner = Runner(pipeline, chosen, output, ledger)
        runner.run(left)
    return len(left), {job.source.name: reason for job, reason in runner.failures}


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (output / PROVENANCE).read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """Contents by name of all that is in a folder, but for the record."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name != PROVENANCE}


def halved(rgb: np.ndarray) -> np.ndarray:
    return to_uint8(to_float(rgb) * np.float32(0.5))


def test_a_finished_run_has_nothing_left(tmp_path):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", seed=i)
    assert work(tmp_path / "in", tmp_path / "out") == (3, {})
    before = files(tmp_path / "out")
    assert work(tmp_path / "in", tmp_path / "out") == (0, {})
    assert files(tmp_path / "out") == before and len(lines(tmp_path / "out")) == 3
    (tmp_path / "out" / "1.png").unlink()
    assert work(tmp_path / "in", tmp_path / "out") == (1, {})
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    "change", ["input", "output", "model", "upscale", "blend", "color_fix", "line"]
)
def test_an_output_of_anything_else_is_refused_then_replaced(tmp_path, change):
    source, output = save(tmp_path / "in" / "a.png"), tmp_path / "out"
    work(source, output)
    pipeline, settings = halving(), {}
    if change == "input":
        save(source, seed=9)
    elif change == "output":
        (output / "a.png").write_bytes(b"edited")
    elif change == "model":
        pipeline = halving(digest="1" * 64)
    elif change == "line":
        (output / PROVENANCE).write_text("")
    else:
        settings = {change: {"upscale": 2.0, "blend": 0.5, "color_fix": "adain"}[change]}
    before = files(output)
    with pytest.raises(UsageError, match="--overwrite") as caught:
        work(source, output, pipeline, **settings)
    assert str(output / "a.png") in str(caught.value) and files(output) == before
    assert work(source, output, pipeline, overwrite=True, **settings) == (1, {})
    assert work(source, output, pipeline, **settings) == (0, {})


def test_one_run_at_a_time(tmp_path):
    with held(tmp_path / "out"):
        with pytest.raises(UsageError, match="another run"):
            work(save(tmp_path / "in" / "a.png"), tmp_path / "out")
    assert work(tmp_path / "in", tmp_path / "out") == (1, {})


def test_a_torn_line_and_a_half_file_of_a_killed_run_do_no_harm(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name)
    work(tmp_path / "in", tmp_path / "out")
    before = files(tmp_path / "out")
    record = tmp_path / "out" / PROVENANCE
    record.write_bytes(record.read_bytes()[:-20])
    (tmp_path / "out" / f".{'0' * 16}.tmp").write_bytes(b"half")
    (tmp_path / "out" / "b.png").unlink()
    assert work(tmp_path / "in", tmp_path / "out") == (1, {})
    assert files(tmp_path / "out") == before
    texts = record.read_bytes().split(b"\n")
    assert [json.loads(texts[i])["output"] for i in (0, 2)] == ["a.png", "b.png"]


@pytest.mark.parametrize(("kind", "suffix"), [("png", ".png"), ("webp", ".webp"), ("jpeg", ".jpg")])
def test_formats(tmp_path, kind, suffix):
    smooth = cv2.resize(noise(4, 4), (64, 48), interpolation=cv2.INTER_CUBIC)
    carried = {"icc_profile": SRGB, "exif": exif(6, "Maker", 64)}
    Image.fromarray(smooth).save(tmp_path / "a.png", **carried)
    assert work(tmp_path / "a.png", tmp_path / "out", format=kind) == (1, {})
    path = tmp_path / "out" / f"a{suffix}"
    turned = np.rot90(smooth, -1)
    result = read_image(path)
    limit = {"png": 0, "webp": 12, "jpeg": 8}[kind]
    assert np.abs(result.rgb.astype(int) - halved(turned)).max() <= limit
    assert result.icc == SRGB
    with Image.open(path) as written:
        kept = written.getexif()
        assert kept[0x010F] == "Maker" and 0x0112 not in kept
        assert 0xA002 not in kept.get_ifd(0x8769)
        assert written.format == kind.upper()


def test_sixteen_bits_stay_in_png_only_with_profile_and_exif(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65_536, (20, 30, 4), dtype=np.uint16)
    data = cv2.imencode(".png", deep)[1].tobytes()
    extra = [chunk(b"eXIf", exif(maker="Maker").tobytes()[6:])]
    extra += [chunk(b"iCCP", b"p\0\0" + zlib.compress(SRGB))]
    (tmp_path / "a.png").write_bytes(with_chunks(data, *extra))
    work(tmp_path / "a.png", tmp_path / "out")
    written = (tmp_path / "out" / "a.png").read_bytes()
    result, source = decode(written, deep=True), decode(data, deep=True)
    np.testing.assert_array_equal(source.rgb, deep[..., 2::-1])
    assert result.rgb.dtype == np.uint16 and result.icc == SRGB
    assert b"Maker" in (result.exif or b"")
    np.testing.assert_array_equal(result.alpha, deep[..., 3])
    expected = (source.rgb.astype(float) / 32767.5 - 1) * 0.5
    np.testing.assert_allclose(result.rgb / 32767.5 - 1, expected, atol=1.1 / 65_535)
    work(tmp_path / "a.png", tmp_path / "webp", format="webp", quality=100)
    assert decode((tmp_path / "webp" / "a.webp").read_bytes(), deep=True).rgb.dtype == np.uint8


def test_only_the_picture_that_is_not_finite_fails(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", seed=i)
    pipeline = halving(batch_size=3)
    follow = pipeline.one_step.run

    def ruined(*arguments):
        outputs = follow(*arguments)
        outputs[1] = np.full_like(outputs[1], np.nan)
        return outputs

    monkeypatch.setattr(pipeline.one_step, "run", ruined)
    count, failures = work(tmp_path / "in", tmp_path / "out", pipeline)
    assert count == 3 and failures == {"1.png": "the model's output is not finite"}
    assert list(files(tmp_path / "out")) == ["0.png", "2.png"]
    assert [line["status"] for line in lines(tmp_path / "out")].count("failed") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, UsageError])
def test_a_folder_that_got_no_picture_goes(tmp_path, error):
    with pytest.raises(error), held(tmp_path / "a" / "out") as ledger:
        ledger.add({"status": "failed"})
        raise error
    assert not list(tmp_path.iterdir())
    (tmp_path / "b").mkdir()
    with pytest.raises(error), held(tmp_path / "b"):
        raise error
    assert not list((tmp_path / "b").iterdir())
    with pytest.raises(error), held(tmp_path / "c") as ledger:
        ledger.add({"status": "ok"})
        raise error
    assert [path.name for path in (tmp_path / "c").iterdir()] == [PROVENANCE]


def test_what_a_format_cannot_hold_is_said(tmp_path):
    """Before the picture is computed."""
    clear = np.dstack([noise(), noise()[..., 0]])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.new("RGB", (9_000, 1)).save(tmp_path / "long.png")
    pipeline = halving()
    pipeline.compute = raising(AssertionError("computed"))
    _, failures = work(tmp_path / "clear.png", tmp_path / "jpeg", pipeline, format="jpeg")
    assert "no transparency" in failures["clear.png"]
    flags = {"format": "webp", "upscale": 2.0}
    _, failures = work(tmp_path / "long.png", tmp_path / "webp", pipeline, **flags)
    assert "no side longer than 16383" in failures["long.png"]
    assert not files(tmp_path / "jpeg") and not files(tmp_path / "webp")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_opaque_alpha_does_not_keep_a_picture_from_jpeg(tmp_path, kind):
    flat = np.full((16, 24, 4), np.iinfo(kind).max, kind)
    cv2.imwrite(str(tmp_path / "a.png"), flat)
    assert work(tmp_path / "a.png", tmp_path / "out", format="jpeg") == (1, {})
    assert read_image(tmp_path / "out" / "a.jpg").alpha is None


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
