"""What becomes of a pool: ranks, thresholds, licences, test sets, on numbers made for it."""

import json

import numpy as np
import pytest

from curate.config import CurateConfig
from curate.selection.decisions import read_statistics
from curate.selection.pool import Pool, SelectError
from curate.selection.ranking import rank_pool
from curate.selection.sampling import choose_test, fails, sample_test

PASSING = {"clipiqa": 0.7, "maniqa": 0.7, "musiq": 72.0, "niqe": 3.0}


def pool(values: dict[str, list[float]], licenses: list[str] | None = None) -> Pool:
    count = len(next(iter(values.values())))
    return Pool(
        crop_ids=[f"c{i:03d}" for i in range(count)],
        image_ids=[f"i{i:03d}" for i in range(count)],
        licenses=licenses or [""] * count,
        source_blur=np.arange(1.0, count + 1) * 100,
        values={name: np.array(column, np.float64) for name, column in values.items()},
        measured=np.arange(1.0, count + 1) * 100,
        errors=[""] * count,
    )


def classic(count: int) -> Pool:
    rng = np.random.default_rng(count)
    names = ("person_sharpness", "calm_noise", "jpeg_blocks", "clipped", "entropy")
    return pool({name: list(rng.normal(size=count)) for name in names})


@pytest.fixture
def learned(tmp_path) -> CurateConfig:
    """The paper's four metrics; NIQE's parameters are only named, nothing is computed."""
    config = CurateConfig()
    path = tmp_path / "niqe.npz"
    np.savez(path, mu_prisparam=np.ones(36), cov_prisparam=np.eye(36))
    config.score.iqa, config.score.niqe_params = "pyiqa", str(path)
    return config


def table(*changes: dict[str, float]) -> Pool:
    """A crop for each entry: passing but for what it changes, the first ones a little better."""
    rows = [PASSING | change for change in changes]
    values = {name: [row[name] for row in rows] for name in PASSING}
    for name, step in (("clipiqa", -1e-6), ("maniqa", -1e-6), ("niqe", 1e-6)):
        values[name] = [v + step * i for i, v in enumerate(values[name])]
    return pool(values)


def test_a_source_keeps_its_best_up_to_the_cap():
    config, crops = CurateConfig(), classic(12)
    config.select.top = 1.0
    crops.image_ids[:] = [f"{'large' if at < 9 else 'small'}/{at}" for at in range(12)]
    free = rank_pool(crops, config)
    config.select.source_most = 4
    capped = rank_pool(crops, config)
    assert free.rank == capped.rank and not any(free.reasons)
    best = sorted(range(9), key=lambda at: free.rank[at])[:4]
    want = ["" if at in best or at >= 9 else "source_cap" for at in range(12)]
    assert capped.reasons == want


@pytest.mark.parametrize("count", range(2, 11))
def test_the_top_third_is_rounded_down(count):
    result = rank_pool(classic(count), CurateConfig())
    kept = [at for at, reason in enumerate(result.reasons) if not reason]
    assert len(kept) == count // 3
    assert sorted(result.rank) == list(range(1, count + 1))
    assert all((result.rank[at] or 0) <= count // 3 for at in kept)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_pool_that_cannot_be_ranked_has_a_reason(count):
    crops = classic(count)
    crops.values["calm_noise"][:] = 1.0  # the same for all
    result = rank_pool(crops, CurateConfig())
    assert result.reasons == ["unranked"] * count and result.rank == [None] * count
    assert not np.isfinite(result.z).any()
    why = "noise: standard deviation is zero" if count > 1 else "Eq. 1 needs two"
    assert why in result.statistics["unranked"]


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"pool": null}', "could not rank"), ("{}", "not the stats.json"), ("x", "not the stats")],
)
def test_statistics_that_measure_nothing_are_refused(tmp_path, text, words):
    (tmp_path / "stats.json").write_text(text)
    with pytest.raises(SelectError, match=words):
        read_statistics(tmp_path / "stats.json")


