"""Weights in ncnn's format, of a network that must be RRDBNet: NAME.param beside NAME.bin.

The .param is a text: a magic number, the counts of layers and blobs, then a layer a line ("kind
name inputs outputs, their names, key=value ..."). The .bin holds, for each convolution in that
order, a tag of four bytes, the weights (out, in, 3, 3) as the tag says, padded to four bytes, and
the biases in float32. Neither names the tensors: they follow from the order, which is why the text
is proved to be RRDBNet's first.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osdhuman_jax.weights.torch_files import Tensor, WeightsError

# Of the format (ncnn's wiki, "param and model file structure"), and of RRDBNet in it.
MAGIC = "7767517"
TAGS = {0x01306B47: np.dtype(np.float16), 0: np.dtype(np.float32)}
LIMIT = 16 << 20  # bytes of a .param; Real-ESRGAN's has 117,030
OUTER = 6  # convolutions that are not of a block
INNER = 15  # convolutions of a block: three dense blocks of five

# What the layers' numbered settings must be; the sizes (0 and 6 of a convolution) are free.
CONVOLUTION = {"1": "3", "4": "1", "5": "1"}  # kernel, padding, bias
LEAKY = {"9": "2", "-23310": "1,0.2"}  # activation, slope
DEFAULTS = {"2": "1", "3": "1", "11": "3", "12": "1", "13": "1", "14": "1"}  # may be left out
OTHERS = {  # settings of zero are left out: they are the format's defaults
    "Input": None,  # any
    "Split": None,
    "Concat": {},  # along the channels
    "Eltwise": {"0": "1", "-23301": "2,0.2,1"},  # 0.2 of the residual plus all of the input
    "BinaryOp": {},  # a sum
    "Interp": {"0": "1", "1": "2", "2": "2"},  # nearest, twice as high and wide
}


@dataclass(frozen=True)
class Convolution:
    """One convolution of a .param: outputs and number of weights."""

    outputs: int
    weights: int


def read_ncnn(path: Path) -> dict[str, Tensor]:
    """Tensors by BasicSR's names, still unread; `path` is either of the two files.

    Raises WeightsError where one of them is missing or is no RRDBNet's.
    """
    param, weights = path.with_suffix(".param"), path.with_suffix(".bin")
    # Either was named: both are needed.
    for file in (param, weights):
        if not file.is_file():
            raise WeightsError(f"{file}: missing; ncnn's weights are a .param beside a .bin")
    convolutions = read_param(param)
    names = names_in_order((len(convolutions) - OUTER) // INNER)
    return _read_bin(weights, convolutions, names)


def names_in_order(blocks: int) -> list[str]:
    """BasicSR's names of RRDBNet's convolutions as they are computed."""
    body = [
        f"body.{block}.rdb{dense}.conv{conv}"
        for block in range(blocks)
        for dense in (1, 2, 3)
        for conv in (1, 2, 3, 4, 5)
    ]
    return ["conv_first", *body, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def read_param(path: Path) -> list[Convolution]:
    """Convolutions of a .param in order. Raises WeightsError where it is not RRDBNet's."""
    if path.stat().st_size > LIMIT:
        raise WeightsError(f"{path}: more than {LIMIT} bytes, so no network's description")
    # Bytes that are no text are replaced: such a file fails at its first line.
    lines = path.read_text(errors="replace").split("\n")
    if lines[0].strip() != MAGIC:
        raise WeightsError(f"{path}: not a .param of ncnn (it does not begin with {MAGIC})")
    # The second line counts layers and blobs, which tells a truncated file.
    rows = [line.split() for line in lines[2:] if line.strip()]
    layers = [_layer(path, row) for row in rows]
    declared = lines[1].split()[:1] if len(lines) > 1 else []
    if declared != [str(len(layers))]:
        raise WeightsError(f"{path}: truncated, or it has another number of layers than it says")
    convolutions = [settings for kind, settings in layers if kind == "Convolution"]
    # Kinds and numbers of layers, then each convolution in its place.
    _check_layers(path, [kind for kind, _ in layers], len(convolutions))
    names = names_in_order((len(convolutions) - OUTER) // INNER)
    pairs = zip(names, convolutions, strict=True)
    return [_convolution(path, name, settings) for name, settings in pairs]


def _layer(path: Path, row: list[str]) -> tuple[str, dict[str, str]]:
    """Kind and settings of a line, the numbers in one spelling."""
    kind = row[0]
    if kind != "Convolution" and kind not in OTHERS:
        raise WeightsError(f"{path}: not RRDBNet: it has a layer of kind {kind:.40}")
    try:
        # Kind, name, two counts, that many names of blobs, then the settings.
        first = 4 + int(row[2]) + int(row[3])
        settings = dict(field.split("=") for field in row[first:])
        settings = {key: _plain(value) for key, value in settings.items()}
    except (ValueError, IndexError):
        raise WeightsError(f"{path}: a line that is no layer ({' '.join(row):.60})") from None
    # A setting of another value would be another network.
    needed = OTHERS.get(kind)
    if needed is not None and needed != {k: v for k, v in settings.items() if v != "0"}:
        raise WeightsError(f"{path}: {row[1]:.40} is not what RRDBNet has as {kind}")
    return kind, settings


def _plain(text: str) -> str:
    """Numbers of a setting in their shortest form: 1,2.000000e-01 as 1,0.2."""
    numbers = map(float, text.split(","))
    return ",".join(str(int(n)) if n.is_integer() else f"{n:g}" for n in numbers)


def _check_layers(path: Path, kinds: list[str], convolutions: int) -> None:
    """Raise WeightsError unless there are as many layers of each kind as in RRDBNet."""
    # In a block: twelve joins, three inner residuals and an outer one.
    blocks, rest = divmod(convolutions - OUTER, INNER)
    counts = {"Input": 1, "Concat": 12 * blocks, "Eltwise": 4 * blocks, "BinaryOp": 1, "Interp": 2}
    if blocks < 1 or rest or any(kinds.count(kind) != n for kind, n in counts.items()):
        text = ", ".join(f"{kinds.count(kind)} {kind}" for kind in counts)
        raise WeightsError(f"{path}: not RRDBNet's layers ({convolutions} Convolution, {text})")


def _convolution(path: Path, name: str, settings: dict[str, str]) -> Convolution:
    """A convolution that is what RRDBNet has in its place. Raises WeightsError otherwise."""
    # All others are followed by a leaky ReLU, which ncnn folds into them.
    linear = name in ("conv_first", "conv_body", "conv_last") or name.endswith("conv5")
    wanted = CONVOLUTION | ({} if linear else LEAKY)
    have = {k: v for k, v in settings.items() if k not in "06" and DEFAULTS.get(k) != v}
    sizes = [settings.get(key, "") for key in "06"]
    if have != wanted or not all(size.isdecimal() and int(size) for size in sizes):
        raise WeightsError(f"{path}: its convolution in the place of {name} is not RRDBNet's")
    outputs, weights = map(int, sizes)
    if weights % (9 * outputs):
        raise WeightsError(f"{path}: {weights} weights of {name} are no 3x3 kernels")
    return Convolution(outputs, weights)


def _read_bin(path: Path, convolutions: list[Convolution], names: list[str]) -> dict[str, Tensor]:
    """Weights and biases by name. Raises WeightsError unless they end where the file does."""
    if not path.stat().st_size:
        raise WeightsError(f"{path}: empty")
    # Mapped, not read: tensors are views that are read when they are written elsewhere.
    data = np.memmap(path, np.uint8, "r")
    found: dict[str, Tensor] = {}
    end = 0

    def taken(size: int) -> int:
        """Where the next `size` bytes begin."""
        nonlocal end
        begin, end = end, end + size
        if end > len(data):
            raise WeightsError(f"{path}: truncated: it ends within {name}")
        return begin

    for name, convolution in zip(names, convolutions, strict=True):
        at = taken(4)
        # Weights behind their tag, which says how they are kept.
        tag = int.from_bytes(data[at : at + 4].tobytes(), "little")
        # Quantized weights have tags of their own.
        if tag not in TAGS:
            text = f"weights of tag {tag:#010x}; served are float16 and float32"
            raise WeightsError(f"{path}: {name} has {text}")
        # Halves of an odd number are padded to four bytes.
        outputs, count, dtype = convolution.outputs, convolution.weights, TAGS[tag]
        at = taken(-(-count * dtype.itemsize // 4) * 4)
        shape = (outputs, count // (9 * outputs), 3, 3)
        found[f"{name}.weight"] = _tensor(data, at, dtype, shape)
        at = taken(4 * outputs)
        found[f"{name}.bias"] = _tensor(data, at, np.dtype(np.float32), (outputs,))
    # Bytes that are left would mean that all before them were read as something else.
    if end != len(data):
        raise WeightsError(f"{path}: {len(data) - end} bytes more than its .param describes")
    return found


def _tensor(data: np.ndarray, at: int, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    return Tensor(shape, dtype, lambda: np.frombuffer(data[at : at + size], dtype).reshape(shape))
