"""An exported restorer whose U-Net computes in 8 bits, for laptops: onnxruntime's quantisation.

Goes in: an ONNX file of standalone.py, its U-Net, and pictures to calibrate by. Comes out: a file
with weights in int8, each output channel with a scale of its own, and activations in uint8, whose
ranges are those that the pictures show. It is in ONNX's own form, QuantizeLinear and
DequantizeLinear around a convolution, which onnxruntime and OpenVINO compute in integers.

The U-Net's convolutions alone are quantised. The VAE carries the picture itself, and in the bundled
one a good picture has activations ten times as large as a bad one: 8 bits for both are too few. The
same holds of the U-Net's shortcuts, kernels of 1 x 1, through which the sum of all blocks before
goes; they are little work. The result of a convolution has one range for all of its channels,
though one may be a hundred times as wide as another: before, all are given the range from 0 to 1 by
kernel and bias, and behind, in float32, their own again.
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
        model = onnx.load(plain)
        nodes = _convolutions(model.graph, unet)
        _even_out(model, nodes, inputs, Path(folder))
        quantization.quantize_static(
            model,
            made,
            _reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            # The kind, too: of every other node's results the ranges would be taken for nothing.
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=[node.name for node in nodes],
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


def _convolutions(graph: Any, unet: nnx.Module) -> list[Any]:
    """Nodes that are the U-Net's convolutions but its shortcuts. Raises ExportError if none is.

    Where it enlarges, several kernels are made of one (`upsampled`): these stay in float32.
    """
    from onnx import numpy_helper

    kernels = {
        np.ascontiguousarray(np.transpose(layer.kernel[...], (3, 2, 0, 1))).tobytes()
        for _, layer in nnx.iter_modules(unet)
        if isinstance(layer, nnx.Conv) and layer.kernel_size != (1, 1)
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = [
        node
        for node in graph.node
        if node.op_type == "Conv"
        and node.input[1] in constants
        and numpy_helper.to_array(constants[node.input[1]]).tobytes() in kernels
    ]
    # An empty list would mean all of them to onnxruntime.
    if not found:
        raise ExportError("none of the U-Net's convolutions stands in the ONNX file as one")
    return found


def _even_out(
    model: Any, nodes: Sequence[Any], inputs: list[dict[str, np.ndarray]], folder: Path
) -> None:
    """Give all channels of each convolution's result the range from 0 to 1, and undo it behind."""
    from onnx import helper, numpy_helper

    ranges = _ranges(model, nodes, inputs, folder)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    behind: dict[str, list[Any]] = {}
    for node in nodes:
        low, high = ranges[node.name]
        # A channel that is constant has no width.
        width = np.maximum(high - low, np.float32(1e-6))
        kernel, *bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        made = {
            "kernel": kernel / width[:, None, None, None],
            "bias": ((bias[0] if bias else 0) - low) / width,
            "width": width[:, None, None],
            "low": low[:, None, None],
        }
        names = {key: f"{node.name}_{key}" for key in made}
        graph.initializer.extend(numpy_helper.from_array(a, names[key]) for key, a in made.items())
        (result,) = node.output
        even, wide = f"{result}_even", f"{result}_wide"
        node.input[1:] = [names["kernel"], names["bias"]]
        node.output[0] = even
        behind[node.name] = [
            helper.make_node("Mul", [even, names["width"]], [wide]),
            helper.make_node("Add", [wide, names["low"]], [result]),
        ]
    ordered = [each for node in graph.node for each in (node, *behind.get(node.name, ()))]
    del graph.node[:]
    graph.node.extend(ordered)


def _ranges(
    model: Any, nodes: Sequence[Any], inputs: list[dict[str, np.ndarray]], folder: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The least and the greatest value of each channel of each node's result, by node."""
    import onnx

    told = onnx.ModelProto()
    told.CopyFrom(model)
    results = [node.output[0] for node in nodes]
    float32 = onnx.TensorProto.FLOAT
    told.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, float32, None) for name in results
    )
    # By files of any size: a message of more than 2 GiB cannot be given.
    path = folder / "told.onnx"
    onnx.save(told, path, save_as_external_data=True, location=weights_beside(path).name)
    session = _session(path)
    ends = []
    for fed in inputs:
        values = session.run(results, fed)
        ends.append([(v.min((0, 2, 3)), v.max((0, 2, 3))) for v in values])
    return {
        node.name: (np.min([low for low, _ in seen], 0), np.max([high for _, high in seen], 0))
        for node, seen in zip(nodes, zip(*ends, strict=True), strict=True)
    }


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
