"""A small .tflite file, built by FlatBuffers' own library, with a layer of each kind that is read.

The numbers of fields are those of TensorFlow's schema.fbs. What the network computes is told by
`Layers`, from which a test computes it by other means.
"""

from dataclasses import dataclass, field

import flatbuffers
import numpy as np

FLOAT32, FLOAT16, INT32 = 0, 1, 2
OPERATORS = {
    "ADD": 0,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "DEPTH_TO_SPACE": 5,
    "DEQUANTIZE": 6,
    "LOGISTIC": 14,
    "MAX_POOL_2D": 17,
    "RESHAPE": 22,
    "RESIZE_BILINEAR": 23,
    "PAD": 34,
    "DENSIFY": 124,
}
# Of the union BuiltinOptions.
UNION = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "MAX_POOL_2D": 5, "CONCATENATION": 10, "ADD": 11}
UNION |= {"RESIZE_BILINEAR": 15, "DEPTH_TO_SPACE": 94}


@dataclass
class File:
    """Tensors and layers of a network, in their order; `bytes` writes them."""

    tensors: list[tuple] = field(default_factory=list)  # shape, type, data, columns of a sparse one
    layers: list[tuple] = field(default_factory=list)  # kind, inputs, outputs, options

    def tensor(self, *shape: int, data: np.ndarray | None = None, sparse: bool = False) -> int:
        kinds = {"f4": FLOAT32, "f2": FLOAT16, "i4": INT32}
        kind = FLOAT32 if data is None else kinds[data.dtype.str[1:]]
        self.tensors.append((shape, kind, data, sparse))
        return len(self.tensors) - 1

    def constant(self, data: np.ndarray, sparse: bool = False) -> int:
        return self.tensor(*data.shape, data=data, sparse=sparse)

    def layer(self, kind: str, inputs: list[int], shape: tuple[int, ...], **options) -> int:
        """`options`: field_0=(type of struct, value), .."""
        output = self.tensor(*shape)
        self.layers.append((kind, inputs, output, options))
        return output

    def bytes(self, entrance: int, outputs: list[int]) -> bytes:
        b = flatbuffers.Builder(1024)
        kinds = list(dict.fromkeys(kind for kind, *_ in self.layers))
        data = [None if d is None else stored(d, s) for _, _, d, s in self.tensors]
        buffers = [table(b, {} if d is None else {0: vector(b, d.view("u1"))}) for d in data]
        tensors = [
            table(
                b,
                {
                    0: vector(b, np.array(shape, "i4")),
                    1: ("b", kind),
                    2: ("I", index),
                    3: b.CreateString(f"tensor_{index}"),
                    6: sparsity(b, d) if sparse else None,
                },
            )
            for index, (shape, kind, d, sparse) in enumerate(self.tensors)
        ]
        operators = [
            table(
                b,
                {
                    0: ("I", kinds.index(kind)),
                    1: vector(b, np.array(inputs, "i4")),
                    2: vector(b, np.array([output], "i4")),
                    3: ("B", UNION.get(kind, 0)),
                    4: table(b, {int(k[6:]): v for k, v in options.items()}) if options else None,
                },
            )
            for kind, inputs, output, options in self.layers
        ]
        ends = (np.array([entrance], "i4"), np.array(outputs, "i4"))
        graph = table(
            b,
            {
                0: tables(b, tensors),
                1: vector(b, ends[0]),
                2: vector(b, ends[1]),
                3: tables(b, operators),
            },
        )
        codes = [
            table(b, {0: ("b", OPERATORS[k]), 2: ("i", 1), 3: ("i", OPERATORS[k])}) for k in kinds
        ]
        model = {
            0: ("I", 3),
            1: tables(b, codes),
            2: tables(b, [graph]),
            4: tables(b, buffers),
        }
        b.Finish(table(b, model), file_identifier=b"TFL3")
        return bytes(b.Output())


def stored(data: np.ndarray, sparse: bool) -> np.ndarray:
    flat = np.ascontiguousarray(data).ravel()
    return flat[flat != 0] if sparse else flat


def sparsity(b: flatbuffers.Builder, data: np.ndarray) -> int:
    """All axes dense but the last, which is CSR with 16-bit ends and 8-bit columns."""
    rows = data.reshape(-1, data.shape[-1])
    ends = np.concatenate([[0], np.cumsum((rows != 0).sum(axis=1))]).astype("u2")
    columns = np.nonzero(rows)[1].astype("u1")
    axes = [table(b, {0: ("b", 0), 1: ("i", side)}) for side in data.shape[:-1]]
    last = {
        0: ("b", 1),
        2: ("B", 2),
        3: table(b, {0: vector(b, ends)}),
        4: ("B", 3),
        5: table(b, {0: vector(b, columns)}),
    }
    order = np.arange(data.ndim, dtype="i4")
    return table(b, {0: vector(b, order), 2: tables(b, [*axes, table(b, last)])})


def vector(b: flatbuffers.Builder, values: np.ndarray) -> int:
    return b.CreateNumpyVector(np.ascontiguousarray(values))


def tables(b: flatbuffers.Builder, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def table(b: flatbuffers.Builder, fields: dict[int, int | tuple | None]) -> int:
    """A table of offsets, and of scalars as (type of struct, value)."""
    add = {"b": b.PrependInt8Slot, "B": b.PrependUint8Slot, "i": b.PrependInt32Slot}
    add["I"] = b.PrependUint32Slot
    b.StartObject(max(fields, default=-1) + 1)
    for slot, value in fields.items():
        if isinstance(value, tuple):
            add[value[0]](slot, value[1], 0)
        elif value is not None:
            b.PrependUOffsetTRelativeSlot(slot, value, 0)
    return b.EndObject()
