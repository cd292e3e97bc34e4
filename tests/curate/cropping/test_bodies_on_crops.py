"""Whether a crop shows a person: by keypoints, by boxes, by a network that sees what it is told."""

from dataclasses import replace

import numpy as np
import pytest
from litert_files import NETWORK, install

from curate.config import BodyConfig
from curate.cropping import body
from curate.schema import WHOLE_PICTURE, Box, Candidate

CONFIG = BodyConfig(gate=True)
SIZE = (512, 512)

# As the reader of COCO's files tells which keypoints are visible.
HEADLESS, UPPER_BODY = "sees left_hip right_knee", "sees left_hip nose"


def person(score=0.9, head=(256, 130), shoulders=(256, 170), hips=(256, 300), rim=(256, 80)):
    points = (np.array(point, np.float64) for point in (head, shoulders, hips, rim))
    return body.Person(score, *points)


def candidate(box=(100, 0, 400, 600), flags=(), side=512) -> Candidate:
    crop = np.zeros((512, 512, 3), np.uint8)
    return Candidate(0, Box(box, flags=flags), x0=50, y0=0, s=side, crop=crop)


def looks(*scores: float, **points):
    return [[person(score, **points)] if score else [] for score in scores]


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (looks(0.9, 0.9, 0.9), ""),
        # The mean over looks counts: 0.42 and 0.4.
        (looks(0.9, 0.36, 0), ""),
        (looks(0.9, 0.3, 0), body.NOBODY),
        ([[], [], []], body.NOBODY),
        # A circle of radius 60 covers 5 hundredths of the crop, one of 135 covers 0.28.
        (looks(0.9, 0.9, 0.9, rim=(256, 240)), body.SMALL),
        (looks(0.9, 0.9, 0.9, rim=(256, 165)), ""),
        # Head and shoulders leave the crop above by more, and by less.
        (looks(0.9, 0.9, 0.9, head=(256, -30), shoulders=(256, 20)), body.CUT),
        (looks(0.9, 0.9, 0.9, head=(256, 20), shoulders=(256, 60)), ""),
    ],
)
def test_what_the_network_sees_is_judged(seen, reason):
    assert body.judge_looks(seen, SIZE, CONFIG) == reason


def test_one_person_of_several_is_enough():
    small = person(0.95, rim=(256, 290))
    assert body.judge_looks([[small, person(0.7)]] * 3, SIZE, CONFIG) == ""
    assert body.judge_looks([[small]] * 3, SIZE, CONFIG) == body.SMALL


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (candidate(), ""),
        (candidate((100, 0, 160, 512)), body.SMALL),
        (candidate((100, 0, 500, 800)), body.CUT),
        (candidate(flags=(HEADLESS,)), body.NO_POINTS),
        (candidate(flags=(UPPER_BODY,)), ""),
        (candidate((100, 0, 500, 800), (UPPER_BODY,)), body.CUT),
        (candidate((100, 0, 500, 800), (WHOLE_PICTURE,)), ""),
    ],
)
def test_without_a_network_labels_are_judged(found, reason):
    assert body.make_judge(CONFIG)(found) == reason


def test_shares_are_settings():
    narrow = candidate((100, 0, 160, 512))
    assert body.make_judge(replace(CONFIG, share_min=0.1))(narrow) == ""
    assert body.make_judge(replace(CONFIG, cut_most=0.0))(candidate()) == body.CUT
    assert body.make_judge(BodyConfig())(candidate(flags=(HEADLESS,))) == ""


def outputs(logit: float, rim: float = -90.0) -> list[np.ndarray]:
    """A person in the middle of the network's square, of which the circle ends `rim` below."""
    points, logits = np.zeros((1, 2254, 12), np.float32), np.full((1, 2254, 1), -9, np.float32)
    # The first box of the cell in the middle of the first map: its centre is at 114 of 224 pixels.
    at = 2 * (14 * 28 + 14)
    points[0, at] = (0, -60, 0, 0, 0, 0, 0, rim, 0, -40, 0, 0)
    logits[0, at] = logit
    return [points, logits]


def network(tmp_path, monkeypatch, *answers: list[np.ndarray]) -> BodyConfig:
    seen = iter(answers)
    install(monkeypatch, lambda batch: next(seen), body.SHAPES)
    (tmp_path / "a.whl").write_bytes(NETWORK)
    return replace(CONFIG, weights=str(tmp_path / "a.whl"))


def test_points_return_to_the_crop(tmp_path, monkeypatch):
    config = network(tmp_path, monkeypatch, *[outputs(3.0)] * 3)
    whole, _, far = body.load_people(body.Path(config.weights))(np.zeros((512, 512, 3), np.uint8))
    scale = 512 / 224
    np.testing.assert_allclose(whole[0].hips, [116 * scale] * 2, rtol=1e-6)
    np.testing.assert_allclose(whole[0].head, [116 * scale, 56 * scale], rtol=1e-6)
    np.testing.assert_allclose(whole[0].shoulders, [116 * scale, 76 * scale], rtol=1e-6)
    assert whole[0].reach == pytest.approx(90 * scale)
    # The last look's square is half as large again, around the same middle.
    np.testing.assert_allclose(far[0].hips, 256 + 4 * 1.5 * scale, atol=2)


def test_the_network_judges_where_labels_do_not(tmp_path, monkeypatch):
    answers = [outputs(3.0)] * 3 + [outputs(-3.0)] * 3
    judge = body.make_judge(network(tmp_path, monkeypatch, *answers))
    assert [judge(candidate()), judge(candidate())] == ["", body.NOBODY]
    # Keypoints are asked first, so that the network, which has no more answers, is not.
    assert judge(candidate(flags=(HEADLESS,))) == body.NO_POINTS
    assert judge(candidate(flags=(UPPER_BODY,))) == ""


def test_nobody_is_upside_down(tmp_path, monkeypatch):
    config = network(tmp_path, monkeypatch, *[outputs(3.0, rim=90.0)] * 3)
    assert body.make_judge(config)(candidate()) == body.NOBODY


def test_upright_crops_are_seen_whole():
    batch, scale, corner = body.to_square(np.full((1024, 512, 3), 255, np.uint8), 1.0)
    assert scale == 1024 / 224 and corner == pytest.approx((-56 * scale, 0))
    assert batch[0, :, 56:168].min() == 1 and batch[0, :, :56].max() == -1


def test_the_key_changes_with_the_gate_alone(tmp_path):
    (tmp_path / "a.whl").write_bytes(NETWORK)
    named = replace(CONFIG, weights=str(tmp_path / "a.whl"))
    assert body.describe(BodyConfig(conf=0.9)) == []
    assert body.describe(CONFIG) == body.describe(replace(CONFIG, conf=0.9))
    assert body.describe(named) != body.describe(replace(named, conf=0.9))
    assert body.describe(named) != body.describe(CONFIG)
