"""The chain of second order: what is drawn how often, and what the record says of it."""

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import photo

from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.degrade import second_order as d

CONFIG = DegradationConfig()
NOISES = ("noise_range", "noise_range2", "poisson_scale_range", "poisson_scale_range2")
NOISELESS = replace(CONFIG, **dict.fromkeys(NOISES, (0.0, 0.0)))
KERNEL_KEYS = {"kind", "size", "sigma_x", "sigma_y", "rotation", "beta"}


def assert_share(count: int, total: int, p: float) -> None:
    """Within four standard deviations of a binomial."""
    assert abs(count - total * p) <= 4 * math.sqrt(total * p * (1 - p)), (count, total * p)


# Draws

DRAWS = 3000


def drawn(draw, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(DRAWS)]


def within(values: list[float], low: float, high: float) -> bool:
    """In the range, and within a tenth of its width of both ends."""
    slack = (high - low) / 10
    return low <= min(values) < low + slack and high - slack < max(values) <= high


def test_draw_blur_frequencies():
    draws = drawn(lambda rng: d.draw_blur(rng, CONFIG, CONFIG.blur_sigma))
    kinds = Counter(p["kind"] for p in draws)
    assert_share(kinds["sinc"], DRAWS, 0.1)
    for kind, p in zip(d.KERNELS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True):
        assert_share(kinds[kind], DRAWS, 0.9 * p)
    sizes = Counter(p["size"] for p in draws)
    assert sorted(sizes) == [7, 9, 11, 13, 15, 17, 19, 21]
    for count in sizes.values():
        assert_share(count, DRAWS, 1 / 8)


def test_draw_blur_ranges():
    draws = drawn(lambda rng: d.draw_blur(rng, CONFIG, (0.2, 1.5)), seed=1)
    gaussians = [p for p in draws if p["kind"] != "sinc"]
    assert all(set(p) == KERNEL_KEYS for p in gaussians)
    aniso = [p for p in gaussians if p["kind"].endswith("aniso")]
    iso = [p for p in gaussians if not p["kind"].endswith("aniso")]
    assert within([p["sigma_x"] for p in iso], 0.2, 1.5)
    assert all(p["sigma_x"] == p["sigma_y"] and p["rotation"] == 0 for p in iso)
    assert within([p["sigma_y"] for p in aniso], 0.2, 1.5)
    assert all(p["sigma_x"] != p["sigma_y"] for p in aniso)
    assert within([p["rotation"] for p in aniso], -np.pi, np.pi)
    sinc = [p for p in draws if p["kind"] == "sinc"]
    assert within([p["omega"] for p in sinc if p["size"] < 13], np.pi / 3, np.pi)
    assert within([p["omega"] for p in sinc if p["size"] >= 13], np.pi / 5, np.pi)


def test_draw_blur_betas():
    config = replace(CONFIG, sinc_prob=0.0, kernel_probs=(0.0, 0.2, 0.4, 0.0, 0.0, 0.4))
    draws = drawn(lambda rng: d.draw_blur(rng, config, config.blur_sigma), seed=2)
    betas = {kind: [p["beta"] for p in draws if p["kind"] == kind] for kind in d.KERNELS}
    assert set(betas["aniso"]) == {1.0}
    assert betas["iso"] == betas["plateau_iso"] == []
    generalized, plateau = betas["generalized_iso"], betas["plateau_aniso"]
    assert_share(sum(beta < 1 for beta in generalized), len(generalized), 0.5)
    assert within([beta for beta in generalized if beta < 1], 0.5, 1)
    assert within([beta for beta in generalized if beta > 1], 1, 4)
    assert_share(sum(beta == 1 for beta in plateau), len(plateau), 0.5)
    assert within([beta for beta in plateau if beta > 1], 1, 2)


def test_draw_final_sinc():
    draws = drawn(lambda rng: d.draw_final_sinc(rng, CONFIG))
    sinc = [p for p in draws if p["kind"] == "sinc"]
    assert_share(len(sinc), DRAWS, 0.8)
    assert all(p == {"kind": "none"} for p in draws if p not in sinc)
    assert {p["size"] for p in sinc} == set(CONFIG.blur_kernel_sizes)
    assert within([p["omega"] for p in sinc if p["size"] == 21], np.pi / 3, np.pi)


