"""Sizes, padding, batches and repeatability of the inference path, with a tiny random model."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from damage import raising
from PIL import Image
from skimage.data import astronaut
from tiny import Halve, halving

from osdhuman_jax.config import UseConfig
from osdhuman_jax.images.codec import Picture, to_float, to_uint8
from osdhuman_jax.images.sizes import pad_reflect, scaled_size, squash
from osdhuman_jax.inference.finishing import RestoreError
from osdhuman_jax.inference.one_step import VIEW
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.plans import WHOLE
from osdhuman_jax.methods.prompts import FixedPrompter
from osdhuman_jax.weights import Model

NANO = Path(__file__).parents[2] / "models" / "nano"


class Mean(Halve):
    """Paints each picture in its mean colour."""

    def __call__(self, lq, prompt=None):
        return jnp.broadcast_to(lq.mean((1, 2), keepdims=True), lq.shape)


def photo(height: int, width: int, top: int = 20) -> Picture:
    return Picture(np.ascontiguousarray(astronaut()[top : top + height, 150 : 150 + width]))


@pytest.mark.parametrize("have,want", [(1, 5), (2, 7), (5, 5), (5, 64), (40, 64)])
def test_padding_mirrors(have, want):
    pixels = photo(have, have).rgb
    expected = np.pad(pixels, ((0, want - have), (0, want - have), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(pad_reflect(pixels, (want, want)), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (64, 64), (65, 63), (30, 200)])
def test_output_is_the_models_at_the_inputs_size(size):
    picture = photo(*size)
    (restored,) = halving().restore([picture])
    np.testing.assert_array_equal(restored.rgb, to_uint8(to_float(picture.rgb) * 0.5))


def test_order_is_kept_across_sizes_and_partial_batches():
    sizes = [(30, 40), (70, 40), (31, 41), (70, 41), (64, 64)]
    pictures = [photo(*size) for size in sizes]
    restored = halving(batch_size=2).restore(pictures)
    assert [picture.size for picture in restored] == sizes
    for picture, result in zip(pictures, restored, strict=True):
        np.testing.assert_array_equal(result.rgb, to_uint8(to_float(picture.rgb) * 0.5))


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.7])
def test_upscale(factor):
    picture = photo(21, 33)
    picture.alpha, picture.icc = picture.rgb[..., 0], b"profile"
    (restored,) = halving(1.0).restore([picture], upscale=factor)
    width, height = round(33 * factor), round(21 * factor)
    assert restored.size == scaled_size((21, 33), factor) == (height, width)
    bicubic = Image.fromarray(picture.rgb).resize((width, height), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(restored.rgb, np.asarray(bicubic))
    assert restored.alpha.shape == (height, width) and restored.icc == b"profile"


def test_small_pictures_are_restored_enlarged_and_reduced_again():
    pipeline = halving()
    pipeline.model.use = UseConfig(work_side=64)
    small, large = photo(16, 24), photo(64, 80)
    assert pipeline.working_size(small.size) == (64, 96)
    assert pipeline.working_size((4, 100)) == (16, 400)  # four times at most
    assert pipeline.working_size(large.size) == large.size
    assert pipeline.seen(small, small).shape == (64, 96, 3)
    assert pipeline.seen(large, large) is large.rgb
    restored = pipeline.restore([small, large])
    for source, result in zip((small, large), restored, strict=True):
        assert result.size == source.size
        gap = np.abs(result.rgb - (source.rgb / 2 + 127.5 / 2))
        assert gap.max() <= (0.51 if source is large else 12)  # bicubic there, the mean back


def test_what_is_not_asked_for_is_the_models():
    pipeline, picture = halving(), photo(30, 20)
    pipeline.model.use = UseConfig(color_fix="wavelet", blend=0.5)
    assert pipeline.chosen(None, None) == ("wavelet", 0.5)
    assert pipeline.chosen("none", 1.0) == ("none", 1.0)
    (default,) = pipeline.restore([picture])
    (same,) = pipeline.restore([picture], color_fix="wavelet", blend=0.5)
    (other,) = pipeline.restore([picture], color_fix="none", blend=1.0)
    assert np.array_equal(default.rgb, same.rgb) and not np.array_equal(default.rgb, other.rgb)


def test_an_output_that_is_not_finite_is_an_error():
    with pytest.raises(RestoreError, match="not finite"):
        halving(float("nan")).restore([photo(4, 4)])


def test_few_programs_serve_many_sizes():
    rng = np.random.default_rng(0)
    pictures = [photo(*rng.integers(1, 200, 2)) for _ in range(40)]
    pipeline = halving(batch_size=3)
    pipeline.restore(pictures)
    assert pipeline.programs.count == 5  # {128, 256} x {128, 256}, and the prompter's


@pytest.mark.parametrize(("longest", "most"), [(1024, 36), (6000, 64)])
def test_a_thousand_mixed_sizes_compile_at_most_k_programs(longest, most):
    """A whole size is one program; every tile size is two, for all pictures of that shape."""
    rng = np.random.default_rng(0)
    sizes = [tuple(int(n) for n in pair) for pair in rng.integers(32, longest, (1000, 2))]
    pipeline = halving()
    plans = [pipeline.plans(pipeline.padded_size(size))[0] for size in sizes]
    whole = {plan.padded for plan in plans if not plan.tile}
    tiles = {plan.tile for plan in plans if plan.tile}
    assert 4 < len(whole) + 2 * len(tiles) <= most
    for size, plan in zip(sizes, plans, strict=True):
        assert all(a <= b for a, b in zip(size, plan.padded, strict=True))
        if plan.tile is None:
            assert math.prod(plan.padded) <= WHOLE


def test_the_real_restorer_repeats_bit_for_bit_in_any_company():
    pipeline = Pipeline(tiny.model(), batch_size=2, bucket=64)
    pictures = [photo(40, 50), photo(64, 64, top=60), photo(20, 60, top=90)]
    together = pipeline.restore(pictures)
    alone = [pipeline.restore([picture])[0] for picture in pictures]
    again = pipeline.restore(pictures[::-1])[::-1]
    for results in zip(together, alone, again, pictures, strict=True):
        assert results[0].size == results[3].size
        for other in results[1:3]:
            np.testing.assert_array_equal(results[0].rgb, other.rgb)


class Told(Halve):
    """Paints each picture by the first numbers of its prompt, which is a true HFIE's."""

    def __init__(self) -> None:
        super().__init__()
        self.prompter = tiny.model().restorer.prompter

    def __call__(self, lq, prompt=None):
        return jnp.broadcast_to(self.gain[...] * prompt[:, :1, None, :3], lq.shape)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_each_prompt_is_of_the_picture_alone(tiled, deep):
    """Several sizes of one padded size, whole or in tiles, by two or three programs."""
    pictures = [photo(*size) for size in ((130, 256), (256, 140), (256, 256), (200, 200))]
    pictures = [sixteen(picture) for picture in pictures] if deep else pictures
    pipeline = Pipeline(Model(Told(), tiny.MODEL, "0" * 64, "told"), batch_size=2)
    plans = pipeline.plans((256, 256))
    plan = replace(plans[-1], tile=(128, 128), batch=2) if tiled else plans[0]
    pipeline._plans[(256, 256)] = plan
    pixels = [picture.rgb for picture in pictures]
    prompter = jax.jit(tiny.model().restorer.prompter)
    for at in (0, 2):
        for got, seen in zip(pipeline.compute(pixels[at : at + 2]), pixels[at:], strict=False):
            want = 0.5 * prompter(to_float(seen)[None])[0, 0, :3]
            np.testing.assert_allclose(got[0, 0], want, atol=1e-5)
            padded = 0.5 * prompter(to_float(pad_reflect(seen, (256, 256)))[None])[0, 0, :3]
            assert (np.abs(padded - want).max() > 1e-3) == (seen.shape[:2] != (256, 256))
    assert pipeline.programs.count == (3 if tiled else 2)


