"""A stand-in for LiteRT whose networks answer what a test says, and packages that hold them."""

import io
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

NETWORK = b"\x1c\0\0\0TFL3a network"


def install(
    monkeypatch,
    answer: Callable[[np.ndarray], Sequence[np.ndarray]],
    shapes: Sequence[tuple[int, ...]],
) -> None:
    """Make `ai_edge_litert` a module whose interpreter gives `answer(input)`."""

    class Interpreter:
        def __init__(self, model_content: bytes, num_threads: int) -> None:
            if model_content != NETWORK:
                raise ValueError("Model provided has model identifier 'lie', should be 'TFL3'\n")
            assert num_threads == 1

        def allocate_tensors(self) -> None: ...

        def get_input_details(self):
            return [{"index": 0, "shape": np.array(shapes[0])}]

        def get_output_details(self):
            return [{"index": i, "shape": np.array(s)} for i, s in enumerate(shapes[1:], 1)]

        def set_tensor(self, index: int, batch: np.ndarray) -> None:
            assert index == 0 and batch.shape == tuple(shapes[0]) and batch.dtype == np.float32
            self.outputs = answer(batch)

        def invoke(self) -> None: ...

        def get_tensor(self, index: int) -> np.ndarray:
            return self.outputs[index - 1]

    module = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)


def write_wheel(path: Path, member: str, data: bytes = NETWORK) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"mediapipe/modules/{member}", data)
    return path


def write_package(path: Path, member: str, data: bytes = b"Person\n" + NETWORK) -> Path:
    with tarfile.open(path, "w:gz") as package:
        info = tarfile.TarInfo(f"package/{member}")
        info.size = len(data)
        package.addfile(info, io.BytesIO(data))
    return path