def test_draw_quality_includes_both_ends():
    qualities = Counter(drawn(lambda rng: d.draw_quality(rng, CONFIG)))
    assert (min(qualities), max(qualities), len(qualities)) == (30, 95, 66)


# The chain


@pytest.fixture(scope="module")
def records() -> list[dict]:
    hq = photo(32)
    return [d.degrade(hq, d.sample_rng(0, 0, i), CONFIG)[1] for i in range(400)]


def test_same_sample_same_bytes_other_sample_other_bytes():
    hq = photo(64)
    before = hq.copy()
    lqs = [d.degrade(hq, d.sample_rng(*at), CONFIG)[0].tobytes() for at in [(7, 1, 5)] * 2]
    assert lqs[0] == lqs[1]
    others = [(8, 1, 5), (7, 2, 5), (7, 1, 6), (1, 7, 5)]
    lqs += [d.degrade(hq, d.sample_rng(*at), CONFIG)[0].tobytes() for at in others]
    assert len(set(lqs)) == 5
    np.testing.assert_array_equal(hq, before)


def test_record_is_complete_json(records):
    keys = {"size", "usm", "blur1", "resize1", "noise1", "jpeg1", "blur2", "resize2", "noise2"}
    keys |= {"order", "resize3", "blur3", "jpeg2", "resize_back"}
    for record in records:
        assert json.loads(json.dumps(record)) == record
        assert set(record) == keys
        for noise in (record["noise1"], record["noise2"]):
            assert set(noise) == {"kind", "level", "gray"}
        for blur in (record["blur1"], record["blur2"], record["blur3"]):
            sets = {"sinc": {"kind", "size", "omega"}, "none": {"kind"}}
            assert set(blur) == sets.get(blur["kind"], KERNEL_KEYS)


def test_stages_take_their_own_parameters(records):
    def levels(stage: str, kind: str) -> list[float]:
        return [r[stage]["level"] for r in records if r[stage]["kind"] == kind]

    def sigmas(stage: str) -> list[float]:
        return [r[stage]["sigma_x"] for r in records if "sigma_x" in r[stage]]

    def scales(stage: str, kind: str) -> list[float]:
        return [r[stage]["scale"] for r in records if r[stage]["kind"] == kind]

    assert within(levels("noise1", "gaussian"), 1, 30) and within(sigmas("blur1"), 0.2, 3)
    assert within(levels("noise2", "gaussian"), 1, 25) and within(sigmas("blur2"), 0.2, 1.5)
    assert within(levels("noise1", "poisson"), 0.05, 3)
    assert within(levels("noise2", "poisson"), 0.05, 2.5)
    for stage in ("noise1", "noise2"):
        assert_share(len(levels(stage, "gaussian")), 400, 0.5)
        assert_share(sum(r[stage]["gray"] for r in records), 400, 0.4)
    for stage, low, high in (("resize1", 0.15, 1.5), ("resize2", 0.3, 1.2)):
        assert within(scales(stage, "up"), 1, high) and within(scales(stage, "down"), low, 1)
        assert set(scales(stage, "keep")) == {1.0}
    for stage, up, keep in (("resize1", 0.2, 0.1), ("resize2", 0.3, 0.3)):
        assert_share(sum(r[stage]["kind"] == "up" for r in records), 400, up)
        assert_share(sum(r[stage]["kind"] == "keep" for r in records), 400, keep)
    assert_share(sum(r["blur2"]["kind"] == "none" for r in records), 400, 0.2)
    assert_share(sum(r["blur3"]["kind"] == "none" for r in records), 400, 0.2)
    assert_share(sum(r["order"] == "resize_sinc_jpeg" for r in records), 400, 0.5)
    for mode in d.MODES:
        for stage in ("resize3", "resize1", "resize2"):
            assert_share(sum(r[stage]["mode"] == mode for r in records), 400, 1 / 3)
        assert_share(sum(r["resize_back"] == mode for r in records), 400, 1 / 3)


