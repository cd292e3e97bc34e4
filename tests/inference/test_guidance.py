"""Guidance by two prompts, from every entry point down to the network."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from convert import call
from PIL import Image

from osdhuman_jax import Restorer
from osdhuman_jax.commands.restore import main
from osdhuman_jax.images.codec import Picture
from osdhuman_jax.images.sizes import squash
from osdhuman_jax.inference import tiling
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.plans import Plan
from osdhuman_jax.weights import random_restorer, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dual"
    save_model(path, tiny.DUAL_DEEP, random_restorer(tiny.DUAL_DEEP, 3))
    return path


@pytest.fixture(scope="module")
def pipeline(folder) -> Pipeline:
    return Pipeline.from_folder(folder, bucket=16)


@pytest.fixture(scope="module")
def picture() -> Picture:
    rng = np.random.default_rng(0)
    return Picture(rng.integers(0, 255, (32, 48, 3), np.uint8))


def test_the_pipeline_gives_what_the_network_does(pipeline, picture):
    restorer = pipeline.model.restorer
    lq = jnp.asarray(picture.rgb[None], jnp.float32) / 127.5 - 1
    for scale in (None, 1.0, 7.0):
        (made,) = pipeline.restore([picture], color_fix="none", guidance=scale)
        traced = None if scale is None else jnp.float32(scale)
        want = (np.asarray(call(restorer, lq, None, traced))[0] + 1) * 127.5
        # The prompt's squashed view comes from OpenCV here and from JAX there.
        np.testing.assert_allclose(made.rgb, want, atol=0.6)


def test_another_guidance_compiles_nothing(pipeline, picture):
    pipeline.restore([picture])
    count = pipeline.programs.count
    one, other = (pipeline.restore([picture], guidance=scale)[0].rgb for scale in (1.5, 9.0))
    assert pipeline.programs.count == count
    assert (one != other).any()


def test_tiles_are_guided_as_the_whole(folder, picture, monkeypatch):
    # One tile of the picture's own size, its edges measured too, is what the whole is.
    monkeypatch.setattr(tiling, "inside", lambda x: x)
    whole, tiled = (Pipeline.from_folder(folder, bucket=16) for _ in "ab")
    size = picture.size
    tiled._plans[size] = Plan(size, 1, size)
    for scale in (1.0, 8.0):
        one, other = (p.restore([picture], guidance=scale)[0].rgb for p in (whole, tiled))
        assert np.abs(one.astype(int) - other).max() <= 1
    assert tiled.tiling(size) == "48x32x1"


@pytest.mark.parametrize("guidance", [0.5, 10.5, float("nan")])
def test_scales_that_are_not_taken(pipeline, picture, guidance):
    with pytest.raises(ValueError, match="between 1 and 10"):
        pipeline.restore([picture], guidance=guidance)


def test_a_model_of_one_prompt_has_none(picture):
    with pytest.raises(ValueError, match="two prompts"):
        tiny.halving().restore([picture], guidance=2.0)


def test_the_command_records_it_and_tells_settings_apart(folder, picture, tmp_path, capsys):
    source = tmp_path / "a.png"
    Image.fromarray(picture.rgb).save(source)

    def run(*more: str) -> int:
        flags = ["--model", str(folder), "--input", str(source), "--output", str(tmp_path / "out")]
        return main([*flags, *more])

    def lines() -> list[dict]:
        text = (tmp_path / "out" / "provenance.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    assert run() == 0
    assert lines()[-1]["guidance"] == tiny.DUAL.guidance
    assert run("--guidance", "3.5") == 0 and len(lines()) == 1  # the model's own: done already
    assert run("--guidance", "2") == 2  # nobody's picture is replaced unasked
    assert "--overwrite" in capsys.readouterr().err
    assert run("--guidance", "2", "--overwrite") == 0
    assert lines()[-1]["guidance"] == 2.0
    assert run("--guidance", "11", "--overwrite") == 2
    assert "between 1 and 10" in capsys.readouterr().err


def test_the_class_takes_it(folder, picture):
    restorer = Restorer.load(folder)
    one, other = (restorer(picture.rgb, guidance=scale) for scale in (1.0, 10.0))
    assert one.shape == picture.rgb.shape and (one != other).any()


def test_views_of_two_prompts_are_not_antialiased():
    pixels = np.random.default_rng(1).integers(0, 255, (70, 110, 3), np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    for antialias in (False, True):
        want = torch.nn.functional.interpolate(
            planes, (40, 40), mode="bilinear", align_corners=False, antialias=antialias
        )
        found = squash(pixels, 40, antialias)
        np.testing.assert_allclose(found, want[0].permute(1, 2, 0), atol=1e-5)
