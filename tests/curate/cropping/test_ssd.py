"""The SSD: where its anchors are, how its numbers become boxes, and which files it is read from."""

import sys

import numpy as np
import pytest
from litert_files import NETWORK, install, write_package, write_wheel

from curate.config import ConfigError, DetectConfig
from curate.cropping import detect, litert, ssd
from curate.schema import SourceImage

IMAGE = SourceImage("folder/all/a.jpg", "folder", "/photos/a.jpg", policy="detect")
SHAPES = [(1, 300, 300, 3), (1, 1917, 4), (1, 1917, 24)]
# Of the last map: one cell, whose first box has the middle as its centre and a side of 0.95.
LAST = 1911


def outputs(*people: tuple[int, float, tuple[float, float, float, float]]) -> list[np.ndarray]:
    """The network's outputs: of each person the anchor, the logit, and the anchor's moves."""
    boxes, logits = np.zeros((1, 1917, 4), np.float32), np.full((1, 1917, 24), -9, np.float32)
    for at, logit, moves in people:
        boxes[0, at], logits[0, at, ssd.PERSON] = moves, logit
    return [boxes, logits]


def test_anchors_are_mediapipes():
    found = ssd.anchors()
    assert found.shape == (1917, 4)
    np.testing.assert_allclose(found[0], [0.5 / 19, 0.5 / 19, 0.1, 0.1])
    np.testing.assert_allclose(found[1, 2:], [0.2 * 2**0.5, 0.2 / 2**0.5])
    np.testing.assert_allclose(found[LAST], [0.5, 0.5, 0.95, 0.95])
    np.testing.assert_allclose(found[-1, 2:], [0.95**0.5, 0.95**0.5])
    # Of the second map, 10 cells a side, a row comes after the other.
    np.testing.assert_allclose(found[3 * 19 * 19 + 6, :2], [0.15, 0.05])


def test_moves_are_y_x_height_width():
    boxes, logits = outputs((LAST, 0.0, (1.0, -2.0, 5 * np.log(0.5), 0.0)))
    corners, scores = ssd.decode_ssd(boxes[0], logits[0])
    y, x, height, width = 0.5 + 0.095, 0.5 - 0.19, 0.475, 0.95
    wanted = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    np.testing.assert_allclose(corners, [wanted], rtol=1e-6)
    np.testing.assert_allclose(scores, [0.5])


def test_boxes_return_to_the_picture_and_the_best_stays(tmp_path, monkeypatch):
    people = [(LAST, 0.0, (0, 0, 0, 0)), (LAST + 5, -0.5, (0, 0, 0, 0)), (0, -0.8, (0, 0, 0, 0))]
    people += [(1, -1.0, (0, 0, 0, 0))]
    install(monkeypatch, lambda batch: outputs(*people), SHAPES)
    path = write_package(tmp_path / "objectron.tgz", ssd.ASSETS)
    detector = detect.make_detector(DetectConfig("ssd", str(path)))
    first, second = detector(np.zeros((600, 300, 3), np.uint8), IMAGE)
    # The square has 600 pixels of the picture, which fills its left half.
    assert first.xyxy == pytest.approx((15, 15, 300, 585)) and first.score == 0.5
    assert second.xyxy == pytest.approx((0, 0, 600 * (0.5 / 19 + 0.05), 600 * (0.5 / 19 + 0.05)))
    assert detector.name == "ssd"


def test_the_network_sees_the_picture_in_the_corner():
    batch, scale = ssd.to_square(np.full((150, 600, 3), 255, np.uint8))
    assert scale == (0.5, 0.5)
    np.testing.assert_allclose(batch[0, :75], 1)
    np.testing.assert_allclose(batch[0, 75:], 127 / 127.5 - 1, atol=1e-6)


def test_tiles_are_smaller_in_proportion(tmp_path):
    (tmp_path / "a.tflite").write_bytes(NETWORK)
    config = DetectConfig("ssd", str(tmp_path / "a.tflite"))
    facts = detect.describe(config)
    assert (facts["tile"], facts["conf"]) == (1200, 0.3)
    assert facts != detect.describe(DetectConfig("ssd", config.weights, ssd_conf=0.4))


@pytest.mark.parametrize("kind", ["package", "wheel", "file"])
def test_a_network_is_read_from(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "file":
        path.write_bytes(NETWORK)
    else:
        {"package": write_package, "wheel": write_wheel}[kind](path, "a.tflite")
    assert litert.read_network(path, "a.tflite") == NETWORK


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: write_package(path, "other.tflite"), "has no a.tflite"),
        (lambda path: write_wheel(path, "other.tflite"), "has no a.tflite"),
        (lambda path: write_wheel(path, "a.tflite", b"nothing"), "holds no .tflite"),
        (lambda path: path.write_bytes(b""), "holds no .tflite"),
        (lambda path: path.write_bytes(NETWORK + b"!"), "not a network that LiteRT runs: Model"),
    ],
)
def test_what_is_no_network_is_named(tmp_path, monkeypatch, write, words):
    install(monkeypatch, lambda batch: [], SHAPES)
    write(tmp_path / "a")
    with pytest.raises(ConfigError, match=words):
        litert.load_network(tmp_path / "a", "a.tflite", SHAPES)


def test_another_network_is_refused(tmp_path, monkeypatch):
    install(monkeypatch, lambda batch: [], SHAPES[:2])
    (tmp_path / "a").write_bytes(NETWORK)
    with pytest.raises(ConfigError, match="another network"):
        ssd.load_ssd(tmp_path / "a")


def test_without_litert_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    (tmp_path / "a").write_bytes(NETWORK)
    for needed in (True, False):
        with pytest.raises(ConfigError, match=r"osdhuman-jax\[detector\]"):
            detect.check(DetectConfig("ssd", str(tmp_path / "a")), needed)
    with pytest.raises(ConfigError, match=r"osdhuman-jax\[detector\]"):
        ssd.load_ssd(tmp_path / "a")
    with pytest.raises(ConfigError, match="no such file"):
        litert.check(tmp_path / "b")
