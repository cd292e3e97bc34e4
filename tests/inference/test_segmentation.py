"""Somebody's segmentation network: layouts, classes, sizes, refusals."""

import builtins
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from refusals import one_line

from osdhuman_jax.inference.onnx_networks import OnnxError
from osdhuman_jax.inference.segmentation import Segmenter, read_classes

# Classes of the network below: none, and one for each colour.
CLASSES = {"Background": "background", "Red": "head", "Green": "left_leg", "Blue": "rest"}


def saved(path: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def network(path: Path, last: bool = False, numbers: bool = False, kind=TensorProto.FLOAT) -> Path:
    """Scores: 0.5 and the three channels; with `last` channels come last, also in the input."""
    first = [1, 3, 32, 48]
    entry = helper.make_tensor_value_info("x", kind, [1, 32, 48, 3] if last else first)
    axis = 3 if last else 1
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["f"], ["m"], axes=[axis]),
        helper.make_node("Mul", ["m", "zero"], ["z"]),
        helper.make_node("Add", ["z", "half"], ["h"]),
        helper.make_node("Concat", ["h", "f"], ["scores"], axis=axis),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=axis, keepdims=0),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
    ]
    name, of = ("best", TensorProto.INT64) if numbers else ("scores", TensorProto.FLOAT)
    out = helper.make_tensor_value_info(name, of, None)
    return saved(path, helper.make_graph(nodes, "g", [entry], [out], constants))


def table(path: Path, classes: object = CLASSES) -> Path:
    path.write_text(json.dumps(classes))
    return path


def picture() -> np.ndarray:
    """Quarters: black, red, green, blue."""
    rgb = np.zeros((64, 96, 3), np.uint8)
    rgb[:32, 48:, 0] = rgb[32:, :48, 1] = rgb[32:, 48:, 2] = 255
    return rgb


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_classes_become_labels_at_the_picture_s_size(tmp_path, last, numbers, kind):
    model = network(tmp_path / "a.onnx", last, numbers, kind)
    labels = Segmenter(model, table(tmp_path / "map.json"))(picture())
    assert labels.dtype == np.uint8 and labels.shape == (64, 96)
    assert labels[16, 24] == 0 and labels[16, 72] == 1 and labels[48, 24] == 4
    assert (labels[40:, 56:] == 6).all()


def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    model, classes = network(tmp_path / "a.onnx"), table(tmp_path / "map.json")
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    (tmp_path / "bad.json").write_text("{")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])
    node = helper.make_node("Identity", ["x"], ["y"])
    flat = saved(tmp_path / "flat.onnx", helper.make_graph([node], "g", [entry], [out]))
    wrong = table(tmp_path / "wrong.json", {"Hat": "hat"})
    cases = [
        (tmp_path / "none.onnx", classes, "none.onnx: no such file"),
        (tmp_path / "bad.onnx", classes, "bad.onnx: not a network that onnxruntime runs"),
        (flat, classes, r"flat.onnx: takes \[1, 5\], no batch of RGB pictures"),
        (model, tmp_path / "bad.json", "bad.json: not a json file"),
        (model, tmp_path / "none.json", "none.json: No such file"),
        (model, table(tmp_path / "list.json", [1]), "list.json: not an object of classes"),
        (model, wrong, 'class Hat is "hat", which is none of background, head'),
    ]
    for path, given, said in cases:
        with one_line(OnnxError, said):
            Segmenter(path, given)
    few = table(tmp_path / "few.json", {"Background": "background"})
    with pytest.raises(OnnxError, match="no scores of the 1 classes of --classes"):
        Segmenter(model, few)(picture())
    numbers = network(tmp_path / "numbers.onnx", numbers=True)
    with pytest.raises(OnnxError, match="gives a class that --classes does not have"):
        Segmenter(numbers, few)(picture())


def test_without_onnxruntime_one_line_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(OnnxError, match=r"pip install 'osdhuman-jax\[curate\]'"):
        Segmenter(tmp_path / "a.onnx", table(tmp_path / "map.json"))


def test_classes_are_numbered_in_their_order(tmp_path):
    assert read_classes(table(tmp_path / "map.json")).tolist() == [0, 1, 4, 6]
