"""Folder jobs: planned, recorded, resumed, and what each format keeps of a picture."""

import json
import zlib

import cv2
import numpy as np
import pytest
from damage import raising
from folder_files import files, halved, lines, save, work
from picture_files import SRGB, exif, noise, with_chunks
from PIL import Image
from tiny import halving

from osdhuman_jax.images.codec import decode, read_image
from osdhuman_jax.images.png import chunk
from osdhuman_jax.inference.jobs import UsageError
from osdhuman_jax.inference.ledger import PROVENANCE, held


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
