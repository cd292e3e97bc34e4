"""TensorFlow Lite's files: computed as PyTorch and TensorFlow Lite's own interpreter do."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from osdhuman_jax.networks.blazepose import run
from osdhuman_jax.weights.tflite import read_tflite
from osdhuman_jax.weights.torch_files import WeightsError

pytest.importorskip("flatbuffers")

from tflite_files import File  # noqa: E402

RNG = np.random.default_rng(0)
STEM = RNG.normal(0, 0.4, (8, 3, 3, 3)).astype("f2")  # OHWI
STEM_BIAS = RNG.normal(0, 0.3, 8).astype("f2")
DEPTH = RNG.normal(0, 0.3, (1, 5, 5, 8)).astype("f4")
SPARSE = (RNG.normal(0, 0.5, (16, 1, 1, 8)) * (RNG.random((16, 1, 1, 8)) < 0.4)).astype("f2")
BIAS = RNG.normal(0, 0.3, 16).astype("f4")
PICTURE = RNG.normal(0, 1, (1, 12, 12, 3)).astype(np.float32)
VALID, RELU6 = ("b", 1), ("b", 3)


def conv(stride: int, padding: int, activation: int) -> dict[str, tuple]:
    fields = {"field_0": ("b", padding), "field_1": ("i", stride), "field_2": ("i", stride)}
    return fields | {"field_3": ("b", activation)}


def network(**changes) -> bytes:
    """Each kind of layer once; two outputs."""
    f = File()
    x = f.tensor(1, 12, 12, 3)
    amounts = f.constant(np.array([[0, 0], [0, 1], [0, 1], [0, 0]], "i4"))
    padded = f.layer("PAD", [x, amounts], (1, 13, 13, 3))
    stem = f.layer("DEQUANTIZE", [f.constant(STEM)], STEM.shape)
    bias = f.layer("DEQUANTIZE", [f.constant(STEM_BIAS)], STEM_BIAS.shape)
    y = f.layer("CONV_2D", [padded, stem, bias], (1, 6, 6, 8), **(conv(2, 1, 3) | changes))
    deep = {**conv(1, 0, 0), "field_3": ("i", 1), "field_4": ("b", 0)}
    z = f.layer("DEPTHWISE_CONV_2D", [y, f.constant(DEPTH)], (1, 6, 6, 8), **deep)
    z = f.layer("ADD", [z, y], (1, 6, 6, 8), field_0=RELU6)
    pool = {**conv(2, 1, 0), "field_3": ("i", 2), "field_4": ("i", 2)}
    small = f.layer("MAX_POOL_2D", [z], (1, 3, 3, 8), **pool)
    dense = f.layer("DENSIFY", [f.constant(SPARSE, sparse=True)], SPARSE.shape)
    dense = f.layer("DEQUANTIZE", [dense], SPARSE.shape)
    wide = f.layer("CONV_2D", [small, dense, f.constant(BIAS)], (1, 3, 3, 16), **conv(1, 0, 0))
    sides = f.constant(np.array([6, 6], "i4"))
    large = f.layer("RESIZE_BILINEAR", [wide, sides], (1, 6, 6, 16), field_3=("b", 1))
    spread = f.layer("DEPTH_TO_SPACE", [wide], (1, 6, 6, 4), field_0=("i", 2))
    both = f.layer("CONCATENATION", [large, spread], (1, 6, 6, 20), field_0=("i", 3))
    shape = f.constant(np.array([1, -1, 20], "i4"))
    rows = f.layer("RESHAPE", [both, shape], (1, 36, 20))
    return f.bytes(x, [rows, f.layer("LOGISTIC", [spread], (1, 6, 6, 4))])


def in_torch(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def weight(kernel: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(kernel.astype(np.float32)).permute(0, 3, 1, 2)

    def out(x: torch.Tensor) -> np.ndarray:
        return x.permute(0, 2, 3, 1).numpy()

    x = F.pad(torch.from_numpy(picture).permute(0, 3, 1, 2), (0, 1, 0, 1))
    bias = torch.from_numpy(STEM_BIAS.astype(np.float32))
    y = F.relu6(F.conv2d(x, weight(STEM), bias, stride=2))
    depth = weight(DEPTH).permute(1, 0, 2, 3)
    z = F.relu6(F.conv2d(y, depth, padding=2, groups=8) + y)
    wide = F.conv2d(F.max_pool2d(z, 2), weight(SPARSE), torch.from_numpy(BIAS))
    large = F.interpolate(wide, size=6, mode="bilinear", align_corners=False)
    # TensorFlow's order of channels is row, column, channel; PyTorch's is channel, row, column.
    order = wide.reshape(1, 4, 4, 3, 3).transpose(1, 2).reshape(1, 16, 3, 3)
    spread = F.pixel_shuffle(order, 2)
    rows = out(torch.cat([large, spread], 1)).reshape(1, 36, 20)
    return rows, out(torch.sigmoid(spread))


def computed(data: bytes, picture: np.ndarray) -> list[np.ndarray]:
    graph, weights = read_tflite(data, "a.tflite")
    return [np.asarray(x) for x in jax.jit(partial(run, graph))(weights, picture)]


def test_every_layer_computes_what_pytorch_does():
    made = computed(network(), PICTURE)
    for ours, theirs in zip(made, in_torch(PICTURE), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_interpreter_of_tensorflow_lite_agrees():
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    # Its plain kernels: the fast ones want constants at multiples of 16 bytes.
    plain = interpreter.OpResolverType.BUILTIN_REF
    model = interpreter.Interpreter(model_content=network(), experimental_op_resolver_type=plain)
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], PICTURE)
    model.invoke()
    theirs = [model.get_tensor(entry["index"]) for entry in model.get_output_details()]
    for ours, other in zip(computed(network(), PICTURE), theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-5)


def test_weights_are_float32_and_only_those_that_are_used():
    graph, weights = read_tflite(network(), "a.tflite")
    assert {w.dtype for w in weights.values()} == {np.dtype(np.float32)}
    assert sorted(w.size for w in weights.values()) == [8, 16, 128, 200, 216]
    assert [operation.kind for operation in graph.operations].count("CONV_2D") == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"field_3": ("b", 2)}, "its CONV_2D has activation 2, not BlazePose's"),
        ({"field_4": ("i", 2)}, "its CONV_2D has dilation_w 2, not BlazePose's"),
    ],
)
def test_layers_that_are_not_computed_are_refused(change, said):
    with pytest.raises(WeightsError, match=f"a.tflite: {said}"):
        read_tflite(network(**change), "a.tflite")


def test_other_layers_and_other_files_are_refused():
    f = File()
    x = f.tensor(1, 4)
    y = f.layer("LOGISTIC", [x], (1, 4))
    data = f.bytes(x, [y])
    with pytest.raises(WeightsError, match="a.tflite: not a .tflite file"):
        read_tflite(b"PK\3\4 and more", "a.tflite")
    other = bytearray(data)
    for at in [i for i, byte in enumerate(data) if byte == 14]:
        other[at] = 99
    with pytest.raises(WeightsError, match="a.tflite: (has a layer of TensorFlow's kind|damaged)"):
        read_tflite(bytes(other), "a.tflite")


def test_a_file_that_is_cut_or_damaged_is_one_line_whatever_is_wrong():
    data, rng = network(), np.random.default_rng(1)
    cuts = [data[:size] for size in range(8, len(data) - 8, 97)]
    for size in range(60):
        broken = bytearray(data)
        for at in rng.integers(8, len(data), 1 + size % 5):
            broken[at] = rng.integers(256)
        cuts.append(bytes(broken))
    refused = 0
    for broken in cuts:
        try:
            read_tflite(broken, "a.tflite")
        except WeightsError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith("a.tflite: ")
    assert refused >= len(range(8, len(data) - 8, 97)) // 2
