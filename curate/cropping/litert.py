"""Networks in TensorFlow Lite's format: found in the packages that ship them, run by LiteRT.

LiteRT is the extra `detector`. OpenCV reads such files too, but gives wrong boxes for one of the
two networks that are used here and does not read the other.
"""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from curate.config import ConfigError

# What a .tflite file has at byte 4, and a limit of what is read: the larger one has ten million.
MAGIC, LARGEST = b"TFL3", 64 << 20
# How far into the file that is read the network may begin.
FIRST = 4096
GET = "`make detector` downloads it"
# What a file that is no whole archive makes of reading it.
UNREADABLE = (OSError, EOFError, RuntimeError, StopIteration, zlib.error)
UNREADABLE += (tarfile.TarError, zipfile.BadZipFile)

Shape = tuple[int, ...]
# From the network's input to its outputs, all float32.
Network = Callable[[np.ndarray], list[np.ndarray]]


def load_network(path: Path, member: str, shapes: Sequence[Shape]) -> Network:
    """The network in a file, on one thread.

    Args:
        path: a wheel or an npm package with `member` in it, or `member` itself.
        shapes: of its input and of its outputs, in their order.

    Raises ConfigError where there is no such network, or no LiteRT.
    """
    check(path)
    data = read_network(path, member)
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    # One thread, since there is a worker process for every core.
    try:
        network = Interpreter(model_content=data, num_threads=1)
        network.allocate_tensors()
        (entry,), ends = network.get_input_details(), network.get_output_details()
        found = [tuple(map(int, end["shape"])) for end in (entry, *ends)]
    except (ValueError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: not a network that LiteRT runs: {line}") from None
    if found != list(shapes):
        raise ConfigError(f"{path}: another network than that of {member}; {GET}")

    def run(batch: np.ndarray) -> list[np.ndarray]:
        network.set_tensor(entry["index"], batch)
        network.invoke()
        return [network.get_tensor(end["index"]) for end in ends]

    return run


def check(path: Path) -> None:
    """Raises ConfigError where the file is missing, or what runs it."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; {GET}")
    try:
        import ai_edge_litert.interpreter  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError:
        raise ConfigError(f"{path} needs LiteRT: pip install 'osdhuman-jax[detector]'") from None


def read_network(path: Path, member: str) -> bytes:
    """The .tflite file in a package's `member`, or in the file itself. Raises ConfigError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                name = next(n for n in wheel.namelist() if f"/{n}".endswith(f"/{member}"))
                with wheel.open(name) as file:
                    data = file.read(LARGEST)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as package:
                found = next(m for m in package if f"/{m.name}".endswith(f"/{member}"))
                stream = package.extractfile(found)
                data = stream.read(LARGEST) if stream else b""
        else:
            with open(path, "rb") as file:
                data = file.read(LARGEST)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: has no {member} ({type(error).__name__}); {GET}") from None
    # A list of names may come before the network.
    at = data.find(MAGIC, 0, FIRST) - 4
    if at < 0:
        raise ConfigError(f"{path}: holds no .tflite network; {GET}")
    return data[at:]
