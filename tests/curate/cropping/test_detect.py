"""Detectors: YOLO's output back to the picture, a csv, the whole picture, what cannot be made."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from onnx_files import output, write_onnx
from skimage import data

from curate.config import ConfigError, CurateConfig, DetectConfig
from curate.cropping import detect
from curate.cropping.job import make_cropper
from curate.schema import SourceImage

PHOTO = data.astronaut()[:300, :400]  # 400 wide: letterboxed to 64 x 48 of 64 x 64
IMAGE = SourceImage("folder/all/sub/a.jpg", "folder", "/photos/sub/a.jpg", policy="detect")


def yolo(path: Path, found: np.ndarray, by_red: np.ndarray | None = None, **settings):
    network = write_onnx(path / "a.onnx", found, np.zeros_like(found) if by_red is None else by_red)
    return detect.make_detector(DetectConfig("yolo", str(network), **settings))


def test_boxes_return_from_the_letterbox(tmp_path):
    # 64 / 400 pixels a pixel, and 8 gray rows above.
    detector = yolo(tmp_path, output((16, 20, 16, 16, 0.9, 0, 0), (48, 32, 16, 32, 0.5, 0.1, 0)))
    first, second = detector(PHOTO, IMAGE)
    assert first.xyxy == pytest.approx((50, 25, 150, 125))
    assert second.xyxy == pytest.approx((250, 50, 350, 250))
    assert (first.score, second.score) == pytest.approx((0.9, 0.5))
    assert (first.kind, detector.name) == ("person", "yolo")


def test_only_likely_people_stay(tmp_path):
    rows = [
        (16, 20, 16, 16, 0.34, 0, 0),  # unlikely
        (48, 20, 16, 16, 0.6, 0.7, 0),  # rather a bicycle
        (32, 30, 16, 16, 0.36, 0, 0),
        (32, 4, 16, 6, 0.9, 0, 0),  # in the gray
    ]
    assert [box.score for box in yolo(tmp_path, output(*rows))(PHOTO, IMAGE)] == [
        pytest.approx(0.36)
    ]


def test_the_best_of_overlapping_boxes_stays(tmp_path):
    rows = [(30, 30, 20, 20, 0.6, 0, 0), (31, 30, 20, 20, 0.8, 0, 0), (50, 30, 20, 20, 0.5, 0, 0)]
    detector = yolo(tmp_path, output(*rows))
    assert [round(box.score, 3) for box in detector(PHOTO, IMAGE)] == [0.8, 0.5]
    detector = yolo(tmp_path, output(*rows), iou=0.95, most=2)
    assert [round(box.score, 3) for box in detector(PHOTO, IMAGE)] == [0.8, 0.6]


def test_long_pictures_are_looked_at_in_tiles_too(tmp_path):
    # A tile of 300 pixels is scaled to all of the 64 x 64: the same box again in each of the two,
    # at (75, 75) to (150, 150) of the tile. In the whole picture it is a third larger.
    found = output((24, 24, 16, 16, 0.9, 0, 0), (60, 24, 8, 8, 0.8, 0, 0))
    whole = [box.xyxy for box in yolo(tmp_path, found)(PHOTO, IMAGE)]
    tiled = [box.xyxy for box in yolo(tmp_path, found, tile=300)(PHOTO, IMAGE)]
    assert whole == [pytest.approx((100, 50, 200, 150)), pytest.approx((350, 75, 400, 125))]
    inside = [pytest.approx((75, 75, 150, 150)), pytest.approx((175, 75, 250, 150))]
    assert all(box in tiled for box in [*whole, *inside])
    # The second box ends at its tile's right edge: cut in the left tile, real in the right one.
    rim = pytest.approx((362.5, 93.75, 400, 131.25))
    assert len(tiled) == 5 and rim in tiled


@pytest.mark.parametrize(("length", "tile"), [(10, 100), (100, 100), (101, 100), (1000, 300)])
def test_tiles_cover_a_length_and_overlap(length, tile):
    begins = detect.tile_starts(length, tile)
    assert begins[0] == 0 and begins[-1] == max(0, length - tile)
    steps = np.diff(begins)
    assert all(0 < step <= 0.75 * tile for step in steps)


def test_boxes_end_at_the_picture(tmp_path):
    box = yolo(tmp_path, output((60, 50, 20, 20, 0.9, 0, 0)))(PHOTO, IMAGE)[0]
    assert box.xyxy == pytest.approx((312.5, 200, 400, 300))


def test_the_network_gets_rgb_between_0_and_1(tmp_path):
    by_red = output((0, 0, 0, 0, 1, 0, 0))
    detector = yolo(tmp_path, output((32, 32, 20, 20, 0, 0, 0)), by_red, conf=0.1)
    photo = np.zeros((64, 64, 3), np.uint8)
    photo[..., 0] = 102
    assert detector(photo, IMAGE)[0].score == pytest.approx(0.4, rel=1e-4)
    assert detector(photo[..., ::-1].copy(), IMAGE) == ()


def test_the_letterbox_is_gray_and_keeps_the_aspect():
    batch, scale, offset = detect.letterbox(np.full((300, 400, 3), 255, np.uint8), 64)
    assert (batch.shape, scale, offset) == ((1, 3, 64, 64), 0.16, (0.0, 8.0))
    np.testing.assert_allclose(batch[0, :, :8], 114 / 255)
    np.testing.assert_allclose(batch[0, :, 8:56], 1.0)
    np.testing.assert_allclose(batch[0, :, 56:], 114 / 255)


def test_files_that_are_no_detector_are_named(tmp_path):
    other = write_onnx(tmp_path / "b.onnx", np.zeros((1, 8, 6)), np.zeros((1, 8, 6)))
    detector = detect.make_detector(DetectConfig("yolo", str(other)))
    with pytest.raises(ConfigError, match="b.onnx: gives"):
        detector(PHOTO, IMAGE)
    (tmp_path / "c.onnx").write_bytes(b"no network")
    with pytest.raises(ConfigError, match="c.onnx: not a network"):
        detect.make_detector(DetectConfig("yolo", str(tmp_path / "c.onnx")))


def test_a_detector_is_loaded_once_a_process(tmp_path):
    def loaded(found: np.ndarray) -> detect.Detector:
        network = write_onnx(tmp_path / "a.onnx", found, np.zeros_like(found))
        config = CurateConfig(detect=DetectConfig("yolo", str(network)))
        _, detector, _ = make_cropper(config).args
        assert make_cropper(config).args[1] is detector
        return detector

    # Another file under the same name is another detector.
    found = [output((32, 32, side, side, 0.9, 0, 0)) for side in (16, 32)]
    assert [loaded(f)(PHOTO, IMAGE)[0].xyxy[0] for f in found] == pytest.approx([150, 100])


def test_ultralytics_gets_bgr_and_this_projects_thresholds(tmp_path, monkeypatch):
    (tmp_path / "ultralytics.py").write_text(
        textwrap.dedent(
            """
            from types import SimpleNamespace
            import numpy as np

            class YOLO:
                def __init__(self, path):
                    self.path = path

                def predict(self, source, **options):
                    expected = {"classes": [0], "max_det": 300, "verbose": False}
                    assert options == {**expected, "conf": 0.35, "iou": 0.6, "imgsz": 640}
                    score = np.array([source[..., 2].mean() / 255])
                    boxes = SimpleNamespace(xyxy=np.array([[1.0, 2, 3, 4]]), conf=score)
                    return [SimpleNamespace(boxes=boxes)]
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    photo = np.zeros((8, 8, 3), np.uint8)
    photo[..., 0] = 255
    boxes = detect.make_detector(DetectConfig("yolo", "yolo11n.pt"))(photo, IMAGE)
    monkeypatch.delitem(sys.modules, "ultralytics")
    assert [(box.xyxy, box.score) for box in boxes] == [((1, 2, 3, 4), 1.0)]


