"""Networks in TensorFlow Lite's format, read without TensorFlow: a graph and its weights.

    graph, weights = read_tflite(path.read_bytes(), str(path))

Read are float networks of the layers that networks/blazepose.py computes. Constants may be
float16, and sparse along their last axis: both are unfolded here. A file is a FlatBuffer: tables
whose fields are found through a table of offsets, so that fields may be left out. The numbers of
fields are those of TensorFlow's `schema.fbs`, whose tables are named where they are read.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from osdhuman_jax.networks.blazepose import Graph, Operation
from osdhuman_jax.weights.torch_files import WeightsError

Constants = dict[int, np.ndarray]

MAGIC = b"TFL3"  # at byte 4
LIMIT = 1 << 28  # numbers of a file's constants; BlazePose's landmarker has 3.2 million
CODES = {  # of BuiltinOperator
    0: "ADD",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE",
    14: "LOGISTIC",
    17: "MAX_POOL_2D",
    22: "RESHAPE",
    23: "RESIZE_BILINEAR",
    34: "PAD",
    124: "DENSIFY",
}
FOLDED = ("DEQUANTIZE", "DENSIFY")  # of constants: done while they are read
TYPES = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: np.dtype("<i4")}  # of TensorType
INDICES = {1: "i", 2: "H", 3: "B"}  # of SparseIndexVector: Int32, Uint16, Uint8
# Options of a layer: number of the field, its type (struct's), what it is where it is left out.
CONVOLUTION = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0)}
OPTIONS: dict[str, dict[str, tuple[int, str, int]]] = {
    "ADD": {"activation": (0, "b", 0)},
    "CONCATENATION": {"axis": (0, "i", 0), "activation": (1, "b", 0)},
    "CONV_2D": CONVOLUTION
    | {"activation": (3, "b", 0), "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1)},
    "DEPTHWISE_CONV_2D": CONVOLUTION
    | {
        "multiplier": (3, "i", 0),
        "activation": (4, "b", 0),
        "dilation_w": (5, "i", 1),
        "dilation_h": (6, "i", 1),
    },
    "DEPTH_TO_SPACE": {"block": (0, "i", 0)},
    "MAX_POOL_2D": CONVOLUTION
    | {"filter_w": (3, "i", 0), "filter_h": (4, "i", 0), "activation": (5, "b", 0)},
    "RESIZE_BILINEAR": {"corners": (2, "b", 0), "centres": (3, "b", 0)},
}
# What the layers are computed for; another value would be computed wrongly.
ALLOWED = {
    "padding": (0, 1),
    "dilation_w": (1,),
    "dilation_h": (1,),
    "multiplier": (1,),
    "corners": (0,),
    "centres": (1,),
}
ACTIVATED = {"CONCATENATION": (0,), "MAX_POOL_2D": (0,)}  # others may have ReLU and ReLU6 too


@dataclass(frozen=True)
class Table:
    """A FlatBuffer's table; `at` is where it begins in `data`."""

    data: bytes
    at: int

    def _field(self, number: int) -> int:
        """Where a field's value lies; 0 where it is left out."""
        offsets = self.at - self.number(self.at, "i")
        entry = 4 + 2 * number
        if entry >= self.number(offsets, "H"):
            return 0
        offset = self.number(offsets + entry, "H")
        return self.at + offset if offset else 0

    def number(self, at: int, kind: str) -> int:
        """An integer of struct's type at a place of the file. Raises struct.error beyond it."""
        if at < 0:
            raise struct.error("a place before the file")
        return struct.unpack_from(f"<{kind}", self.data, at)[0]

    def scalar(self, number: int, kind: str, default: int = 0) -> int:
        """An integer field."""
        at = self._field(number)
        return self.number(at, kind) if at else default

    def table(self, number: int) -> "Table | None":
        """A field that is a table, or a union's."""
        at = self._field(number)
        return Table(self.data, at + self.number(at, "I")) if at else None

    def vector(self, number: int, kind: str) -> np.ndarray:
        """A field that is a list of integers or of bytes; empty where it is left out."""
        at, dtype = self._field(number), np.dtype(f"<{kind}")
        if not at:
            return np.empty(0, dtype)
        start = at + self.number(at, "I")
        return np.frombuffer(self.data, dtype, self.number(start, "I"), start + 4)

    def tables(self, number: int) -> list["Table"]:
        """A field that is a list of tables."""
        at = self._field(number)
        if not at:
            return []
        start = at + self.number(at, "I")
        # Read as a list first: a count that the file cannot hold fails before anything is made.
        offsets = np.frombuffer(self.data, "<u4", self.number(start, "I"), start + 4).tolist()
        return [Table(self.data, start + 4 + 4 * i + o) for i, o in enumerate(offsets)]


