"""BlazePose in use: anchors, people of the detector's output, geometry and back, its files."""

import zipfile
from contextlib import suppress

import numpy as np
import pytest

from osdhuman_jax.inference import poses
from osdhuman_jax.inference.poses import (
    BlazePose,
    Pose,
    anchors,
    people,
    read_files,
    structure,
)
from osdhuman_jax.weights.torch_files import WeightsError


def detections(*found: tuple[int, float, tuple]) -> tuple[np.ndarray, np.ndarray]:
    """The detector's output: (anchor, logit, hips and rim in pixels of its square) of each."""
    boxes, logits = np.zeros((2254, 12), np.float32), np.full(2254, -9.0, np.float32)
    for at, logit, points in found:
        cell = 224 * anchors()[at]
        boxes[at, 2:4] = 60  # a box of 60 pixels around its cell
        boxes[at, 4:8] = (np.array(points) - cell).ravel()
        logits[at] = logit
    return boxes, logits


def test_anchors_are_the_centres_of_three_grids():
    found = anchors()
    assert found.shape == (2254, 2)
    assert found[0].tolist() == found[1].tolist() == [0.5 / 28] * 2
    assert found[2].tolist() == [1.5 / 28, 0.5 / 28]
    assert found[-1].tolist() == [6.5 / 7] * 2


def test_people_are_those_that_are_sure_and_apart():
    hips, rim = (100.0, 110.0), (100.0, 40.0)
    far = 27 * 28 * 2 + 27 * 2
    doubtful = (5, -0.1, (rim, rim))
    same = (800, 2.0, (hips, rim)), (802, 3.0, (rim, hips))
    output = detections(*same, (far, 1.0, (hips, hips)), doubtful)
    first, second = people(*output)
    np.testing.assert_allclose(first, [rim, hips], atol=1e-4)
    np.testing.assert_allclose(second, [hips, hips], atol=1e-4)


@pytest.mark.parametrize("size", [(400, 300), (1000, 2400)])
def test_what_the_networks_see_is_found_in_the_picture_again(size):
    """A person who leans: the landmarker is shown an upright one, and its points come back."""
    height, width = size
    scale, seen = max(size) / 224, {}
    hips, rim = np.array([112.0, 112.0]), np.array([142.0, 100.0])  # leans to the right

    def detector(square: np.ndarray):
        seen["square"] = square
        boxes, logits = detections((1000, 4.0, (hips, rim)))
        return boxes[None], logits[None, :, None]

    def landmarker(cut: np.ndarray):
        seen["cut"] = cut
        rows = np.zeros((39, 5), np.float32)
        rows[:, 3] = -1.0
        rows[0] = 128, 28, 0, 5, 5  # the nose, straight above the hips
        rows[23] = 128, 128, 0, 5, 5
        mask = np.full((1, 256, 256, 1), -20.0, np.float32)
        mask[:, 96:160, 96:160] = 20
        return rows.reshape(1, 195), np.array([[0.9]], np.float32), mask

    # Where the hips are the picture is white.
    offset = (np.array([width, height]) - max(size)) / 2
    there = hips * scale + offset
    rgb = np.zeros((*size, 3), np.uint8)
    x, y, radius = *there.astype(int), max(size) // 40
    rgb[y - radius : y + radius, x - radius : x + radius] = 255
    (pose,) = BlazePose(detector, landmarker)(rgb)
    assert seen["square"].shape == (1, 224, 224, 3) and seen["square"].min() == -1
    assert seen["square"][0, 111:113, 111:113].min() > 0.9
    assert seen["cut"].shape == (1, 256, 256, 3) and seen["cut"][0, 127:129, 127:129].min() > 0.9
    # A hundred of the 128 pixels that reach 1.25 times as far as the rim.
    np.testing.assert_allclose(pose.points[11], there, atol=0.02 * max(size))
    nose = there + (rim - hips) * scale * 1.25 * 100 / 128
    np.testing.assert_allclose(pose.points[0], nose, atol=0.02 * max(size))
    assert np.flatnonzero(pose.seen).tolist() == [0, 11]
    assert pose.outline.shape == size and pose.outline[y, x] and not pose.outline[0, 0]
    side = 64 / 256 * 2 * 1.25 * np.hypot(*(rim - hips)) * scale
    assert pose.outline.sum() == pytest.approx(side**2, rel=0.05)
    # The same as scores and as an attention map, where nobody is sure of anything.
    found = structure([pose], size)
    assert found.people.shape == (1, 18, 3) and found.people[0, 0, 2] == pytest.approx(
        0.99331, 1e-4
    )
    np.testing.assert_allclose(found.people[0, 0, :2], pose.points[0], rtol=1e-6)
    assert found.attention.dtype == np.float32 and found.attention.shape == size
    assert found.attention[y, x] > 0.999 and found.attention[0, 0] < 0.001


