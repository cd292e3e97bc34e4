"""Networks of YOLO's outward form, whose answers are known."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, BOXES, CLASSES = 64, 12, 3


def write_onnx(path: Path, output: np.ndarray, by_red: np.ndarray) -> Path:
    """A network that gives `output` + mean of the red channel * `by_red`, both (1, 4 + k, n)."""
    slope = np.zeros((3, output.size), np.float32)
    slope[0] = by_red.ravel()
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "slope"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["output0"]),
    ]
    offset, shape = output.reshape(1, -1).astype(np.float32), np.array(output.shape, np.int64)
    constants = {"slope": slope, "offset": offset, "shape": shape}
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    ends = [("images", (1, 3, SIZE, SIZE)), ("output0", output.shape)]
    entry, end = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends)
    graph = helper.make_graph(nodes, "test", [entry], [end], tensors)
    opset = helper.make_opsetid("", 11)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=7), path)
    return path


def output(*rows: tuple[float, ...]) -> np.ndarray:
    """(1, 4 + classes, boxes) from rows cx, cy, w, h, person, bicycle, car."""
    found = np.zeros((1, 4 + CLASSES, BOXES), np.float32)
    for place, numbers in enumerate(rows):
        found[0, :, place] = numbers
    return found
