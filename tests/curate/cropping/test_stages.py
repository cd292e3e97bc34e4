"""Blur, boxes, squares, crowds, suppression, crops: by scipy, brute force and their promises."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import data

from curate.config import BlurConfig, BoxConfig, CurateConfig, DenseConfig, NmsConfig, SquareConfig
from curate.cropping import stages
from curate.schema import WHOLE_PICTURE, Box, Candidate, crop_id

PHOTO = data.astronaut()
Region = tuple[float, float, float, float]


def test_sharpness_is_the_variance_of_the_laplacian():
    gray = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY).astype(np.float64)
    assert stages.laplacian_variance(PHOTO) == pytest.approx(
        ndimage.laplace(gray, mode="mirror").var()
    )
    assert stages.laplacian_variance(PHOTO) == pytest.approx(861, abs=1)


def test_sharpness_falls_with_blur_and_rises_with_noise():
    values = [
        stages.laplacian_variance(cv2.GaussianBlur(PHOTO, (0, 0), sigma)) for sigma in (1, 2, 3)
    ]
    assert stages.laplacian_variance(PHOTO) > values[0] > values[1] > values[2]
    noisy = PHOTO + np.random.default_rng(0).normal(0, 15, PHOTO.shape)
    noisy = np.clip(noisy, 0, 255).astype(np.uint8)
    assert (
        stages.laplacian_variance(noisy) > 2000
    )  # the measure's known weakness: noise looks sharp


def test_a_source_is_measured_scaled_down_but_never_up():
    small, large = PHOTO[:300], cv2.resize(PHOTO, (2048, 1024))
    scaled = cv2.resize(large, (1024, 512), interpolation=cv2.INTER_AREA)
    ways = {
        "picture": stages.laplacian_variance,
        "person": lambda rgb: stages.tile_sharpness(rgb, stages.SOURCE_PERCENTILE),
    }
    for of, measure in ways.items():
        assert stages.source_blur(small, BlurConfig(of=of)) == measure(small)
        assert stages.source_blur(large, BlurConfig(of=of)) == measure(scaled)
        assert stages.source_blur(large, BlurConfig(of=of, at="native")) == measure(large)


@pytest.mark.parametrize(
    ("xyxy", "reason"),
    [
        ((0, 0, 256, 96), ""),
        ((0, 0, 255, 200), "box_small"),
        ((0, 0, 300, 95), "box_small"),
        ((-500, 0, 200, 200), "box_small"),  # what lies in the image counts
        ((900, 0, 901, 300), "box_invalid"),
        ((1100, 0, 1400, 300), "box_invalid"),  # outside
        ((300, 0, 100, 300), "box_invalid"),
        ((0, 0, 101, 506), "box_invalid"),  # more than five times as long as wide
        ((0, 0, math.nan, 300), "box_invalid"),
    ],
)
def test_boxes_that_are_no_use_have_a_reason(xyxy, reason):
    assert stages.judge_box(Box(xyxy), 1000, 1000, BoxConfig()) == reason


def test_a_box_of_a_large_image_needs_its_share_of_it():
    box = Box((0, 0, 300, 300))
    assert stages.judge_box(box, 3000, 1500, BoxConfig()) == ""
    assert stages.judge_box(box, 3001, 1500, BoxConfig()) == "box_small"


@st.composite
def boxed_images(draw) -> tuple[int, int, Region]:
    """Width, height, a box inside of two pixels and more."""
    width, height = draw(st.integers(8, 900)), draw(st.integers(8, 900))
    x0, y0 = draw(st.floats(0, width - 2)), draw(st.floats(0, height - 2))
    x1, y1 = draw(st.floats(x0 + 2, width)), draw(st.floats(y0 + 2, height))
    assume(x1 - x0 >= 2 and y1 - y0 >= 2)
    return width, height, (x0, y0, x1, y1)


@settings(max_examples=300)
@given(boxed_images(), st.sampled_from([0.0, 0.1]))
def test_squares_lie_inside_and_hold_their_box(image, margin):
    width, height, (x0, y0, x1, y1) = image
    x, y, s, reason = stages.square((x0, y0, x1, y1), width, height, SquareConfig(margin=margin))
    assert all(isinstance(v, int) for v in (x, y, s))
    assert 0 <= x <= width - s and 0 <= y <= height - s
    longer = max(x1 - x0, y1 - y0) * (1 + 2 * margin)
    assert s == min(width, height) or longer - 0.5 <= s <= longer + 2
    hull_w, hull_h = math.ceil(x1) - math.floor(x0), math.ceil(y1) - math.floor(y0)
    if s >= hull_w:
        assert x <= x0 and x1 <= x + s
    if s >= hull_h:
        assert y <= y0 and y1 <= y + s
    if s >= max(hull_w, hull_h):
        assert reason != "border"


@settings(max_examples=300)
@given(boxed_images(), st.sampled_from([2, 3]))
def test_upright_crops_lie_inside_and_hold_their_box(image, aspect):
    width, height, (x0, y0, x1, y1) = image
    x, y, s, reason = stages.square((x0, y0, x1, y1), width, height, SquareConfig(aspect=aspect))
    assert 0 <= x <= width - s and 0 <= y <= height - s * aspect
    needed = max(x1 - x0, (y1 - y0) / aspect)
    assert s == min(width, height // aspect) or needed <= s <= needed + 2
    if s >= math.ceil(x1) - math.floor(x0) and s * aspect >= math.ceil(y1) - math.floor(y0):
        assert x <= x0 and x1 <= x + s and y <= y0 and y1 <= y + s * aspect
        assert reason != "border"


def test_upright_crops_have_a_size_and_a_name_of_their_own():
    config = CurateConfig(square=SquareConfig(aspect=2, side_min=240))
    box = Box((100, 10, 330, 500))
    (upright,) = stages.make_candidates(PHOTO, [box], config)
    (square,) = stages.make_candidates(PHOTO, [box], CurateConfig())
    assert upright.reason == "" and upright.crop.shape == (1024, 512, 3)
    assert (upright.s, upright.aspect, square.s, square.aspect) == (245, 2, 490, 1)
    assert crop_id("a", upright, "r") != crop_id("a", replace(upright, aspect=1), "r")
    assert stages.squares([upright])[0, 3] - stages.squares([upright])[0, 1] == 490


@settings(max_examples=300)
@given(boxed_images())
def test_squares_move_no_farther_from_their_box_than_they_must(image):
    width, height, box = image
    x, y, s, _ = stages.square(box, width, height, SquareConfig())
    (x0, y0, x1, y1) = box
    nearest_x = min(max((x0 + x1 - s) / 2, 0), width - s)
    top = y0 if s < y1 - y0 else (y0 + y1 - s) / 2
    nearest_y = min(max(top, 0), height - s)
    assert abs(x - nearest_x) <= 1 and abs(y - nearest_y) <= 1


def test_a_box_taller_than_the_image_is_wide_keeps_its_head():
    x, y, s, reason = stages.square((100, 50, 300, 600), 500, 800, SquareConfig())
    assert (x, y, s, reason) == (0, 50, 500, "")
    assert stages.square((100, 50, 300, 780), 500, 800, SquareConfig())[3] == "border"  # 32 % lost


def test_a_margin_goes_all_round():
    assert stages.square((400, 400, 600, 500), 1000, 1000, SquareConfig(margin=0.1))[:3] == (
        380,
        330,
        240,
    )


def test_small_squares_are_not_enlarged_beyond_the_limit():
    assert stages.square((0, 0, 384, 100), 900, 900, SquareConfig())[3] == ""
    assert stages.square((0, 0, 383, 100), 900, 900, SquareConfig())[3] == "crop_small"


def iou(a: Region, b: Region) -> float:
    """By counting unit cells of boxes with whole corners."""
    cells = [
        {(x, y) for x in range(int(r[0]), int(r[2])) for y in range(int(r[1]), int(r[3]))}
        for r in (a, b)
    ]
    union = cells[0] | cells[1]
    return len(cells[0] & cells[1]) / len(union) if union else 0.0


small_boxes = st.tuples(
    st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(max_examples=50)
@given(st.lists(small_boxes, min_size=1, max_size=4), st.lists(small_boxes, min_size=1, max_size=4))
def test_overlaps_are_those_counted_cell_by_cell(first, second):
    found = stages.ious(np.array(first, float), np.array(second, float))
    expected = [[iou(a, b) for b in second] for a in first]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def crowd(boxes: list[Region], at: int = 0, ignored: int = 0) -> str:
    """Why the square around box `at` is dense; the last `ignored` boxes are no persons."""
    xyxy = np.array(boxes, float)
    persons = np.arange(len(boxes)) < len(boxes) - ignored
    x, y, s, _ = stages.square(boxes[at], 1000, 1000, SquareConfig())
    region = np.array([[x, y, x + s, y + s]], float)
    return stages.is_dense(at, xyxy, persons, region, DenseConfig())


def row(count: int, width: float, height: float = 400) -> list[Region]:
    return [(i * width, 0.0, (i + 1) * width, height) for i in range(count)]


def test_a_group_photo_of_four_is_no_crowd():
    assert all(crowd(row(4, 150), at) == "" for at in range(4))


def test_twenty_five_people_are_one():
    boxes = [(x * 80.0, y * 80.0, x * 80 + 80, y * 80 + 80) for x in range(5) for y in range(5)]
    assert crowd([(0, 0, 400, 400), *boxes]) == "too many persons"
    assert crowd([(0, 0, 400, 400), *boxes[:10]]) == "too many persons"  # eleven with the first
    assert crowd([(0, 0, 400, 400), *boxes[:9]]) == ""


def test_crowds_by_overlap_labels_and_size():
    close = [(i * 30.0, 0.0, i * 30 + 300.0, 400.0) for i in range(4)]
    assert crowd(close) == "overlapping boxes"
    assert crowd(close[:3]) == ""
    assert crowd([(0, 0, 400, 400), (0, 0, 400, 121)], ignored=1) == "a crowd"
    assert crowd([(0, 0, 400, 400), (0, 0, 400, 119)], ignored=1) == ""
    tiny = [(i * 40.0, 0.0, i * 40 + 20.0, 40.0) for i in range(4)]
    assert crowd([(0, 0, 400, 400), *tiny]) == "small people"


def make_candidates(squares: list[tuple[int, int, int]]) -> list[Candidate]:
    return [
        Candidate(i, Box((x, y, x + s, y + s)), x0=x, y0=y, s=s)
        for i, (x, y, s) in enumerate(squares)
    ]


def naive_suppress(found: list[Candidate], size: int, config: NmsConfig) -> list[int]:
    """From the rule's words: repeatedly take the best one left and strike what it overlaps."""

    def key(c: Candidate):
        x0, y0, x1, y1 = c.box.xyxy
        away = math.dist(((x0 + x1) / 2, (y0 + y1) / 2), (size / 2, size / 2))
        return round(away, 9), -(x1 - x0) * (y1 - y0), c.box_index

    left, kept = list(found), []
    while left and len(kept) < config.most:
        first = min(left, key=key)
        kept.append(first.box_index)
        left = [c for c in left if iou(c.box.xyxy, first.box.xyxy) <= config.iou and c != first]
    return kept


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 12)), max_size=8),
    st.randoms(),
)
def test_suppression_is_greedy_from_the_centre_whatever_the_order(squares, random):
    found, config = make_candidates(squares), NmsConfig()
    expected = naive_suppress(found, 32, config)
    assert [c.box_index for c in stages.centre_first_nms(found, 32, 32, config)] == expected
    random.shuffle(found)
    assert [c.box_index for c in stages.centre_first_nms(found, 32, 32, config)] == expected