def replay(hq: np.ndarray, record: dict) -> np.ndarray:
    """LQ of a noiseless record, by another composition of the operations."""

    def blur(image: np.ndarray, params: dict) -> np.ndarray:
        if params["kind"] == "none":
            return image
        return d.filter2d(image, d.make_kernel(params))

    h, w = hq.shape[:2]
    image = blur(hq.astype(np.float32) / np.float32(255), record["blur1"])
    image = d.resize(image, record["resize1"]["mode"], scale=record["resize1"]["scale"])
    image = blur(d.jpeg(image, record["jpeg1"]), record["blur2"])
    size = tuple(int(side / 4 * record["resize2"]["scale"]) for side in (h, w))
    assert record["resize2"]["size"] == list(size)
    image = np.clip(d.resize(image, record["resize2"]["mode"], size), 0, 1)
    to_small = partial(d.resize, mode=record["resize3"]["mode"], size=(h // 4, w // 4))
    if record["order"] == "resize_sinc_jpeg":
        image = d.jpeg(blur(to_small(image), record["blur3"]), record["jpeg2"])
    else:
        image = blur(to_small(d.jpeg(image, record["jpeg2"])), record["blur3"])
    image = d.resize(image, record["resize_back"], (h, w))
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def test_record_alone_makes_a_noiseless_sample_again():
    hq = photo(90)[:, :71]
    orders = set()
    for index in range(25):
        lq, record, _ = d.degrade(hq, d.sample_rng(3, 0, index), NOISELESS)
        np.testing.assert_array_equal(replay(hq, record), lq)
        orders.add((record["order"], record["blur2"]["kind"] == "none"))
    assert len(orders) == 4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(32, 80), st.integers(32, 80), st.integers(0, 2**31))
def test_any_size_keeps_shape_and_dtype(h, w, seed):
    hq = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    lq, record, _ = d.degrade(hq, d.sample_rng(seed, 0, 0), CONFIG)
    assert lq.shape == (h, w, 3) and lq.dtype == np.uint8
    assert record["size"] == [h, w] and record["resize3"]["size"] == [h // 4, w // 4]


def test_not_full_stops_before_the_resize_back():
    hq = photo(67)
    small, record, _ = d.degrade(hq, d.sample_rng(0, 0, 2), CONFIG, full=False)
    assert small.shape == (16, 16, 3) and small.dtype == np.uint8
    lq, same, _ = d.degrade(hq, d.sample_rng(0, 0, 2), CONFIG)
    assert same == record and record["order"] == "resize_sinc_jpeg"  # `small` is whole levels
    back = d.resize(d.to_unit(small), record["resize_back"], (67, 67))
    np.testing.assert_array_equal(d.from_unit(back), lq)


def test_record_does_not_depend_on_pixels():
    black = np.zeros((64, 64, 3), np.uint8)
    for index in range(10):
        records = [d.degrade(hq, d.sample_rng(0, 0, index), CONFIG)[1] for hq in (black, photo(64))]
        assert (
            records[0] == records[1] == d.draw_record(d.sample_rng(0, 0, index), CONFIG, (64, 64))
        )


def test_views_degrade_as_their_copies():
    hq = photo(96)
    for view in (hq[:, ::-1], hq.transpose(1, 0, 2), hq[7:71, 3:70]):
        results = [d.degrade(v, d.sample_rng(0, 0, 1), CONFIG)[0] for v in (view, view.copy())]
        np.testing.assert_array_equal(*results)


def test_usm_is_off_by_default_and_sharpens_the_input():
    hq = photo(64)
    lq, record, _ = d.degrade(hq, d.sample_rng(0, 0, 0), replace(NOISELESS, usm=True))
    assert record["usm"] and not CONFIG.usm
    plain, _, _ = d.degrade(hq, d.sample_rng(0, 0, 0), NOISELESS)
    assert np.abs(lq.astype(int) - plain).max() > 0
    sharp = d.from_unit(d.usm_sharpen(d.to_unit(hq)))
    sharp_lq, _, _ = d.degrade(sharp, d.sample_rng(0, 0, 0), NOISELESS)
    assert np.abs(lq.astype(int) - sharp_lq).mean() < 0.5 * np.abs(lq.astype(int) - plain).mean()


@pytest.mark.parametrize(
    "hq", [np.zeros((31, 64, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3))]
)
def test_unfit_input_is_refused(hq):
    with pytest.raises(ValueError, match="below 32|expected"):
        d.degrade(hq, d.sample_rng(0, 0, 0), CONFIG)