def test_ties_fall_by_name():
    tied = {name: [column[0]] * 3 + list(column[3:]) for name, column in classic(9).values.items()}
    result = rank_pool(pool(tied), CurateConfig())
    assert result.rank[0] + 2 == result.rank[1] + 1 == result.rank[2]


def test_thresholds_hold_beside_the_rank(learned):
    learned.select.top = 1.0
    crops = table({}, {"musiq": 69.9}, {"niqe": 4.1}, {"clipiqa": 0.6, "musiq": 60}, {"musiq": 70})
    result = rank_pool(crops, learned)
    wrong = ["", "musiq", "niqe", "clipiqa", ""]
    assert result.reasons == [f"below_threshold:{name}" if name else "" for name in wrong]
    assert result.statistics["thresholds"]["musiq"] == 70.0
    learned.select.thresholds = False
    assert rank_pool(crops, learned).reasons == [""] * 5


def test_thresholds_can_be_found_for_a_share(learned):
    rng = np.random.default_rng(0)
    spread = {"clipiqa": 0.1, "maniqa": 0.1, "musiq": 5.0, "niqe": 0.5}
    values = {name: list(PASSING[name] + spread[name] * rng.normal(size=600)) for name in PASSING}
    learned.select.calibrate = 0.744
    result = rank_pool(pool(values), learned)
    assert result.reasons.count("") == pytest.approx(0.744 * 200, abs=1)
    assert result.statistics["thresholds"]["musiq"] != 70.0


def test_what_cannot_be_ranked_is_no_part_of_the_pool():
    crops = classic(12)
    crops.values["calm_noise"][3] = np.nan
    crops.licenses[:] = ["CC-BY"] * 11 + ["?"]
    config = CurateConfig()
    config.select.license_allow = ("CC-BY",)
    config.blur.auto = True  # sources of 100 .. 1200: the 20th percentile is 320
    result = rank_pool(crops, config)
    wrong = {0: "blur", 1: "blur", 2: "blur", 3: "nan_score", 11: "license"}
    assert {at: result.reasons[at] for at in wrong} == wrong
    assert result.statistics["blur_min"] == pytest.approx(320)
    assert result.statistics["pool"]["count"] == 7
    assert [rank is None for rank in result.rank] == [at in wrong for at in range(12)]


def test_a_test_set_is_measured_by_the_training_pool():
    train = rank_pool(classic(30), CurateConfig()).statistics["pool"]
    crops = classic(1)
    result = rank_pool(crops, CurateConfig(), json.loads(json.dumps(train)))
    signs = {"person_sharpness": 1, "calm_noise": -1, "jpeg_blocks": -1}
    terms = [
        sign * (crops.values[name][0] - train["mean"][name]) / train["std"][name]
        for name, sign in signs.items()
    ]
    assert result.z[0] == pytest.approx(np.mean(terms))
    del train["mean"]["calm_noise"]
    with pytest.raises(SelectError, match="a pool without calm_noise"):
        rank_pool(crops, CurateConfig(), train)


def test_test_sets_are_of_crops_that_training_refuses(learned):
    low = {"clipiqa": 0.5, "musiq": 60.0}
    crops = table(low, {}, {"clipiqa": 0.5}, {"clipiqa": 0.2, "musiq": 60}, low | {"musiq": 30})
    result = rank_pool(crops, learned)
    assert [fails(crops, learned, at) for at in range(5)] == [2, 0, 1, 2, 2]
    assert choose_test(crops, learned, result) == [0]  # the others: too good, or too bad


def test_fewer_than_asked_for_are_all_taken_once():
    config = CurateConfig()
    config.split.test = 50
    crops = classic(10)
    result = rank_pool(crops, config)
    result.reasons = ["", "", "", *["dup_near"] * 7]
    sample_test(crops, config, result)
    assert result.splits == ["test"] * 3 + [""] * 7
    config.split.test = 2
    sample_test(crops, config, result)
    assert result.splits.count("test") == 2 and result.reasons.count("not_sampled") == 1