def test_crops_are_copied_shrunk_or_enlarged_once():
    photo = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), np.uint8)
    np.testing.assert_array_equal(stages.cut_square(photo, 20, 30, 512), photo[30:542, 20:532])
    halves = photo[:1024, :1024].reshape(512, 2, 512, 2, 3).mean(axis=(1, 3))
    assert np.abs(stages.cut_square(photo, 0, 0, 1024) - halves).max() <= 0.51
    flat = np.full((400, 400, 3), 77, np.uint8)
    np.testing.assert_array_equal(stages.cut_square(flat, 0, 0, 400), np.full((512, 512, 3), 77))


def wide_photo() -> np.ndarray:
    """Three sharp scenes side by side, 512 x 1536."""
    return np.concatenate([PHOTO, PHOTO[:, ::-1], PHOTO], axis=1)


def test_each_person_box_gets_a_crop_or_the_first_reason():
    boxes = [
        Box((520, 10, 1010, 500)),  # in the middle
        Box((500, 0, 1000, 500)),  # much the same
        Box((20, 10, 500, 500)),
        Box((1030, 0, 1100, 60)),
        Box((1030, 0, 1530, 500), kind="ignore"),
    ]
    found = stages.make_candidates(wide_photo(), boxes, CurateConfig())
    assert [c.box_index for c in found] == [0, 1, 2, 3]
    assert [c.reason for c in found] == ["", "nms", "", "box_small"]
    for c in found:
        assert (c.crop is not None) == (c.reason == "")
    assert found[0].crop.shape == (512, 512, 3)
    # The box is 490 pixels of the source wide, and its square as many.
    region = stages.person_region(boxes[0].xyxy, (520, 10, 490), 1, whole=False)
    assert region == (0, 0, 512, 512)
    assert found[0].lap_crop == stages.crop_sharpness(found[0].crop, region, BlurConfig())
    paper = CurateConfig(blur=BlurConfig(of="picture"))
    found = stages.make_candidates(wide_photo(), boxes, paper)
    assert found[0].lap_crop == stages.laplacian_variance(found[0].crop)


