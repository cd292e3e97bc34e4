"""Pictures through a network that enlarges by itself: sizes, tiles, folders, the Python class."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import make_cleaners as files
import numpy as np
import pytest
import torch
from convert import call, filled
from skimage.data import astronaut

from osdhuman_jax.commands import restore
from osdhuman_jax.images.codec import Picture, read_image, to_float, to_uint8
from osdhuman_jax.images.sizes import scaled_size
from osdhuman_jax.inference.finishing import RestoreError
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.networks.configs import SwinIRConfig
from osdhuman_jax.networks.swinir_restorer import SwinIR
from osdhuman_jax.weights import Cleaner, load_cleaner
from osdhuman_jax.weights.importer import import_cleaner

PHOTO = cv2.resize(astronaut(), (45, 61), interpolation=cv2.INTER_AREA)  # 61 high, 45 wide


def made(folder: Path, scale: int) -> Path:
    torch.save({"params_ema": files.network(scale).state_dict()}, folder / "net.pth")
    import_cleaner(folder / "net.pth", folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("x4"), 4)


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return Pipeline.from_folder(model, bucket=256)


def test_at_its_own_factor_the_network_sees_the_picture(pipeline, model):
    pixels = PHOTO[:40, :40]
    (restored,) = pipeline.restore([Picture(pixels)], upscale=4.0)
    grown = np.pad(pixels, ((0, 24), (0, 24), (0, 0)), mode="reflect")
    want = call(load_cleaner(model).restorer, to_float(grown)[None])
    want = to_uint8(np.asarray(want))[0, :160, :160]
    assert want.std() > 5
    assert np.abs(restored.rgb.astype(int) - want).max() <= 1


@pytest.mark.parametrize("scale", [2, 1])
def test_networks_that_shuffle_their_input_serve_any_size(scale, tmp_path):
    (restored,) = Pipeline.from_folder(made(tmp_path, scale)).restore([Picture(PHOTO)])
    assert restored.size == (61, 45) and restored.rgb.std() > 5


@pytest.mark.parametrize("factor", [1.0, 1.7, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("size", [(61, 45), (1, 7), (33, 64)])
def test_every_size_and_factor(pipeline, size, factor):
    picture = Picture(np.ascontiguousarray(PHOTO[: size[0], : size[1]]) if size[1] < 46 else WIDE)
    picture.alpha, picture.icc = picture.rgb[..., 0], b"profile"
    (restored,) = pipeline.restore([picture], upscale=factor)
    assert restored.size == scaled_size(size, factor)
    assert restored.alpha.shape == restored.size and restored.icc == b"profile"


WIDE = cv2.resize(astronaut(), (64, 33), interpolation=cv2.INTER_AREA)


def test_few_programs(pipeline):
    assert pipeline.programs.count <= 4  # of all the sizes above: {64, 128} x {64, 128}


def test_sixteen_bits_batches_blend_and_colour(pipeline):
    deep = Picture(PHOTO.astype(np.uint16) * 257)
    plain, wide = pipeline.restore([Picture(PHOTO), deep])
    assert wide.rgb.dtype == np.uint16 and np.abs(wide.rgb / 257.0 - plain.rgb).max() < 2
    (source,) = pipeline.restore([Picture(PHOTO)], blend=0.0)
    np.testing.assert_array_equal(source.rgb, PHOTO)
    (fixed,) = pipeline.restore([Picture(PHOTO)], color_fix="adain")
    assert np.abs(fixed.rgb.mean((0, 1)) - PHOTO.mean((0, 1))).max() < 5


def large() -> Picture:
    """Noise: what shows a seam best."""
    return Picture(np.random.default_rng(0).integers(0, 256, (150, 260, 3), np.uint8))


@pytest.mark.parametrize("upscale", [3.0, 4.0])
def test_tiles_are_the_whole_picture(upscale, model, monkeypatch):
    """With an overlap of half of the side, for the network reaches further than a quarter."""
    monkeypatch.setattr("osdhuman_jax.inference.plans.TILES", ((128, 4),))
    whole, seen = Pipeline.from_folder(model), []
    (expected,) = whole.restore([large()], upscale)
    ((_, taken),) = whole._footprints
    tiled = Pipeline(whole.model, max_memory=taken - 1)
    (restored,) = tiled.restore([large()], upscale, progress=lambda *done: seen.append(done))
    assert whole.tiling(expected.size) is None and expected.rgb.std() > 5
    assert tiled.tiling(restored.size) == "128x128x1" and seen[-1][0] == seen[-1][1] > 2
    assert tiled.programs.count == 2  # the whole that did not fit, and the tile: nothing measured
    assert np.abs(restored.rgb.astype(int) - expected.rgb).max() <= 2


def test_tiles_of_swinir_are_the_whole_picture(monkeypatch):
    """Tiles begin where windows begin, and share what the blocks look across."""
    monkeypatch.setattr("osdhuman_jax.inference.plans.TILES", ((128, 4),))
    sizes = {"embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4}
    config = replace(SwinIRConfig.color_dn(), **sizes)
    network = filled(lambda rngs: SwinIR(config, rngs=rngs))
    model = Cleaner(network, config, "0" * 64, "swinir")
    whole = Pipeline(model)
    (expected,) = whole.restore([large()])
    ((_, taken),) = whole._footprints
    tiled = Pipeline(model, max_memory=taken - 1)
    (restored,) = tiled.restore([large()])
    assert tiled.tiling(restored.size) == "128x128x4" and expected.rgb.std() > 5
    assert network.reach == 16 and network.multiple == 4
    assert np.abs(restored.rgb.astype(int) - expected.rgb).max() <= 2


def test_memory_bounds_hold(model):
    with pytest.raises(RestoreError, match="out of memory: the smallest plan takes about"):
        Pipeline.from_folder(model, max_memory=1000).restore([Picture(PHOTO)])
    assert [str(p) for p in Pipeline.from_folder(model).plans((512, 512))] == [
        f"{what} pixels, 1 at a time"
        for what in ("whole pictures of 512 x 512", "tiles of 384 x 384", "tiles of 256 x 256")
    ]


def test_a_folder_with_provenance_and_resumption(model, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    cv2.imwrite(str(source / "a.png"), PHOTO[..., ::-1])
    cv2.imwrite(str(source / "deep.png"), PHOTO[..., ::-1].astype(np.uint16) * 257)
    flags = ["--model", str(model), "--input", str(source), "--output", str(out), "--upscale", "4"]
    assert restore.main(flags) == 0
    lines = [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]
    digest = load_cleaner(model).digest
    assert [(x["model"], x["model_digest"], x["tile"]) for x in lines] == [
        ("model", digest, None)
    ] * 2
    assert {(x["output_height"], x["output_width"]) for x in lines} == {(244, 180)}
    (restored,) = Pipeline.from_folder(model).restore([Picture(PHOTO)], upscale=4.0)
    np.testing.assert_array_equal(read_image(out / "a.png").rgb, restored.rgb)
    assert restore.main(flags) == 0
    assert "2 were there already" in capsys.readouterr().out
