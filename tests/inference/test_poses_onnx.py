"""Somebody's pose network and detector: points come back through crops, other files are refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from osdhuman_jax.data.structures import COCO
from osdhuman_jax.inference.onnx_networks import OnnxError
from osdhuman_jax.inference.poses_onnx import OnnxPoses, YoloX

SIZE = (64, 48)  # height and width of what the pose network sees
SIDE = 64  # of the detector's square, which has 64 + 16 + 4 cells


def saved(path: Path, shape: list, outputs: dict[str, np.ndarray], gain: float = 0) -> Path:
    """A network that gives constants, and `gain` times the mean of the first channel besides."""
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    constants = [numpy_helper.from_array(v, f"{name}_") for name, v in outputs.items()]
    constants.append(numpy_helper.from_array(np.float32(gain), "gain"))
    constants.append(numpy_helper.from_array(np.int64(0), "first"))
    nodes = [helper.make_node("Gather", ["x", "first"], ["channel"], axis=1)]
    nodes.append(helper.make_node("ReduceMean", ["channel"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["mean", "gain"], ["much"]))
    nodes += [helper.make_node("Add", [f"{name}_", "much"], [name]) for name in outputs]
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in outputs.items()
    ]
    graph = helper.make_graph(nodes, "g", [entry], infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def pose_network(path: Path, count: int = 133, bins: float = 2, seen: int = 17) -> Path:
    """Joint i is at (2 + 2 i, 3 + 3 i) of the crop; those from `seen` on are nowhere."""
    x = np.zeros((1, count, int(SIZE[1] * bins)), np.float32)
    y = np.zeros((1, count, int(SIZE[0] * 2)), np.float32)
    for i in range(seen):
        x[0, i, 2 * (2 + 2 * i)], y[0, i, 2 * (3 + 3 * i)] = 0.9, 0.6
    return saved(path, [1, 3, *SIZE], {"simcc_x": x, "simcc_y": y})


def detector(path: Path, *boxes: tuple[int, float, float, float], count: int = 84) -> Path:
    """Boxes as (cell, size in strides, how sure, how much of a person)."""
    raw = np.zeros((1, count, 85), np.float32)
    for cell, size, sure, person in boxes:
        raw[0, cell, :4] = 0.5, 0.5, np.log(size), np.log(size)
        raw[0, cell, 4:6] = sure, person
    return saved(path, [1, 3, SIDE, SIDE], {"output": raw})


def picture(height: int = 100, width: int = 200) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize("count", [17, 133])
def test_the_whole_picture_is_the_box_without_a_detector(tmp_path, count):
    (person,) = OnnxPoses(pose_network(tmp_path / "p.onnx", count))(picture())
    # 200 x 1.25 pixels are 48 of the crop, whose middle is the picture's.
    scale, joint = 250 / 48, COCO.index(9)
    expected = (20 - 24) * scale + 100, (30 - 32) * scale + 50
    np.testing.assert_allclose(person[joint], [*expected, 0.6], rtol=1e-5)
    neck = ((13 - 24) * scale + 100, (19.5 - 32) * scale + 50, 0.6)
    np.testing.assert_allclose(person[1], neck, rtol=1e-5)


def test_people_are_those_of_the_detector(tmp_path):
    """A box of 4 strides around cell 9 (row 1, column 1), one that overlaps it, some too unlike."""
    boxes = (9, 4, 0.9, 0.8), (10, 4, 0.9, 0.9), (54, 2, 1.0, 0.9), (0, 1, 0.5, 0.5), (30, 1, 1, 0)
    found = YoloX(detector(tmp_path / "d.onnx", *boxes))(picture(32, 64))
    # 32 x 64 pixels lie in the upper half of the square, at their own size.
    np.testing.assert_allclose(found, [(44, 44, 60, 60), (4, -4, 36, 28)], atol=1e-4)
    half = YoloX(tmp_path / "d.onnx")(picture(64, 128))
    np.testing.assert_allclose(half, 2 * found, atol=1e-4)
    people = OnnxPoses(pose_network(tmp_path / "p.onnx"), tmp_path / "d.onnx")(picture(32, 64))
    # A crop's middle is its box's.
    centre = (people[:, COCO.index(11)] + people[:, COCO.index(11)])[:, :2] / 2
    np.testing.assert_allclose(centre[0] - [52, 52], [0, 4 * 20 / 48], atol=1e-3)
    assert people.shape == (2, 18, 3)


def test_where_nobody_is_found_the_picture_is_looked_at_and_hidden_people_are_none(tmp_path):
    none = detector(tmp_path / "d.onnx")
    shown = OnnxPoses(pose_network(tmp_path / "p.onnx"), none)(picture())
    np.testing.assert_array_equal(shown, OnnxPoses(tmp_path / "p.onnx")(picture()))
    hidden = OnnxPoses(pose_network(tmp_path / "q.onnx", seen=0), none)(picture())
    assert hidden.shape == (0, 18, 3)


def test_colours_are_as_each_network_was_trained(tmp_path):
    """Scores grow by the first channel: red by ImageNet's values, blue from 0 to 255."""
    outputs = {"sx": np.zeros((1, 17, 96), np.float32), "sy": np.zeros((1, 17, 128), np.float32)}
    red, blue = np.zeros((2, 64, 48, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    poses = OnnxPoses(saved(tmp_path / "p.onnx", [1, 3, *SIZE], outputs, gain=1))
    # The picture is 64 % of what is seen around it.
    values = (np.array([255, 0]) - 123.675) / 58.395
    assert poses(red)[0, 0, 2] == pytest.approx(values @ [0.64, 0.36], abs=0.05)
    assert not len(poses(blue))
    raw = {"output": np.zeros((1, 84, 85), np.float32)}
    boxes = YoloX(saved(tmp_path / "d.onnx", [1, 3, SIDE, SIDE], raw, gain=1 / 255))
    assert len(boxes(blue)) == 4
    # Of red only the gray beside the picture is seen: 114 / 255 of a quarter, squared.
    assert not len(boxes(red))


def test_networks_of_other_kinds_are_one_line(tmp_path):
    good, boxes = pose_network(tmp_path / "p.onnx"), detector(tmp_path / "d.onnx")
    flat = saved(tmp_path / "flat.onnx", [1, 5], {"y": np.zeros((1, 5), np.float32)})
    free = saved(tmp_path / "free.onnx", [1, 3, "h", "w"], {"y": np.zeros((1, 5), np.float32)})
    for path, said in (
        (flat, r"flat.onnx: takes \[1, 5\], no \(1, 3, height, width\)"),
        (free, "free.onnx: takes"),
        (tmp_path / "none.onnx", "none.onnx: no such file"),
    ):
        for make in (lambda p: OnnxPoses(p), lambda p: OnnxPoses(good, p)):
            with pytest.raises(OnnxError, match=said) as error:
                make(path)
            assert "\n" not in str(error.value)
    heat = saved(
        tmp_path / "heat.onnx", [1, 3, *SIZE], {"y": np.zeros((1, 17, 16, 12), np.float32)}
    )
    for poses, said in (
        (OnnxPoses(heat), r"heat.onnx: gives \[\(1, 17, 16, 12\)\], no histograms \(SimCC\)"),
        (OnnxPoses(pose_network(tmp_path / "f.onnx", 26)), "f.onnx: gives"),
        (OnnxPoses(pose_network(tmp_path / "g.onnx", bins=3)), "g.onnx: gives"),
        (OnnxPoses(good, detector(tmp_path / "e.onnx", count=80)), r"not \(1, 84, 85\) as a YOLOX"),
        (OnnxPoses(boxes), "d.onnx: gives"),
    ):
        with pytest.raises(OnnxError, match=said):
            poses(picture())
