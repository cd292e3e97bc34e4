"""Eq. 1 against numpy, and what is selected by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.quality.statistics import (
    StatisticsError,
    calibrate,
    first_failing,
    fit_statistics,
    ranks,
    z_scores,
)

DIRECTIONS = {"clipiqa": 1, "niqe": -1}


def table(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"clipiqa": rng.normal(0.6, 0.1, count), "niqe": rng.gamma(9, 0.5, count)}


@given(st.integers(2, 60), st.sampled_from([0.0, 1e6]))
def test_the_moments_of_a_pool_are_those_of_numpy(count, offset):
    values = np.random.default_rng(1).normal(offset, 2.0, count)
    stats = fit_statistics({"clipiqa": values})
    assert stats.count == count
    assert stats.mean["clipiqa"] == pytest.approx(values.mean(), rel=1e-12)
    assert stats.std["clipiqa"] == pytest.approx(values.std(ddof=0), rel=1e-12)


def test_the_order_of_the_pool_changes_no_bit():
    values = table(1000)
    order = np.random.default_rng(2).permutation(1000)
    assert fit_statistics(values) == fit_statistics(
        {name: column[order] for name, column in values.items()}
    )


def test_z_is_the_mean_of_standardised_metrics_with_niqe_negated():
    values = table(50)
    stats = fit_statistics(values)
    clipiqa, niqe = values["clipiqa"], values["niqe"]
    expected = (clipiqa - clipiqa.mean()) / clipiqa.std() - (niqe - niqe.mean()) / niqe.std()
    np.testing.assert_allclose(z_scores(values, stats, DIRECTIONS), expected / 2, atol=1e-12)
    better = {"clipiqa": clipiqa[:1], "niqe": niqe[:1] - 1}
    assert z_scores(better, stats, DIRECTIONS)[0] > expected[0] / 2


@pytest.mark.parametrize(
    "values",
    [
        {"a": np.ones(5), "b": np.arange(5.0)},
        {"a": np.array([1.0])},
        {"a": np.array([])},
        {"a": np.array([1.0, np.nan, 2.0])},
        {"a": np.array([1.0, np.inf])},
        {"a": np.arange(3.0), "b": np.arange(4.0)},
    ],
    ids=["constant", "one", "none", "nan", "infinite", "counts differ"],
)
def test_a_pool_that_says_nothing_is_refused(values):
    with pytest.raises(StatisticsError):
        fit_statistics(values)


def test_ranks_are_by_z_and_then_by_name():
    z = np.array([0.5, 2.0, 0.5, -1.0])
    assert ranks(z, ["d", "c", "b", "a"]).tolist() == [3, 1, 2, 4]


def test_thresholds_are_inclusive_and_the_first_to_fail_is_named():
    values = {"clipiqa": np.array([0.65, 0.64, 0.7, 0.1]), "niqe": np.array([4.0, 4.0, 4.1, 9.0])}
    failing = first_failing(values, {"clipiqa": 0.65, "niqe": 4.0}, DIRECTIONS)
    assert failing == ["", "clipiqa", "niqe", "clipiqa"]
    assert first_failing(values, {}, DIRECTIONS) == [""] * 4


@pytest.mark.parametrize("count", [1, 2, 7, 100, 501])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.744, 1.0])
def test_calibration_keeps_the_share_asked_for_to_a_crop(count, share):
    values = table(count)
    limits = calibrate(values, DIRECTIONS, share)
    kept = first_failing(values, limits, DIRECTIONS).count("")
    assert share * count <= kept
    assert kept < share * count + 1 or share == 0.0  # there the sharpest common quantile is the end


def test_calibration_takes_about_one_quantile_of_all_metrics():
    values = table(1000)
    limits = calibrate(values, DIRECTIONS, 0.744)
    below = np.mean(values["clipiqa"] < limits["clipiqa"])
    assert below == pytest.approx(np.mean(values["niqe"] > limits["niqe"]), abs=0.002)