def test_the_order_of_boxes_changes_no_crop():
    boxes = [Box((20, 10, 500, 500)), Box((520, 10, 1010, 500)), Box((1030, 0, 1530, 500))]
    forward = stages.make_candidates(wide_photo(), boxes, CurateConfig())
    backward = stages.make_candidates(wide_photo(), boxes[::-1], CurateConfig())[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert (a.x0, a.y0, a.s, a.reason) == (b.x0, b.y0, b.s, b.reason)


def test_a_blurred_crop_is_dropped_but_its_measure_kept():
    photo = wide_photo()
    photo[:, :512] = cv2.GaussianBlur(PHOTO, (0, 0), 3)
    boxes = [Box((10, 10, 500, 500)), Box((1030, 0, 1530, 500))]
    found = stages.make_candidates(photo, boxes, CurateConfig())
    assert [c.reason for c in found] == ["crop_blur", ""]
    assert found[0].lap_crop < 100 < found[1].lap_crop


def street(person_sigma: float, background_sigma: float, size: int = 768) -> np.ndarray:
    """A picture with a person of rough cloth in the middle third, each part as soft as said."""
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(40, 216, (size // 6, size // 6)), np.ones((6, 6)))
    parts = [
        cv2.GaussianBlur(scene, (0, 0), sigma) if sigma else scene
        for sigma in (person_sigma, background_sigma)
    ]
    inside = np.zeros((size, size), bool)
    inside[:, size // 3 : 2 * size // 3] = True
    gray = np.where(inside, *parts)
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


BODY = Box((256, 0, 512, 768))


@pytest.mark.parametrize(
    ("person", "background", "reason"), [(0, 6, ""), (6, 0, "crop_blur"), (0, 0, "")]
)
def test_the_person_has_to_be_sharp_and_not_the_background(person, background, reason):
    photo, blur = street(person, background), CurateConfig().blur
    assert stages.source_blur(photo, blur) > blur.source_min
    (found,) = stages.make_candidates(photo, [BODY], CurateConfig())
    assert found.reason == reason
    # The middle half of a picture without a box holds some background: it cannot harm.
    whole = Box((0, 0, 768, 768), flags=(WHOLE_PICTURE,))
    if not reason:
        assert stages.make_candidates(photo, [whole], CurateConfig())[0].reason == reason


def test_a_small_sharp_person_in_a_soft_picture_is_no_blurred_source():
    photo = street(6, 6)
    photo[100:400, 300:420] = street(0, 0)[100:400, 300:420]
    for of, limit in (("person", 1000), ("picture", 1000)):
        sharp = stages.source_blur(photo, BlurConfig(of=of)) > limit
        assert sharp == (of == "person")
    assert stages.source_blur(street(6, 6), BlurConfig()) < 100


@pytest.mark.parametrize(
    ("xyxy", "region"),
    [
        ((100, 100, 356, 612), (0, 0, 128, 256)),
        ((400, 100, 700, 1124), (150, 0, 300, 512)),
        ((600, 900, 620, 910), (191, 338, 319, 466)),  # widened round its middle
        ((1100, 100, 1124, 1124), (384, 0, 512, 512)),  # and moved into the crop
        ((-500, -500, 5000, 5000), (0, 0, 512, 512)),
    ],
)
def test_the_persons_region_lies_on_the_crop(xyxy, region):
    assert stages.person_region(xyxy, (100, 100, 1024), 1, whole=False) == region
    assert stages.person_region(xyxy, (100, 100, 1024), 2, whole=True) == (128, 0, 384, 1024)
