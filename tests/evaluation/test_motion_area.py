"""What motion blur is left: the ratio by hand, and a network of stage 1 as its detector."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from convert import call, filled
from refusals import one_line

from osdhuman_jax.evaluation.metrics import METRICS
from osdhuman_jax.evaluation.motion_area import area_ratio, blurred_area, remaining_area
from osdhuman_jax.evaluation.scorers import MissingMetric, open_scorer
from osdhuman_jax.images.codec import to_float
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.weights import save_model

METRIC = METRICS["hmb-area"]
DUAL = replace(tiny.DUAL, upsamplers=True)
MODEL = replace(tiny.DUAL_MODEL, dual=DUAL)


def logits(*counts: int) -> np.ndarray:
    """Pictures of 4 x 5 pixels of which so many are marked."""
    marked = np.arange(20) < np.array(counts)[:, None]
    return np.where(marked, 0.1, -3.0).astype(np.float32).reshape(-1, 4, 5, 1)


def test_the_area_is_where_blur_is_more_likely_than_not():
    np.testing.assert_array_equal(blurred_area(logits(0, 5, 20)), [0, 0.25, 1])
    # Sigmoid of zero is no more than a half.
    assert blurred_area(np.zeros((1, 4, 4, 1), np.float32)) == [0]


def test_the_ratio_is_of_means_and_a_sharp_picture_is_no_fault():
    assert area_ratio(logits(0, 3), logits(0, 12)) == pytest.approx(3 / 12)
    assert area_ratio(logits(2, 4), logits(10, 2)) == pytest.approx(6 / 12)
    assert area_ratio(logits(20, 4), logits(10, 2)) == pytest.approx(2)
    shares = remaining_area(np.array([0.1, 0.3]), np.array([0.8, 0.0]))
    np.testing.assert_allclose(shares, [0.25, 0.75])


def test_without_blur_there_is_no_ratio():
    with pytest.raises(ValueError, match="sees no motion blur"):
        area_ratio(logits(1, 2), logits(0, 0))


def test_the_detector_is_the_third_branch_on_the_squashed_picture(tmp_path):
    restorer = filled(lambda rngs: build_restorer(MODEL, rngs=rngs))
    network, side = restorer.prompter.feature_extractor, DUAL.image_size
    save_model(tmp_path, MODEL, restorer)
    scorer = open_scorer(METRIC, None, None, tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 24, 3)).astype(np.uint8)
    x = jax.image.resize(to_float(pictures), (2, side, side, 3), "linear", antialias=False)
    expected = blurred_area(call(network, x, method="reconstruct").motion)
    assert 0 < expected.min() and expected.max() < 1
    # A logit next to zero may fall on either side.
    np.testing.assert_allclose(scorer.score(pictures, None), expected, atol=2 / side**2)
    assert list(scorer.identity["weights"]) == ["config.json"]
    assert "not HMB-R" in scorer.identity["variant"]


def test_without_a_detector(tmp_path):
    tiny.save(tmp_path / "other")
    faults = {None: "needs --detector", tmp_path: "not a model folder"}
    for folder, text in {**faults, tmp_path / "other": "shows no motion blur"}.items():
        with one_line(MissingMetric, text):
            open_scorer(METRIC, None, None, folder)
