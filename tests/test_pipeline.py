"""Sizes, padding, batches and repeatability of the inference path, with a tiny random model."""

from dataclasses import asdict
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from skimage.data import astronaut

from osdhuman_jax import pipeline as module
from osdhuman_jax.config import HFIEConfig, ModelConfig, SwinConfig, UNetConfig, VAEConfig
from osdhuman_jax.images import Picture, to_float, to_uint8
from osdhuman_jax.pipeline import Pipeline, RestoreError, enlarge, pad_reflect, scaled_size
from osdhuman_jax.restorer import Restorer, build_restorer
from osdhuman_jax.weights import Model

TINY = ModelConfig(
    vae=VAEConfig(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2),
    unet=UNetConfig(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        num_attention_heads=(1, 1),
        cross_attention_dim=8,
        norm_num_groups=2,
    ),
    swin=SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 1),
        window_size=4,
        mlp_ratio=1.0,
        image_proj_dim=8,
    ),
    hfie=HFIEConfig(num_queries=3, num_heads=1),
)


class Halve(Restorer):
    """Stands for a restorer whose output is known: half of its input's contrast."""

    multiple = 8

    def __init__(self, gain: float = 0.5) -> None:
        self.gain = nnx.Param(np.float32(gain))

    def __call__(self, lq):
        assert lq.shape[1] % 64 == lq.shape[2] % 64 == 0
        return lq * self.gain[...]


class Mean(Halve):
    """Paints each picture in its mean colour."""

    def __call__(self, lq):
        return jnp.broadcast_to(lq.mean((1, 2), keepdims=True), lq.shape)


@cache
def tiny_model() -> Model:
    """Random weights, without compiling their initializers."""
    abstract = nnx.eval_shape(lambda: build_restorer(**asdict(TINY), rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), state)
    return Model(nnx.merge(graphdef, draw), TINY, "0" * 64, "tiny")


def halving(gain: float = 0.5, **options) -> Pipeline:
    return Pipeline(Model(Halve(gain), TINY, "0" * 64, "halve"), **options)


def photo(height: int, width: int, top: int = 20) -> Picture:
    return Picture(np.ascontiguousarray(astronaut()[top : top + height, 150 : 150 + width]))


@pytest.mark.parametrize("have,want", [(1, 5), (2, 7), (5, 5), (5, 64), (40, 64)])
def test_padding_mirrors(have: int, want: int) -> None:
    pixels = photo(have, have).rgb
    expected = np.pad(pixels, ((0, want - have), (0, want - have), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(pad_reflect(pixels, (want, want)), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (64, 64), (65, 63), (30, 200)])
def test_output_is_the_models_at_the_inputs_size(size: tuple[int, int]) -> None:
    picture = photo(*size)
    (restored,) = halving().restore([picture])
    np.testing.assert_array_equal(restored.rgb, to_uint8(to_float(picture.rgb) * 0.5))


def test_order_is_kept_across_sizes_and_partial_batches() -> None:
    sizes = [(30, 40), (70, 40), (31, 41), (70, 41), (64, 64)]
    pictures = [photo(*size) for size in sizes]
    restored = halving(batch_size=2).restore(pictures)
    assert [picture.size for picture in restored] == sizes
    for picture, result in zip(pictures, restored, strict=True):
        np.testing.assert_array_equal(result.rgb, to_uint8(to_float(picture.rgb) * 0.5))


def test_nothing_gives_nothing() -> None:
    assert halving().restore([]) == []


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.7])
def test_upscale(factor: float) -> None:
    picture = photo(21, 33)
    picture.alpha, picture.icc = picture.rgb[..., 0], b"profile"
    (restored,) = halving(1.0).restore([picture], upscale=factor)
    width, height = round(33 * factor), round(21 * factor)
    assert restored.size == scaled_size((21, 33), factor) == (height, width)
    bicubic = Image.fromarray(picture.rgb).resize((width, height), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(restored.rgb, np.asarray(bicubic))
    assert restored.alpha.shape == (height, width) and restored.icc == b"profile"


@pytest.mark.parametrize("factor", [0.5, float("nan"), float("inf")])
def test_bad_factors_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="upscale"):
        enlarge(photo(4, 4), factor)


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_colour_fix_brings_the_input_back(method: str) -> None:
    """A constant gain of contrast is undone by AdaIN exactly, by wavelet in the low band."""
    picture = photo(60, 60)
    (plain,) = halving().restore([picture])
    (fixed,) = halving().restore([picture], color_fix=method)

    def cast(result: Picture) -> np.ndarray:
        return np.abs(result.rgb.mean((0, 1)) - picture.rgb.mean((0, 1)))

    assert (cast(fixed) < 2).all() and (cast(plain) > 5).any()
    if method == "adain":
        assert np.abs(fixed.rgb.astype(int) - picture.rgb).max() <= 1