def read_tflite(data: bytes, where: str) -> tuple[Graph, Constants]:
    """The graph of a .tflite file and its float32 constants; `where` is its name for messages.

    Raises WeightsError on anything that is no whole file, or no network that can be computed here.
    """
    if data[4:8] != MAGIC:
        raise WeightsError(f"{where}: not a .tflite file (it does not have {MAGIC.decode()})")
    try:
        return _read(data, where)
    # Whatever a damaged or hostile file makes of offsets and sizes.
    except (struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{where}: damaged: {type(error).__name__}: {error!s:.100}") from error


def _read(data: bytes, where: str) -> tuple[Graph, Constants]:
    model = Table(data, struct.unpack_from("<I", data)[0])
    codes = [_code(entry, where) for entry in model.tables(1)]
    (subgraph,) = model.tables(2)
    tensors, buffers = subgraph.tables(0), model.tables(4)
    # Constants as they are stored, then what the file says of them: wider, or without gaps.
    constants = _constants(tensors, buffers)
    operations = []
    for entry in subgraph.tables(3):
        operation = _operation(entry, codes, where)
        if operation.kind in FOLDED:
            constants[operation.outputs[0]] = constants[operation.inputs[0]]
        else:
            operations.append(operation)
    # What is computed from constants alone is float32; integers say how much is padded.
    floats = {n: c.astype(np.float32) for n, c in constants.items() if c.dtype.kind == "f"}
    integers = {n: tuple(c.ravel().tolist()) for n, c in constants.items() if c.dtype.kind == "i"}
    (entrance,) = subgraph.vector(1, "i4").tolist()
    shapes = tuple(tuple(tensor.vector(0, "i4").tolist()) for tensor in tensors)
    graph = Graph(
        tuple(operations), shapes, integers, entrance, tuple(subgraph.vector(2, "i4").tolist())
    )
    _check_order(graph, floats, where)
    used = {number for operation in operations for number in operation.inputs}
    return graph, {number: value for number, value in floats.items() if number in used}


def _code(entry: Table, where: str) -> str:
    """The kind that an OperatorCode names; older files have its number in another field."""
    number = max(entry.scalar(0, "b"), entry.scalar(3, "i"))
    if number not in CODES:
        raise WeightsError(f"{where}: has a layer of TensorFlow's kind {number}, not BlazePose's")
    return CODES[number]


def _operation(entry: Table, codes: list[str], where: str) -> Operation:
    """A layer with its options. Raises WeightsError on options that are not computed here."""
    kind = codes[entry.scalar(0, "I")]
    table = entry.table(4)
    options = {
        name: table.scalar(number, form, default) if table else default
        for name, (number, form, default) in OPTIONS.get(kind, {}).items()
    }
    allowed = ALLOWED | {"activation": ACTIVATED.get(kind, (0, 1, 3))}
    for name, value in options.items():
        if value not in allowed.get(name, (value,)):
            raise WeightsError(f"{where}: its {kind} has {name} {value}, not BlazePose's")
    inputs, outputs = (tuple(entry.vector(number, "i4").tolist()) for number in (1, 2))
    return Operation(kind, inputs, outputs, options)


def _constants(tensors: list[Table], buffers: list[Table]) -> Constants:
    """Every Tensor that has a Buffer with data, by number."""
    found: Constants = {}
    total = 0
    for number, tensor in enumerate(tensors):
        stored = buffers[tensor.scalar(2, "I")].vector(0, "u1")
        if not stored.size:
            continue
        values = stored.view(TYPES[tensor.scalar(1, "b")])
        shape, sparsity = tensor.vector(0, "i4").tolist(), tensor.table(6)
        # Tensors may share their data, and sparse ones may say that they are of any size.
        total += math.prod(shape)
        if min(shape, default=0) < 0 or total > LIMIT:
            raise ValueError(f"constants of more than {LIMIT} numbers")
        found[number] = (_dense(values, shape, sparsity) if sparsity else values).reshape(shape)
    return found


def _dense(values: np.ndarray, shape: list[int], sparsity: Table) -> np.ndarray:
    """A tensor of which each row holds only what is not zero (SparsityParameters, CSR)."""
    order, blocks, axes = (
        sparsity.vector(0, "i4").tolist(),
        sparsity.vector(1, "i4"),
        sparsity.tables(2),
    )
    formats = [axis.scalar(0, "b") for axis in axes]
    if order != list(range(len(shape))) or blocks.size or formats != [0] * (len(shape) - 1) + [1]:
        raise ValueError("sparse otherwise than along the last axis")
    ends, columns = (
        vector.vector(0, INDICES[axes[-1].scalar(kind, "B")])
        for kind, vector in ((2, axes[-1].table(3)), (4, axes[-1].table(5)))
        if vector
    )
    counts = np.diff(ends.astype(np.int64))
    fits = len(counts) == math.prod(shape[:-1]) and counts.min() >= 0
    if not fits or counts.sum() != len(values) or len(columns) != len(values):
        raise ValueError("a sparse tensor whose rows are not its numbers")
    dense = np.zeros((len(counts), shape[-1]), values.dtype)
    dense[np.repeat(np.arange(len(counts)), counts), columns] = values
    return dense


def _check_order(graph: Graph, floats: Constants, where: str) -> None:
    """That every layer finds its tensors, so that nothing fails while it is computed."""
    known = {graph.input, *floats, *graph.integers, -1}
    for operation in graph.operations:
        if len(operation.outputs) != 1 or not known.issuperset(operation.inputs):
            raise WeightsError(f"{where}: damaged: a {operation.kind} has no inputs")
        known |= set(operation.outputs)
    if not known.issuperset(graph.outputs):
        raise WeightsError(f"{where}: damaged: an output is of no layer")