def test_the_attention_is_the_surest_person_s():
    def person(at: slice, score: float) -> Pose:
        attention = np.zeros((8, 8), np.float32)
        attention[at] = score
        return Pose(np.zeros((17, 2)), np.full(17, score), attention)

    found = structure([person(slice(0, 5), 0.4), person(slice(4, 8), 0.9)], (8, 8))
    assert found.attention[:, 0].tolist() == pytest.approx([0.4] * 4 + [0.9] * 4)
    assert found.people[:, 1, 2].tolist() == pytest.approx([0.4, 0.9])
    people, attention = structure([], (4, 6))
    assert people.shape == (0, 18, 3) and attention.shape == (4, 6) and not attention.any()


def test_nobody_where_the_landmarker_finds_none():
    boxes, logits = detections((1000, 4.0, ((112, 112), (112, 50))))
    empty = np.zeros((1, 195)), np.array([[0.4]]), np.zeros((1, 256, 256, 1))
    pose = BlazePose(lambda _: (boxes[None], logits[None, :, None]), lambda _: empty)
    assert pose(np.zeros((64, 64, 3), np.uint8)) == []


def test_the_files_are_read_out_of_a_wheel_a_folder_or_not(tmp_path, monkeypatch):
    wheel, folder = tmp_path / "mediapipe.whl", tmp_path / "folder"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in poses.FILES:
            archive.writestr(f"mediapipe/modules/pose/{name}", name)
    (folder / "b").mkdir(parents=True)
    for name in poses.FILES:
        (folder / "b" / name).write_text(name)
    expected = [name.encode() for name in poses.FILES]
    assert read_files(wheel) == read_files(folder) == expected
    (folder / "b" / poses.FILES[1]).unlink()
    (tmp_path / "text").write_text("text")
    cases = {
        folder: "has no pose_detection.tflite or no pose_landmark_full.tflite; pip download",
        tmp_path / "text": "no wheel of mediapipe and no folder",
        tmp_path / "none": "no wheel of mediapipe and no folder",
    }
    for path, said in cases.items():
        with pytest.raises(WeightsError, match=f"{path}: {said}"):
            read_files(path)
    with pytest.raises(WeightsError, match="pose_detection.tflite: not a .tflite file"):
        poses.load_blazepose(wheel)
    monkeypatch.setattr(poses, "PACKAGE", "a-package-that-is-not-there")
    with pytest.raises(WeightsError, match="not installed: pip download mediapipe==0.10.21"):
        read_files(None)


def test_layers_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    files = pytest.importorskip("tflite_files")
    for shape, said in (((1, 5), "layers that do not fit: "), ((4, 1), "computes other shapes")):
        f = files.File()
        x = f.tensor(1, 2, 2, 1)
        kind = "RESHAPE" if shape == (1, 5) else "LOGISTIC"
        data = f.bytes(x, [f.layer(kind, [x], shape)])
        monkeypatch.setattr(poses, "SHAPES", {poses.FILES[0]: [(1, 2, 2, 1), shape]})
        with pytest.raises(WeightsError, match=f"damaged: .*{said}") as error:
            poses._network(poses.FILES[0], data)
        assert "\n" not in str(error.value)


def test_a_wheel_that_is_cut_or_too_large_is_one_line(tmp_path, monkeypatch):
    wheel = tmp_path / "mediapipe.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in poses.FILES:
            archive.writestr(f"mediapipe/{name}", np.random.default_rng(0).bytes(4000) + bytes(999))
    whole = wheel.read_bytes()
    monkeypatch.setattr(poses, "LARGEST", 4998)
    with pytest.raises(WeightsError, match="have more than 4998 bytes"):
        read_files(wheel)
    monkeypatch.undo()
    rng = np.random.default_rng(1)
    for _ in range(40):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            broken[at] ^= 1 << rng.integers(8)
        wheel.write_bytes(bytes(broken[: rng.integers(len(whole) // 2, len(whole) + 1)]))
        with suppress(WeightsError):
            read_files(wheel)


def test_other_networks_are_refused(tmp_path):
    files = pytest.importorskip("tflite_files")
    f = files.File()
    x = f.tensor(1, 4)
    for name in poses.FILES:
        (tmp_path / name).write_bytes(f.bytes(x, [f.layer("LOGISTIC", [x], (1, 4))]))
    with pytest.raises(WeightsError, match="pose_detection.tflite: not BlazePose's network"):
        poses.load_blazepose(tmp_path)
