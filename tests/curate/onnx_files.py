"""Networks of YOLO's outward form, written byte by byte: what they answer is known."""

from pathlib import Path

import numpy as np

SIZE, BOXES, CLASSES = 64, 12, 3


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    high, low = value >> 7, value & 127
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def tensor(name: str, array: np.ndarray) -> bytes:
    kind = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}[array.dtype]
    dims = b"".join(field(1, n) for n in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, array.tobytes())


def value(name: str, *shape: int) -> bytes:
    dims = b"".join(field(1, field(1, n)) for n in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def node(kind: str, inputs: list[str], output: str, attributes: bytes = b"") -> bytes:
    return b"".join(field(1, i) for i in inputs) + field(2, output) + field(4, kind) + attributes


def write_onnx(path: Path, output: np.ndarray, by_red: np.ndarray) -> Path:
    """A network that gives `output` + mean of the red channel * `by_red`, both (1, 4 + k, n)."""
    slope = np.zeros((3, output.size), np.float32)
    slope[0] = by_red.ravel()
    axes = field(5, field(1, "axes") + field(8, 2) + field(8, 3) + field(20, 7))
    keep = field(5, field(1, "keepdims") + field(3, 0) + field(20, 2))
    nodes = [
        node("ReduceMean", ["images"], "means", axes + keep),
        node("MatMul", ["means", "slope"], "product"),
        node("Add", ["product", "offset"], "sum"),
        node("Reshape", ["sum", "shape"], "output0"),
    ]
    constants = {
        "slope": slope,
        "offset": output.reshape(1, -1).astype(np.float32),
        "shape": np.array(output.shape, np.int64),
    }
    graph = b"".join(field(1, n) for n in nodes) + field(2, "test")
    graph += b"".join(field(5, tensor(name, array)) for name, array in constants.items())
    graph += field(11, value("images", 1, 3, SIZE, SIZE))
    graph += field(12, value("output0", *output.shape))
    path.write_bytes(field(1, 7) + field(8, field(2, 11)) + field(7, graph))
    return path


def output(*rows: tuple[float, ...]) -> np.ndarray:
    """(1, 4 + classes, boxes) from rows cx, cy, w, h, person, bicycle, car."""
    found = np.zeros((1, 4 + CLASSES, BOXES), np.float32)
    for place, numbers in enumerate(rows):
        found[0, :, place] = numbers
    return found