def test_unknown_values_are_refused() -> None:
    with pytest.raises(ValueError, match="color_fix"):
        halving().restore([photo(4, 4)], color_fix="magic")
    with pytest.raises(ValueError, match="batch_size"):
        halving(batch_size=0)


def test_an_output_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RestoreError, match="not finite"):
        halving(float("nan")).restore([photo(4, 4)])


def test_bucket_bounds_the_number_of_programs() -> None:
    rng = np.random.default_rng(0)
    pictures = [photo(*rng.integers(1, 200, 2)) for _ in range(40)]
    before = module._forward._cache_size()
    halving(bucket=128, batch_size=3).restore(pictures)
    assert module._forward._cache_size() - before <= 4


def test_two_pipelines_share_programs_and_not_weights() -> None:
    first, second = halving(0.5), halving(0.25)
    before = first.restore([photo(9, 9)])[0].rgb
    size = module._forward._cache_size()
    assert (second.restore([photo(9, 9)])[0].rgb != before).any()
    assert module._forward._cache_size() == size


def test_the_real_restorer_repeats_bit_for_bit_in_any_company() -> None:
    pipeline = Pipeline(tiny_model(), batch_size=2)
    pictures = [photo(40, 50), photo(64, 64, top=60), photo(20, 60, top=90)]
    together = pipeline.restore(pictures)
    alone = [pipeline.restore([picture])[0] for picture in pictures]
    again = pipeline.restore(pictures[::-1])[::-1]
    for results in zip(together, alone, again, pictures, strict=True):
        assert results[0].size == results[3].size
        for other in results[1:3]:
            np.testing.assert_array_equal(results[0].rgb, other.rgb)


def test_the_restorer_sees_the_padded_picture() -> None:
    picture = photo(40, 50)
    mean = to_float(pad_reflect(picture.rgb, (64, 64))).mean((0, 1))
    pipeline = Pipeline(Model(Mean(), TINY, "0" * 64, "mean"))
    (restored,) = pipeline.restore([picture])
    assert restored.rgb[0, 0] == pytest.approx((mean + 1) * 127.5, abs=1)


class Tint(Halve):
    """Adds its prompt's only number, of each picture, to it."""

    def __call__(self, lq, prompt):
        return lq * self.gain[...] + prompt[:, :, None]


def test_prompter_sees_the_padded_batch_and_its_tokens_reach_the_model() -> None:
    seen = []

    def prompter(images):
        seen.append(images)
        return jnp.asarray([0.25, -0.25])[:, None, None]

    model = Model(Tint(), TINY, "0" * 64, "tint")
    pictures = [photo(30, 40), photo(50, 20)]
    results = Pipeline(model, batch_size=2, prompter=prompter).restore(pictures)
    padded = np.stack([pad_reflect(picture.rgb, (64, 64)) for picture in pictures])
    np.testing.assert_array_equal(seen, [to_float(padded)])
    for picture, result, tint in zip(pictures, results, (0.25, -0.25), strict=True):
        want = to_uint8(0.5 * to_float(picture.rgb) + np.float32(tint))
        np.testing.assert_allclose(result.rgb.astype(int), want.astype(int), atol=1)