def test_a_fixed_prompter_looks_at_nothing():
    model = Told()
    model.prompter = FixedPrompter(jnp.asarray([[0.5, -0.5, 1.0]]))
    pipeline = Pipeline(Model(model, tiny.MODEL, "0" * 64, "told"))
    (got,) = pipeline.compute([photo(30, 40).rgb])
    np.testing.assert_allclose(got, np.broadcast_to(np.float32([0.25, -0.25, 0.5]), (30, 40, 3)))


def test_the_restorer_sees_the_padded_picture():
    picture = photo(40, 50)
    mean = to_float(pad_reflect(picture.rgb, (128, 128))).mean((0, 1))
    pipeline = Pipeline(Model(Mean(), tiny.MODEL, "0" * 64, "mean"))
    (restored,) = pipeline.restore([picture])
    assert restored.rgb[0, 0] == pytest.approx((mean + 1) * 127.5, abs=1)


class Tint(Halve):
    """Adds its prompt's only number, of each picture, to it."""

    def __call__(self, lq, prompt):
        return lq * self.gain[...] + prompt[:, :, None]


class Tints:
    """A prompter from outside that keeps what it saw."""

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, images):
        self.seen.append(images)
        return jnp.asarray([0.25, -0.25])[: len(images), None, None]


@pytest.mark.parametrize("side", [None, 48])
def test_prompter_sees_the_pictures_alone_and_its_tokens_reach_the_model(side):
    prompter = Tints()
    if side:
        prompter.input_size = side
    model = Model(Tint(), tiny.MODEL, "0" * 64, "tint")
    pictures = [photo(30, 40), photo(50, 20)]
    results = Pipeline(model, batch_size=2, prompter=prompter).restore(pictures)
    want = [squash(picture.rgb, side or VIEW) for picture in pictures]
    np.testing.assert_array_equal(prompter.seen[-1], want)
    for picture, result, tint in zip(pictures, results, (0.25, -0.25), strict=True):
        want = to_uint8(0.5 * to_float(picture.rgb) + np.float32(tint))
        np.testing.assert_allclose(result.rgb.astype(int), want.astype(int), atol=1)


