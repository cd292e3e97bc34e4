"""Metrics of crops: what they see, that batches change nothing, that nothing is fetched."""

import importlib.metadata
import shutil
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from curation_runs import curate
from damage import raising
from litert_files import install, write_package
from onnx_files import output, write_onnx
from skimage import data

from curate.config import ConfigError, ScoreConfig
from curate.cropping import ssd
from curate.cropping.job import decode_crop
from curate.cropping.stages import person_region
from curate.engine.ledger import ShardLedger, tree_digest
from curate.engine.parquet import CropFile
from curate.engine.worker import ItemRunner
from curate.quality import classic, learned, scores
from curate.quality.score_job import ScoreJob
from curate.selection.manifest import read_manifest

PHOTO = data.astronaut()
NIQE = {"mu_prisparam": np.linspace(0.5, 2, 36), "cov_prisparam": 0.1 * np.eye(36)}


def crops(count: int = 7) -> np.ndarray:
    rng = np.random.default_rng(0)
    photos = [np.roll(PHOTO, rng.integers(0, 512), axis=i % 2) for i in range(count)]
    return np.stack([photo if i % 3 else cv2.blur(photo, (3, 3)) for i, photo in enumerate(photos)])


def jpeg(quality: int) -> np.ndarray:
    return compress(PHOTO, quality)


