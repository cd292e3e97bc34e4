"""Tensors of foreign weight files, by name: without torch, and without running what a file says.

    load("model.safetensors")  ->  {"conv_in.weight": Tensor, ...}
    load("model.ckpt")         ->  {"state_dict": {"conv_in.weight": Tensor, ...}, "epoch": 7, ...}

A `Tensor` knows its shape and stays on disk until it is read, so that a conversion holds one tensor
at a time. torch's zip archives and its older format (as the weights of LPIPS come in) are pickles:
ours builds plain containers and tensors, and refuses to name anything else.
"""

import io
import json
import math
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from osdhuman_jax.disk import staged_file

PICKLE_LIMIT = 64 << 20  # bytes; the names of Stable Diffusion's whole checkpoint take 0.2 MiB
NAME, LINE = 160, 4000  # characters of a tensor's name in an error, and of the error at the most
# The number at the head of torch's older files (torch/serialization.py), as its pickle.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# torch's names of flat arrays by what NumPy calls their numbers.
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# The format's names of the same; unsigned and 8-bit floats hold no weights here.
SAFETENSORS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
Untrusted = Any  # what a file says, of whatever type until it is looked at


class WeightsError(ValueError):
    """Weights or a model folder that cannot be used, in one line.

    What files say may be in it: escapes stand for whatever would break or colour the line.
    """

    def __init__(self, message: str) -> None:
        told = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(told)[:LINE])


def complain(faults: Mapping[str, Sequence[str]], where: str) -> None:
    """One WeightsError with the count and the first names of each kind, or nothing."""
    # A file may give a name any length.
    first = {kind: ", ".join(f"{name:.{NAME}}" for name in v[:5]) for kind, v in faults.items()}
    parts = [f"{len(v)} {kind} ({first[kind]})" for kind, v in faults.items() if v]
    if parts:
        raise WeightsError(f"{where}: tensors {'; '.join(parts)}")


@dataclass(frozen=True)
class Tensor:
    """An array that may still lie on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "Tensor":
        """The tensor of an array in memory."""
        return cls(array.shape, array.dtype, lambda: array)

    def view(self, change: Callable[[np.ndarray], np.ndarray]) -> "Tensor":
        """The tensor after `change`, which transposes, slices or reshapes; nothing is read yet."""
        empty = np.broadcast_to(np.zeros((), self.dtype), self.shape)
        return Tensor(change(empty).shape, self.dtype, lambda: change(self.read()))


def load(path: Path | str) -> Untrusted:
    """What a .safetensors or torch file holds: `Tensor`s in plain containers.

    Raises WeightsError on any other file, on a broken one, and on a pickle that names a global
    beside torch's tensors and OrderedDict.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        with path.open("rb") as f:
            # By content: people rename files, and .pth, .pt, .ckpt and .bin say nothing.
            start = f.read(len(LEGACY_MAGIC))
        if start.startswith(b"PK\x03\x04"):
            return _archive(path)
        if start == LEGACY_MAGIC:
            return _legacy(path)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    raise WeightsError(f"{path}: neither a safetensors file nor one written by torch.save")


# safetensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # the library checks the header: its size, and that offsets tile the file
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a sound safetensors file ({error!s:.150})") from error
    with path.open("rb") as f:
        # The header's length, the header, then the tensors without gaps.
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size), object_pairs_hook=partial(_once, path))
    data = (
        np.memmap(path, np.uint8, "r", offset=8 + size) if path.stat().st_size > 8 + size else b""
    )
    # Free text of whoever wrote the file.
    header.pop("__metadata__", None)
    return {name: _described(path, name, entry, data) for name, entry in header.items()}


def _once(path: Path, pairs: list[tuple[str, Untrusted]]) -> dict[str, Untrusted]:
    """A table of the header. Raises WeightsError on a name that occurs twice."""
    # Of two entries Python takes the last, and another reader perhaps the first.
    counts = Counter(name for name, _ in pairs)
    complain({"of one name": [name for name, count in counts.items() if count > 1]}, str(path))
    return dict(pairs)