def sixteen(picture: Picture) -> Picture:
    return Picture(picture.rgb.astype(np.uint16) * 257 + np.uint16(3), exif=b"Exif", icc=b"icc")


def test_sixteen_bits_stay_sixteen():
    picture = sixteen(photo(30, 40))
    (same,), (large,) = (halving(1.0).restore([picture], upscale=scale) for scale in (1.0, 1.5))
    np.testing.assert_array_equal(same.rgb, picture.rgb)
    assert large.rgb.dtype == np.uint16 and (large.exif, large.icc) == (b"Exif", b"icc")
    (eight,) = halving(1.0).restore([photo(30, 40)], upscale=1.5)
    assert np.abs(large.rgb / 257.0 - eight.rgb).max() < 1.5


@pytest.mark.parametrize("blend", [0.0, 0.25, 1.0])
def test_blend_lies_between_input_and_output(blend):
    picture = photo(20, 30)
    (restored,) = halving(0.5).restore([picture], blend=blend)
    expected = to_uint8(to_float(picture.rgb) * np.float32(1 - 0.5 * blend))
    assert np.abs(restored.rgb.astype(int) - expected).max() <= 1


def large(height: int, width: int) -> Picture:
    """Smooth waves, many of a kind."""
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    waves = np.sin(rows / 31.0) + np.cos(columns / 23.0 + np.arange(3))
    return Picture((127.5 + 60 * waves).astype(np.uint8))


def test_a_large_picture_is_restored_in_tiles_that_leave_no_seam():
    picture, seen = large(1100, 1300), []
    pipeline = halving()
    (restored,) = pipeline.restore([picture], progress=lambda *done: seen.append(done))
    assert pipeline.programs.count == 3
    expected = to_uint8(to_float(picture.rgb) * 0.5)
    assert np.abs(restored.rgb.astype(int) - expected).max() <= 1
    assert seen[-1][0] == seen[-1][1] == 12 and len(seen) == 3


