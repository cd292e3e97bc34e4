"""An ONNX file in 8 bits, of a network whose channels are of very different ranges."""

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from osdhuman_jax.inference.int8 import quantise

SIDE = 16
RANGES = np.array([100.0, 1.0, 0.01], np.float32)  # of the convolution's three channels


def network() -> nnx.Conv:
    """A convolution that smooths each channel and scales it by its own range."""
    layer = nnx.Conv(3, 3, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
    kernel = np.einsum("io,o->io", np.eye(3), RANGES)[None, None] * np.full((3, 3, 1, 1), 1 / 9)
    layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
    return layer


def exact_file(layer: nnx.Conv, path) -> None:
    """uint8 pictures -> the convolution -> each channel back in [0, 255] -> uint8."""
    kernel = np.ascontiguousarray(np.transpose(layer.kernel[...], (3, 2, 0, 1)))
    bias = np.asarray(layer.bias[...])
    constants = {"kernel": kernel, "bias": bias, "range": RANGES[:, None, None]}
    steps = [
        helper.make_node("Cast", ["pictures"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel", "bias"], ["ranged"], name="conv"),
        helper.make_node("Div", ["ranged", "range"], ["levels"]),
        helper.make_node("Transpose", ["levels"], ["pixels"], perm=[0, 2, 3, 1]),
        helper.make_node("Round", ["pixels"], ["rounded"]),
        helper.make_node("Clip", ["rounded"], ["bounded"]),
        helper.make_node("Cast", ["bounded"], ["restored"], to=TensorProto.UINT8),
    ]
    picture = [1, SIDE, SIDE, 3]
    smaller = [1, SIDE - 2, SIDE - 2, 3]
    graph = helper.make_graph(
        steps,
        "exact",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, picture)],
        [helper.make_tensor_value_info("restored", TensorProto.UINT8, smaller)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def test_a_channel_of_small_values_is_rounded_by_its_own_range(tmp_path):
    layer, exact, made = network(), tmp_path / "exact.onnx", tmp_path / "made.onnx"
    exact_file(layer, exact)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(4)]
    # Eight bits of the input, the weights and the result: by one range for all three channels the
    # second would have three levels left and the third none.
    assert quantise(exact, made, layer, pictures) > 40
    session = onnxruntime.InferenceSession(made)
    (restored,) = session.run(None, {"pictures": pictures[0][None]})
    want = np.mean([pictures[0][i : i + 14, j : j + 14] for i in range(3) for j in range(3)], 0)
    gap = np.abs(restored[0] - want).mean((0, 1))
    assert np.all(gap < 1.5) and np.all(np.ptp(restored[0], (0, 1)) > 50)