def test_without_ultralytics_its_licence_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ConfigError, match="AGPL-3.0"):
        detect.make_detector(DetectConfig("yolo", "yolo11n.pt"))


def boxes_csv(path: Path, text: str) -> DetectConfig:
    path.write_text(text)
    return DetectConfig("boxes", str(path))


def test_boxes_of_a_csv_belong_to_paths(tmp_path):
    text = "path,x0,y0,x1,y1,score\nsub/a.jpg,1,2,3.5,4,0.5\na.jpg,9,9,19,19,\nsub/a.jpg,5,6,7,8,\n"
    detector = detect.make_detector(boxes_csv(tmp_path / "boxes.csv", text))
    found = detector(PHOTO, IMAGE)
    assert [(box.xyxy, box.score) for box in found] == [((1, 2, 3.5, 4), 0.5), ((5, 6, 7, 8), 1.0)]
    assert detector(PHOTO, SourceImage("folder/all/b.jpg", "folder", "/photos/b.jpg")) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,x0,y0,x1,y1\n", "path,x0,y0,x1,y1"),
        ("path,x0,y0,x1,y1\na,1,2,3,four\n", "line 2"),
        ("path,x0,y0,x1,y1\na,1,2,3,4\nb,1,2\n", "line 3"),
        ("", "path,x0,y0,x1,y1"),
    ],
)
def test_a_csv_that_is_not_understood(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        detect.make_detector(boxes_csv(tmp_path / "boxes.csv", text))


def test_the_whole_picture_is_a_box():
    box = detect.make_detector(DetectConfig("whole-image"))(PHOTO, IMAGE)[0]
    assert box.xyxy == (0, 0, 400, 300)


def test_hog_is_gone_and_its_sets_stay():
    assert detect.describe(DetectConfig("hog")) == {"kind": "hog"}
    detect.check(DetectConfig("hog"), needed=True)
    with pytest.raises(ConfigError, match="hog is gone"):
        detect.make_detector(DetectConfig("hog"))


@pytest.mark.parametrize(
    ("config", "needed", "words"),
    [
        (DetectConfig(), True, "whole-image"),
        (DetectConfig("face"), False, "no detector 'face'"),
        (DetectConfig("yolo", "none.onnx"), True, "none.onnx"),
        (DetectConfig("boxes"), True, "--detector_weights FILE"),
        (DetectConfig("ssd"), True, "--detector_weights FILE"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(config, needed, words):
    with pytest.raises(ConfigError, match=words):
        detect.check(config, needed)


def test_labelled_sources_need_no_detector():
    detect.check(DetectConfig(), needed=False)
    with pytest.raises(ConfigError, match="need --detector"):
        detect.make_detector(DetectConfig())(PHOTO, IMAGE)


def test_identity_changes_with_the_weights_and_what_matters(tmp_path):
    path = write_onnx(tmp_path / "a.onnx", output(), output())
    before = detect.describe(DetectConfig("yolo", str(path)))
    assert before == detect.describe(DetectConfig("yolo", str(path)))
    assert before != detect.describe(DetectConfig("yolo", str(path), conf=0.5))
    write_onnx(path, output((1, 1, 1, 1, 1, 1, 1)), output())
    assert before["sha256"] != detect.describe(DetectConfig("yolo", str(path)))["sha256"]