def compress(photo: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def noisy(sigma: float) -> np.ndarray:
    return add_noise(PHOTO, sigma)


def add_noise(photo: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, photo.shape)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


ALL = (0, 0, 512, 512)


def metric(name: str, *photos: np.ndarray) -> list[float]:
    return [classic.score(photo, ALL)[name] for photo in photos]


def test_sharpness_and_noise():
    blurred = [cv2.GaussianBlur(PHOTO, (0, 0), sigma) for sigma in (1, 2)]
    first, second, third = metric("person_sharpness", PHOTO, *blurred)
    assert first > second > third
    clean, some, more = metric("calm_noise", PHOTO, noisy(5), noisy(15))
    assert clean < some < more
    flat = np.random.default_rng(0).normal(128, 10, (512, 512)).astype(np.uint8)
    assert classic.noise_level(flat) == pytest.approx(10, rel=0.15)


def test_blocks_are_seen_wherever_the_crop_begins():
    clean, fine, coarse = metric("jpeg_blocks", PHOTO, jpeg(90), jpeg(20))
    assert clean < fine < coarse
    shifted = metric("jpeg_blocks", *(jpeg(20)[dy:, dx:] for dy, dx in ((3, 5), (7, 1))))
    assert shifted == pytest.approx([coarse, coarse], rel=0.02)


def test_stripes_and_bricks_are_no_blocks():
    lines = np.full((512, 512, 3), 100, np.uint8)
    lines[:, 3::8] = 160  # a fence whose step is that of the grid
    assert metric("jpeg_blocks", lines) == [0.0]
    lines[5] = lines[300] = 200
    assert metric("jpeg_blocks", lines) == [0.0]


def test_clipping_and_entropy():
    half = np.zeros((512, 512, 3), np.uint8)
    half[:, 256:] = 128
    assert metric("clipped", half) == [0.5]
    assert metric("entropy", half) == pytest.approx([1.0])
    assert metric("entropy", half * 0) == [0.0]


def test_flat_crops_have_finite_scores():
    assert all(np.isfinite(list(classic.score(PHOTO * 0, ALL).values())))


def ranking(photo: np.ndarray, region=ALL) -> np.ndarray:
    """The metrics that rank, higher = better, on scales on which 1 is a visible difference."""
    values, scales = classic.score(photo, region), {"person_sharpness": 0.1, "calm_noise": 0.3}
    return np.array([s * values[n] / scales.get(n, 0.05) for n, s in classic.DIRECTIONS.items()])


@pytest.mark.parametrize("photo", [PHOTO, data.coffee()])
@pytest.mark.parametrize(
    "damage",
    [
        lambda photo, step: cv2.GaussianBlur(photo, (0, 0), 0.5 + 0.5 * step),
        lambda photo, step: add_noise(photo, 4.0 * step),
        lambda photo, step: compress(photo, 95 - 17 * step),
    ],
    ids=["blur", "noise", "jpeg"],
)
def test_more_damage_is_a_lower_score(photo, damage):
    region = (0, 0, *photo.shape[1::-1])
    scores = [ranking(damage(photo, step), region).sum() for step in range(1, 6)]
    assert ranking(photo, region).sum() > scores[0] and np.all(np.diff(scores) < 0)


@pytest.mark.parametrize("gain", [0.5, 0.75])
def test_exposure_alone_changes_little(gain):
    dark = np.round(PHOTO * gain).astype(np.uint8)
    blurred = cv2.GaussianBlur(PHOTO, (0, 0), 1)
    change = np.abs(ranking(dark) - ranking(PHOTO)).sum()
    assert change < 0.3 * np.abs(ranking(blurred) - ranking(PHOTO)).sum()
    # What follows the exposure is told and has no say.
    assert metric("entropy", dark) < metric("entropy", PHOTO)
    assert not {"entropy", "clipped"} & set(scores.directions(ScoreConfig()))


def test_only_the_persons_sharpness_counts():
    photo = cv2.GaussianBlur(PHOTO, (0, 0), 4)
    photo[:, 128:384] = PHOTO[:, 128:384]
    middle, side = (128, 0, 384, 512), (0, 0, 128, 512)
    sharp, soft = (classic.score(photo, r)["person_sharpness"] for r in (middle, side))
    assert sharp > 1.4 > 1.2 > soft


def test_stripes_are_no_sharper_than_a_step():
    step = np.zeros((512, 512, 3), np.uint8)
    step[:, 256:] = 200
    stripes = np.zeros_like(step)
    stripes[:, 0::4] = stripes[:, 1::4] = 200
    at_step, at_stripes = metric("person_sharpness", step, stripes)
    assert 1.5 < at_step <= at_stripes <= 1.65


def test_a_white_sky_is_not_clean():
    noise = noisy(8)
    noise[:208] = 255  # whole blocks
    (level,) = metric("calm_noise", noise)
    assert level == pytest.approx(metric("calm_noise", noisy(8))[0], rel=0.15)


@pytest.fixture
def with_niqe(tmp_path) -> ScoreConfig:
    np.savez(tmp_path / "niqe.npz", **NIQE)
    return ScoreConfig(niqe_params=str(tmp_path / "niqe.npz"))


def test_batches_and_their_order_change_no_score(with_niqe):
    batch = crops()
    order = np.random.default_rng(1).permutation(len(batch))
    for group in scores.groups(with_niqe):
        scorer = scores.make_scorer(group, with_niqe)
        whole, mixed = scorer(batch), scorer(batch[order])
        for name in scorer.names:
            single = [scorer(crop[None])[name][0] for crop in batch]
            assert whole[name].tolist() == single
            assert whole[name].dtype == np.float64
            assert mixed[name].tolist() == whole[name][order].tolist()


def test_a_crop_without_a_score_does_not_spoil_the_others(with_niqe):
    batch = crops(3)
    batch[1] = 128
    values = scores.make_scorer("niqe", with_niqe)(batch)["niqe"]
    assert np.isnan(values).tolist() == [False, True, False]


def test_stored_scores_are_those_of_the_stored_crops(made):
    """From the manifest of a finished run back to the pixels in its files."""
    ledger, scorer = ShardLedger(made), scores.make_scorer("classic", ScoreConfig())
    scored = [row for row in read_manifest(ledger).to_pylist() if row["z"] is not None]
    assert len(scored) >= 3
    for row in scored[:3]:
        file = CropFile(ledger.output("crop", row["crop_shard"], "crops.parquet"))
        box = tuple(row[f"box_{corner}"] for corner in ("x0", "y0", "x1", "y1"))
        place, whole = (row["x0"], row["y0"], row["s"]), "whole" in row["box_flags"]
        region = person_region(box, place, 1, whole)
        values = scorer(decode_crop(file.png(row["crop_row"]))[None], [region])
        assert {name: row[name] for name in scorer.names} == {n: v[0] for n, v in values.items()}


def test_a_crop_that_cannot_be_scored_costs_itself_alone(copy, monkeypatch):
    before = read_manifest(ShardLedger(copy)).to_pylist()
    bad = next(row for row in before if row["kept"])
    png = CropFile(ShardLedger(copy).output("crop", bad["crop_shard"], "crops.parquet"))
    pixels, real = decode_crop(png.png(bad["crop_row"])), classic.score

    def score(rgb, region):
        if np.array_equal(rgb, pixels):
            raise RuntimeError("no")
        return real(rgb, region)

    monkeypatch.setattr(classic, "score", score)
    shutil.rmtree(copy / "done" / "score-classic")
    assert curate(copy, "score") == curate(copy, "select") == 0
    after = {row["crop_id"]: row for row in read_manifest(ShardLedger(copy)).to_pylist()}
    row = after.pop(bad["crop_id"])
    assert (row["reason"], row["z"]) == ("stage_error:RuntimeError", None)
    assert all(np.isnan(row[name]) for name in classic.CLASSIC_METRICS)
    others = [old for old in before if old["z"] is not None and old["crop_id"] in after]
    assert others and all(after[o["crop_id"]]["calm_noise"] == o["calm_noise"] for o in others)


def test_a_metric_that_fails_on_all_crops_is_no_fault_of_theirs(made, monkeypatch):
    monkeypatch.setattr(classic, "score", lambda rgb, region: 1 / 0)
    crops = CropFile(ShardLedger(made).output("crop", "person-00000", "crops.parquet"))
    assert len(crops) > 1
    with pytest.raises(RuntimeError, match="no crop can be scored: division by zero"):
        list(ScoreJob("classic", ScoreConfig()).results(crops, ItemRunner()))


def test_crops_after_a_crash_are_scored_the_same_in_a_child_process(copy):
    before = tree_digest(copy)
    (copy / "done" / "score-classic" / "person-00000.json").unlink()
    ShardLedger(copy).begin("score-classic", "person-00000")
    assert curate(copy, "score") == 0
    assert tree_digest(copy) == before


def test_weights_are_loaded_once_a_process(with_niqe):
    first = scores.make_scorer("niqe", with_niqe)
    assert scores.make_scorer("niqe", with_niqe) is first
    np.savez(with_niqe.niqe_params, **{**NIQE, "cov_prisparam": np.eye(36)})
    assert scores.make_scorer("niqe", with_niqe) is not first


def test_a_detector_counts_the_people_of_a_crop(tmp_path):
    found = output((16, 16, 16, 16, 0.9, 0, 0), (48, 32, 16, 32, 0.5, 0.1, 0))
    network = write_onnx(tmp_path / "a.onnx", found, np.zeros_like(found))
    config = ScoreConfig(persons=str(network))
    assert scores.groups(config)[-1] == "persons" and "detected_persons" not in scores.directions(
        config
    )
    scorer = scores.make_scorer("persons", config)
    crops = np.full((2, 512, 512, 3), 90, np.uint8)
    assert scorer(crops)["detected_persons"].tolist() == [2.0, 2.0]
    assert scores.describe("persons", config)["sha256"]
    other = tmp_path / "a.png"
    other.touch()
    for file, said in (("nowhere.onnx", "no such file"), (str(other), "no detector; give YOLO's")):
        with pytest.raises(ConfigError, match=f"{file}: {said}"):
            scores.describe("persons", ScoreConfig(persons=file))


def test_the_small_detector_counts_too(tmp_path, monkeypatch):
    boxes, logits = np.zeros((1, 1917, 4), np.float32), np.full((1, 1917, 24), -9, np.float32)
    logits[0, [0, 2, -1], ssd.PERSON] = 0.0, -2.0, 0.0  # the second is less likely than ssd_conf
    shapes = [(1, 300, 300, 3), boxes.shape, logits.shape]
    install(monkeypatch, lambda batch: [boxes, logits], shapes)
    config = ScoreConfig(persons=str(write_package(tmp_path / "objectron.tgz", ssd.ASSETS)))
    scorer = scores.make_scorer("persons", config)
    assert scorer(crops(2))["detected_persons"].tolist() == [2.0, 2.0]
    assert scores.describe("persons", config)["kind"] == "ssd"


def test_groups_and_signs(with_niqe):
    assert scores.groups(ScoreConfig()) == ("classic",)
    assert scores.directions(ScoreConfig()) == {
        "person_sharpness": 1,
        "calm_noise": -1,
        "jpeg_blocks": -1,
    }
    assert scores.groups(with_niqe) == ("classic", "niqe")
    assert scores.directions(with_niqe) == classic.DIRECTIONS | {"person-niqe": -1}
    assert scores.names("niqe", with_niqe) == ("niqe", "person-niqe")
    paper = ScoreConfig(iqa="pyiqa", niqe_params=with_niqe.niqe_params)
    assert scores.groups(paper) == ("clipiqa", "maniqa", "musiq", "niqe", "brisque")
    assert scores.directions(paper) == {"clipiqa": 1, "maniqa": 1, "musiq": 1, "niqe": -1}
    assert scores.names("niqe", paper) == ("niqe",)
    paper.report_only = ("classic",)
    assert scores.groups(paper) == ("clipiqa", "maniqa", "musiq", "niqe", "classic")
    assert "calm_noise" not in scores.directions(paper)
    with pytest.raises(ConfigError, match="psnr"):
        scores.groups(ScoreConfig(iqa="pyiqa", report_only=("psnr",)))


def test_identity_changes_with_the_parameters(with_niqe):
    before = scores.describe("niqe", with_niqe)
    np.savez(with_niqe.niqe_params, **{**NIQE, "cov_prisparam": np.eye(36)})
    assert scores.describe("niqe", with_niqe) != before
    with pytest.raises(ConfigError, match="none.npz: no such file"):
        scores.describe("niqe", ScoreConfig(niqe_params="none.npz"))


@pytest.fixture
def stub(tmp_path, monkeypatch) -> ScoreConfig:
    """A pyiqa that looks for a file as the real one does and scores the mean of red."""
    packages, weights = tmp_path / "packages", tmp_path / "weights" / "below"
    (packages / "pyiqa-0.1.16.dist-info").mkdir(parents=True)
    (packages / "pyiqa-0.1.16.dist-info" / "METADATA").write_text("Name: pyiqa\nVersion: 0.1.16\n")
    (packages / "timm.py").write_text("def create_model(name, pretrained=False): return pretrained")
    (packages / "pyiqa.py").write_text(
        textwrap.dedent(
            """
            import os, timm, torch, urllib.request
            FILES = {"musiq": "pyiqa/musiq_koniq_ckpt-e95806b9.pth",
                     "clipiqa": "clip/RN50.pt", "brisque": "pyiqa/brisque_svm_weights.pth"}

            def create_metric(name, device):
                assert device == torch.device("cpu")
                assert timm.create_model("vit", pretrained=True) is False
                path = os.path.join(torch.hub.get_dir(), FILES[name])
                if name == "clipiqa":
                    path += ".other"
                if not os.path.exists(path):
                    urllib.request.urlopen("https://example.org/" + os.path.basename(path))
                assert open(path).read() == name
                return lambda batch: batch[:, 0].mean((1, 2))
            """
        )
    )
    weights.mkdir(parents=True)
    for name in ("musiq", "clipiqa", "brisque"):
        (weights / learned.PYIQA_METRICS[name].file).write_text(name)
        known = learned.PYIQA_METRICS[name]._replace(sha256="")
        monkeypatch.setitem(learned.PYIQA_METRICS, name, known)
    monkeypatch.syspath_prepend(packages)
    importlib.invalidate_caches()
    for name in ("pyiqa", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    return ScoreConfig(iqa="pyiqa", weights=str(tmp_path / "weights"))


def test_pyiqa_is_given_the_users_file_and_pixels_between_0_and_1(stub):
    facts = scores.describe("musiq", stub)
    assert (facts["metric"], facts["pyiqa"]) == ("musiq", "0.1.16")
    assert list(facts["weights"]) == ["musiq_koniq_ckpt-e95806b9.pth"]
    batch = np.zeros((2, 8, 8, 3), np.uint8)
    batch[1, ..., 0] = 102
    for group in ("musiq", "brisque"):
        values = scores.make_scorer(group, stub)(batch)
        assert values[group].tolist() == pytest.approx([0, 0.4])
        assert values[group].dtype == np.float64


def test_pyiqa_fetches_nothing(stub):
    with pytest.raises(ConfigError, match="example.org/RN50.pt.other"):
        scores.make_scorer("clipiqa", stub)


def test_missing_weights_are_named_with_their_digest(stub, tmp_path):
    with pytest.raises(ConfigError, match="no MANIQA_PIPAL-ae6d356b.pth, sha256 ae6d356b"):
        scores.describe("maniqa", stub)
    with pytest.raises(ConfigError, match="--iqa_weights FOLDER: no niqe_modelparameters.mat"):
        scores.describe("niqe", ScoreConfig(iqa="pyiqa"))
    (Path(stub.weights) / "MANIQA_PIPAL-ae6d356b.pth").write_text("other")
    with pytest.raises(ConfigError, match="expected ae6d356b"):
        scores.describe("maniqa", stub)


def test_without_pyiqa_the_extra_is_named(monkeypatch):
    missing = importlib.metadata.PackageNotFoundError("pyiqa")
    monkeypatch.setattr(importlib.metadata, "version", raising(missing))
    with pytest.raises(ConfigError, match=r"needs pyiqa: pip install 'osdhuman-jax\[eval\]'"):
        scores.describe("musiq", ScoreConfig(iqa="pyiqa"))
    with pytest.raises(ConfigError) as told:  # all at once, and each once
        scores.check(ScoreConfig(iqa="pyiqa"))
    assert str(told.value).count("pyiqa:") == str(told.value).count("no niqe_model") == 1
