"""An exported restorer whose U-Net computes in 8 bits, for laptops: onnxruntime's quantisation.

Goes in: an ONNX file of standalone.py, its U-Net, and pictures to calibrate by. Comes out: a file
with weights in int8, each output channel with a scale of its own, and activations in uint8, whose
ranges are those that the pictures show. It is in ONNX's own form, QuantizeLinear and
DequantizeLinear around a convolution, which onnxruntime and OpenVINO compute in integers.

The U-Net's convolutions alone are quantised. The VAE carries the picture itself, and in the bundled
one a good picture has activations ten times as large as a bad one: 8 bits for both are too few.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import UInt8

from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.degrade.mixture import LIGHTER
from osdhuman_jax.degrade.second_order import degrade, sample_rng
from osdhuman_jax.images.codec import read_rgb, to_float, to_uint8
from osdhuman_jax.images.listing import named_images
from osdhuman_jax.images.sizes import squash
from osdhuman_jax.inference.standalone import EXTRA, ExportError, weights_beside

Square = UInt8[np.ndarray, "s s 3"]
ENOUGH = 16  # pictures of a folder, each of which is restored twice


def shipped(side: int) -> list[Square]:
    """Two photographs of people that dependencies carry, degraded in each way, always alike."""
    # Neither library is needed for anything else here.
    import matplotlib.cbook
    import skimage.data

    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    made = []
    for index, photograph in enumerate((skimage.data.astronaut(), read_rgb(str(hopper)))):
        hq = to_uint8(squash(photograph, side))
        made.append(degrade(hq, sample_rng(0, index, 0), DegradationConfig())[0])
        # From none to little, so that the ranges are those of all that people bring.
        ways = enumerate(LIGHTER.values(), start=1)
        made += [lighter(hq, sample_rng(0, index, number)) for number, lighter in ways]
    return made


def pictures_of(folder: Path, side: int) -> list[Square]:
    """A folder's first pictures, as they are but for their size. Raises ValueError or OSError."""
    files = list(named_images(folder).values())[:ENOUGH]
    return [to_uint8(squash(read_rgb(path), side)) for path in files]


def quantise(exact: Path, made: Path, unet: nnx.Module, pictures: Sequence[Square]) -> float:
    """Write a file with its U-Net in 8 bits to `made`; says how close to it that is, in dB.

    That is the worst peak signal-to-noise ratio over `pictures`, which are of the file's size. The
    weights lie beside `made` where those of `exact` do. Raises ExportError.
    """
    try:
        import onnx
        import onnxruntime
        from onnxruntime import quantization
    except ImportError:
        raise ExportError(EXTRA) from None
    # It tells of each constant that it leaves out.
    onnxruntime.set_default_logger_severity(3)
    inputs = _batches(exact, pictures)
    large = weights_beside(exact).exists()
    # On the disk that has room for `made`.
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        # What is computed of constants becomes one: a kernel stands as its convolution has it.
        # `quant_pre_process`, which does that and more, fails at shapes of the converter's.
        plain = Path(folder, "plain.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(plain)
        if large:
            key = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(key, weights_beside(plain).name)
        _session(exact, options)
        nodes = _convolutions(onnx.load(plain).graph, unet)
        quantization.quantize_static(
            plain,
            made,
            _reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            # The kind, too: of every other node's results the ranges would be taken for nothing.
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=nodes,
            per_channel=True,
            # Weights of 7 bits: without VNNI, x86's sums of two products overflow 16 bits.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=large,
        )
    return _closeness(exact, made, inputs)


def _batches(exact: Path, pictures: Sequence[Square]) -> list[dict[str, np.ndarray]]:
    """What the file is fed with: each picture as often as its batch is large."""
    (wanted,) = _session(exact).get_inputs()
    return [{wanted.name: np.repeat(picture[None], wanted.shape[0], 0)} for picture in pictures]


def _convolutions(graph: Any, unet: nnx.Module) -> list[str]:
    """Names of the nodes that are the U-Net's convolutions. Raises ExportError if none is.

    Where it enlarges, several kernels are made of one (`upsampled`): these stay in float32.
    """
    from onnx import numpy_helper

    kernels = {
        np.ascontiguousarray(np.transpose(layer.kernel[...], (3, 2, 0, 1))).tobytes()
        for _, layer in nnx.iter_modules(unet)
        if isinstance(layer, nnx.Conv)
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = [
        node.name
        for node in graph.node
        if node.op_type == "Conv"
        and node.input[1] in constants
        and numpy_helper.to_array(constants[node.input[1]]).tobytes() in kernels
    ]
    # An empty list would mean all of them to onnxruntime.
    if not found:
        raise ExportError("none of the U-Net's convolutions stands in the ONNX file as one")
    return found


def _reader(inputs: list[dict[str, np.ndarray]]) -> Any:
    """The inputs in onnxruntime's form of an iterator."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    return Reader()


def _closeness(exact: Path, small: Path, inputs: list[dict[str, np.ndarray]]) -> float:
    """The worst peak signal-to-noise ratio, in dB, of what the one file gives to the other's."""
    first, second = _session(exact), _session(small)
    worst = 0.0
    for fed in inputs:
        apart = [to_float(session.run(None, fed)[0]) for session in (first, second)]
        worst = max(worst, float(np.square(apart[0] - apart[1]).mean()))
    return float("inf") if worst == 0 else 10 * float(np.log10(4 / worst))


def _session(file: Path, options: Any = None) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