def _described(
    path: Path, name: str, entry: dict[str, Untrusted], data: np.ndarray | bytes
) -> Tensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    # Refused by name, before a byte of it is read as something else.
    if (kind := entry["dtype"]) not in SAFETENSORS:
        raise WeightsError(f"{path}: {name:.{NAME}} is of type {kind}, which is not supported")
    dtype = SAFETENSORS[kind]
    return Tensor(shape, dtype, lambda: np.frombuffer(data[begin:end], dtype).reshape(shape))


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file whole or not at all, tensor by tensor: never is more than one in memory."""
    # Offsets first, then the bytes: the header says where each tensor will be.
    kinds = {dtype: kind for kind, dtype in SAFETENSORS.items()}
    names = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))  # keeps all aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        begin, tensor = end, tensors[name]
        end += math.prod(tensor.shape) * tensor.dtype.itemsize
        kind = kinds[tensor.dtype]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # Aligned to eight bytes, so that memory maps of the file are.
    text += b" " * (-len(text) % 8)
    with staged_file(path) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            f.write(np.ascontiguousarray(tensors[name].read()).reshape(-1).view(np.uint8).data)


# torch


@dataclass
class _Storage:
    """A flat run of numbers in a torch file; type and size are as the file claims."""

    dtype: Untrusted
    numel: Untrusted
    read: Callable[[], np.ndarray]

    def __post_init__(self) -> None:
        if not (isinstance(self.dtype, np.dtype) and type(self.numel) is int and self.numel >= 0):
            raise WeightsError("a storage is described by something else than a type and a size")


def _rebuild_tensor(
    storage: Untrusted, offset: Untrusted, shape: Untrusted, strides: Untrusted, *_: Untrusted
) -> Tensor:
    """torch._utils._rebuild_tensor_v2; what follows the strides says nothing of the values."""
    # All that a file claims is proved before a byte is read by it.
    numbers = (offset, *shape, *strides)
    sound = isinstance(storage, _Storage) and len(shape) == len(strides)
    if not sound or not all(type(n) is int and n >= 0 for n in numbers):
        raise WeightsError("a tensor is described by something else than storage and sizes")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.numel or (all(shape) and last >= storage.numel):
        raise WeightsError("a tensor reaches beyond its storage")
    steps = tuple(s * storage.dtype.itemsize for s in strides)

    def read() -> np.ndarray:
        # Strides as torch wrote them: a transposed matrix is kept as it lay in memory.
        flat = storage.read()[offset:]
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    return Tensor(tuple(shape), storage.dtype, read)


def _rebuild_parameter(data: Untrusted, *_: Untrusted) -> Tensor:
    """torch._utils._rebuild_parameter: a tensor, and whether it was being trained."""
    if not isinstance(data, Tensor):
        raise WeightsError("a parameter is described by something else than a tensor")
    return data


class _Unpickler(pickle._Unpickler):  # Python's own: the C one lets a file allocate at will
    """Builds plain containers and tensors; any other global is refused by name."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BufferedIOBase, storage: Callable[..., _Storage]):
        super().__init__(file)
        self.persistent_load = lambda pid: storage(*pid)

    def find_class(self, module: str, name: str, /) -> Untrusted:
        # The few globals that torch.save writes for a table of tensors.
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise WeightsError(f"its pickle names {module:.80}.{name:.80}, which no weights need")

    def _skip_attributes(self) -> None:
        """BUILD: torch hangs version numbers on its dictionaries; nothing may be changed by it."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = _skip_attributes  # type: ignore[assignment]


def _unpickle(path: Path, file: io.BufferedIOBase, storage: Callable[..., _Storage]) -> Untrusted:
    try:
        return _Unpickler(file, storage).load()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # a hostile pickle can make the machine stumble in any way
        raise WeightsError(f"{path}: its pickle is broken ({error!r:.100})") from error


def _archive(path: Path) -> Untrusted:
    """A zip of NAME/data.pkl and NAME/data/KEY, stored without compression."""
    archive = _opened(path)
    # Of two members of one name readers take different ones.
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise WeightsError(f"{path}: a zip archive with members of one name")
    # The folder inside has any name; torch.save takes the file's.
    inside = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(inside) != 1:
        raise WeightsError(f"{path}: a zip archive, but not one of torch.save")
    folder = inside[0].removesuffix("data.pkl")
    # Newer files say in which order their bytes are; older ones are all little-endian.
    order = f"{folder}byteorder"
    if order in names and _member(archive, order) != b"little":
        raise WeightsError(f"{path}: big-endian, which is not supported")
    if archive.getinfo(inside[0]).file_size > PICKLE_LIMIT:
        raise WeightsError(f"{path}: its pickle exceeds {PICKLE_LIMIT} bytes")

    def storage(
        _: Untrusted, dtype: Untrusted, key: Untrusted, __: Untrusted, numel: Untrusted
    ) -> _Storage:
        # Read when it is asked for; its size is compared with the claim at once.
        name = f"{folder}data/{key}"
        made = _Storage(dtype, numel, lambda: np.frombuffer(_member(archive, name), dtype))
        if archive.getinfo(name).file_size != numel * dtype.itemsize:
            raise WeightsError(f"storage {key} has another size than its tensor")
        return made

    return _unpickle(path, io.BytesIO(_member(archive, inside[0])), storage)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path}: a broken or truncated zip archive ({error})") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's bytes, its checksum verified."""
    entry, size = archive.getinfo(name), Path(archive.filename or "").stat().st_size
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
        raise WeightsError(f"{archive.filename}: {name} is compressed, which torch.save never does")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{archive.filename}: {name} is broken ({error})") from error


def _legacy(path: Path) -> Untrusted:
    """Pickles of a magic number, version, machine, object and storage keys, then the storages."""
    found: dict[str, _Storage] = {}
    places: dict[str, int] = {}

    def storage(
        _: Untrusted,
        dtype: Untrusted,
        key: Untrusted,
        __: Untrusted,
        numel: Untrusted,
        view: Untrusted,
    ) -> _Storage:
        # Only very old files have such.
        if view is not None:
            raise WeightsError(f"storage {key} is a view of another, which is not supported")

        def read() -> np.ndarray:
            return np.fromfile(path, dtype, numel, offset=places[key])

        return found.setdefault(key, _Storage(dtype, numel, read))

    # Objects come before their storages, so that places are known only when all is read.
    with path.open("rb") as f:
        # Five pickles, one behind the other; the fourth is what was saved.
        _, _, machine, root, keys = (_unpickle(path, f, storage) for _ in range(5))
        if not (isinstance(machine, dict) and machine.get("little_endian") is True):
            raise WeightsError(f"{path}: big-endian, which is not supported")
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(map(str, found)):
            raise WeightsError(f"{path}: its storages are not those that its tensors name")
        for key in keys:
            _place(path, f, found[key], key, places)
    return root


def _place(path: Path, f: BinaryIO, storage: _Storage, key: str, places: dict[str, int]) -> None:
    """Note where a storage of the older format begins, and go to its end."""
    # A storage is its count of numbers and then the numbers.
    head = f.read(8)
    places[key] = f.tell()
    end = places[key] + storage.numel * storage.dtype.itemsize
    if int.from_bytes(head, "little") != storage.numel or end > path.stat().st_size:
        raise WeightsError(f"{path}: storage {key} is truncated or of another size")
    f.seek(end)
