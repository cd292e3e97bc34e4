"""Somebody's network in an ONNX file, run by onnxruntime on the host.

Needed where a person brings a network that this package does not have: one that tells parts of
people apart (segmentation.py), one that finds their joints (poses_onnx.py).
"""

from pathlib import Path
from typing import Any

import numpy as np

from osdhuman_jax.filenames import spelled

# ImageNet's, of [0, 255], as torchvision and OpenMMLab have them.
MEAN = np.array((123.675, 116.28, 103.53), np.float32)
STD = np.array((58.395, 57.12, 57.375), np.float32)


class OnnxError(ValueError):
    """A network, or what belongs to it, that cannot be used, in one line."""


def open_session(model: Path) -> Any:
    """An onnxruntime session of a file. Raises OnnxError."""
    where = spelled(model)
    try:
        import onnxruntime
    except ImportError:
        text = "an .onnx network needs: pip install 'osdhuman-jax[curate]'"
        raise OnnxError(text) from None
    if not model.is_file():
        raise OnnxError(f"{where}: no such file")
    try:
        return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime has an exception class of its own for each fault of a file.
        line = str(error).splitlines()[0]
        raise OnnxError(f"{where}: not a network that onnxruntime runs: {line}") from None