def test_tiles_are_the_whole_picture_up_to_their_statistics():
    """The bundled model, memory for tiles alone, on a photograph with noise."""
    noise = np.random.default_rng(0).normal(0, 10, (384, 500, 3))
    clean = astronaut()[:384, :500]
    picture = Picture(np.clip(clean + noise, 0, 255).astype(np.uint8))
    whole = Pipeline.from_folder(NANO)
    # At the picture's size, with the share of the input that the model is used with.
    whole.model.use = replace(whole.model.use, work_side=0)
    tiled = Pipeline(whole.model, max_memory=bytes_of(whole, picture) - 1)
    (expected,), (restored,) = whole.restore([picture]), tiled.restore([picture])
    (plan,) = tiled._plans.values()
    assert plan.tile is not None and expected.rgb.std() > 5
    error = np.square(expected.rgb.astype(float) - restored.rgb).mean()
    assert 10 * np.log10(255**2 / error) >= 40


def bytes_of(pipeline: Pipeline, picture: Picture) -> int:
    """What the first plan of a picture takes."""
    return pipeline._footprint(pipeline.plans(pipeline.padded_size(picture.size))[0])


def test_memory_chooses_the_batch_then_the_tiles_then_gives_up():
    picture = large(400, 400)
    four = halving(batch_size=4)
    padded = four.padded_size(picture.size)
    assert [str(plan) for plan in four.plans(padded)] == [
        *(f"whole pictures of 512 x 512 pixels, {n} at a time" for n in (4, 2, 1)),
        *(f"tiles of 256 x 256 pixels, {n} at a time" for n in (4, 1)),
    ]
    for limit, index in [(bytes_of(four, picture), 0), (bytes_of(four, picture) - 1, 1)]:
        small = halving(batch_size=4, max_memory=limit)
        small.restore([picture])
        assert small._plans[padded] == small.plans(padded)[index]
    with pytest.raises(RestoreError, match="out of memory: the smallest plan takes about"):
        halving(max_memory=1000).restore([picture])
    assert halving().restore([picture])[0].size == (400, 400)


def exhausted(pipeline: Pipeline, monkeypatch, times: int) -> None:
    """Lets the next whole pictures fail as a device without memory does."""
    follow, left = pipeline.one_step.run, [times]

    def fail(plan, batch, scale, progress):
        if left[0]:
            left[0] -= 1
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")
        return follow(plan, batch, scale, progress)

    monkeypatch.setattr(pipeline.one_step, "run", fail)


def test_T14_out_of_memory_falls_back_once_and_says_so(monkeypatch, caplog):
    pipeline, picture = halving(), large(400, 500)
    exhausted(pipeline, monkeypatch, times=1)
    with caplog.at_level(logging.WARNING):
        (restored,) = pipeline.restore([picture])
    assert caplog.messages == [
        "out of memory: going on with tiles of 256 x 256 pixels, 4 at a time"
    ]
    assert np.abs(restored.rgb.astype(int) - to_uint8(to_float(picture.rgb) * 0.5)).max() <= 1
    pipeline.restore([picture])  # the smaller plan stays
    assert len(caplog.messages) == 1


def test_T14_a_second_want_of_memory_is_an_error_and_the_next_picture_is_restored(monkeypatch):
    pipeline = halving()
    exhausted(pipeline, monkeypatch, times=2)
    with pytest.raises(RestoreError, match="^out of memory: try a smaller"):
        pipeline.restore([large(400, 500)])
    assert pipeline.restore([photo(30, 30)])[0].size == (30, 30)


def test_T14_without_a_smaller_plan_the_error_says_so(monkeypatch):
    pipeline = halving()
    exhausted(pipeline, monkeypatch, times=1)
    with pytest.raises(RestoreError, match="no plan is smaller than whole pictures of 128 x 128"):
        pipeline.restore([photo(40, 50)])


def test_a_host_without_memory_is_a_restore_error(monkeypatch):
    monkeypatch.setattr("osdhuman_jax.inference.pipeline.finish", raising(MemoryError()))
    with pytest.raises(RestoreError, match="^out of memory"):
        halving().restore([photo(40, 50)])
