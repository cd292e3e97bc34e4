"""A restorer as one file that runs without this package: StableHLO in an .npz, or ONNX.

Goes in: a loaded restorer and the shape of its pictures, uint8 (batch, height, width, 3), which
stands in the file. Comes out: the file, and beside a large .onnx one of its weights. `osdhuman
export` tells how it is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.networks.target import traced_for
from osdhuman_jax.networks.types import Image8

if TYPE_CHECKING:
    import onnx_ir

Restore = Callable[[list[jax.Array], Image8], Image8]  # (weights, pictures) -> pictures

# Bytes of weights in an .onnx: a protocol buffer ends at 2 GiB, and the program needs a little.
ONNX_LIMIT = 2**31 - 2**26
EXTRA = "ONNX needs the extra: pip install 'osdhuman-jax[export]'"


class ExportError(ValueError):
    """A model or a request that cannot be exported, in one line."""


def program(restorer: OneStepRestorer) -> tuple[Restore, list[jax.Array]]:
    """What is exported, (weights, uint8 pictures) -> uint8 pictures, and the weights."""
    graphdef, state = nnx.split(restorer)
    weights, tree = jax.tree.flatten(state)

    def restore(weights: list[jax.Array], pictures: Image8) -> Image8:
        network = nnx.merge(graphdef, jax.tree.unflatten(tree, weights))
        # Conversion is part of the file: who runs it need not know the network's range.
        restored = network(pictures.astype(jnp.float32) / 127.5 - 1.0)
        return jnp.round((jnp.clip(restored, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)

    return restore, weights


def write_npz(restorer: OneStepRestorer, shape: tuple[int, ...], platform: str, path: Path) -> None:
    """Write a StableHLO program for pictures of `shape`, with its weights."""
    restore, weights = program(restorer)
    abstract = [jax.ShapeDtypeStruct(weight.shape, weight.dtype) for weight in weights]
    pictures = jax.ShapeDtypeStruct(shape, jnp.uint8)
    # cuDNN's attention is a call into a library, which is not for a file.
    plain = "cpu" if platform == "cpu" else "gpu"
    with traced_for(plain):
        exported = jax.export.export(jax.jit(restore), platforms=[platform])(abstract, pictures)
    arrays = {f"weight_{i}": np.asarray(w) for i, w in enumerate(weights)}
    # The program stands as bytes among the weights, in an archive that NumPy alone opens.
    arrays["program"] = np.frombuffer(exported.serialize(), np.uint8)
    arrays["weights"] = np.asarray(len(weights), np.int64)
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def weights_beside(path: Path) -> Path:
    """The file of weights that belongs to an .onnx which is too large to hold its own."""
    return path.with_name(f"{path.name}.data")


def write_onnx(restorer: OneStepRestorer, shape: tuple[int, ...], path: Path) -> None:
    """Write an ONNX file for pictures of `shape`, and its weights beside it from `ONNX_LIMIT` on.

    Raises ExportError where it cannot be converted, and OSError.
    """
    try:
        import onnx_ir
    except ImportError:
        raise ExportError(EXTRA) from None
    model = converted(restorer, shape)
    constants = (value.const_value for value in model.graph.initializers.values())
    size = sum(constant.nbytes for constant in constants if constant is not None)
    onnx_ir.save(
        model, path, external_data=weights_beside(path).name if size >= ONNX_LIMIT else None
    )


def converted(restorer: OneStepRestorer, shape: tuple[int, ...]) -> "onnx_ir.Model":
    """An ONNX program for pictures of `shape`, its weights as constants. Raises ExportError."""
    try:
        from jax2onnx import to_onnx
    except ImportError:
        raise ExportError(EXTRA) from None
    restore, weights = program(restorer)
    pictures = jax.ShapeDtypeStruct(shape, jnp.uint8)
    # Traced beforehand: the converter has rules of its own for Flax's layers, which refuse ours.
    with traced_for("cpu"):
        traced = jax.make_jaxpr(lambda pictures: restore(weights, pictures))(pictures)
    function = jax.extend.core.jaxpr_as_fun(traced)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = to_onnx(function, inputs=[pictures], opset=18, return_mode="ir")
    # The converter leaves shapes before its own simplification; onnxruntime warns of each when it
    # loads the file, and finds shapes by itself.
    for node in model.graph.all_nodes():
        if node.op_type == "Expand":
            node.outputs[0].shape = None
    return model
