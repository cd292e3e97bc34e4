"""Files of weights: torch's and safetensors' own come back, hostile ones do nothing."""

import builtins
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import flip
from refusals import one_line
from safetensors.numpy import load_file
from safetensors.torch import save_file

from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load, write_safetensors

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]


def tensors() -> dict[str, torch.Tensor]:
    drawn = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    made = {str(dtype).removeprefix("torch."): (3 * drawn).to(dtype) for dtype in DTYPES}
    return {**made, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}


def equal(found: Tensor, expected: torch.Tensor) -> bool:
    array = found.read()
    assert found.shape == array.shape == tuple(expected.shape) and found.dtype == array.dtype
    assert str(found.dtype) == str(expected.dtype).removeprefix("torch.")
    return np.array_equal(array.astype(np.float64), expected.double().numpy())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(zipped, tmp_path):
    state = OrderedDict(tensors())
    state._metadata = {"version": 1}  # as Module.state_dict leaves it
    tree = {"state_dict": state, "modules": ["a.b", "c"], "rank": 4, "nested": ({"x": None}, True)}
    torch.save(tree, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    found = load(tmp_path / "a.ckpt")
    assert {k: v for k, v in found.items() if k != "state_dict"} == {
        k: v for k, v in tree.items() if k != "state_dict"
    }
    assert list(found["state_dict"]) == list(state)
    assert all(equal(found["state_dict"][k], v) for k, v in state.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_views_of_one_storage(zipped, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    views = {"whole": whole, "transposed": whole.T, "slice": whole[1:3, ::2], "row": whole[3]}
    torch.save(views, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert all(equal(load(tmp_path / "a.pth")[k], v) for k, v in views.items())


def test_safetensors(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = load(tmp_path / "a.safetensors")
    assert set(found) == set(tensors())
    assert all(equal(found[k], v) for k, v in tensors().items())


def test_written_safetensors_are_the_librarys(tmp_path):
    arrays = {k: v.numpy() for k, v in tensors().items() if v.dtype != torch.bfloat16}
    write_safetensors(tmp_path / "a.safetensors", {k: Tensor.of(v) for k, v in arrays.items()})
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(arrays)
    assert all(found[k].dtype == v.dtype and np.array_equal(found[k], v) for k, v in arrays.items())


def test_views_are_lazy_and_written_in_order(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    reads = []
    lazy = Tensor(array.shape, array.dtype, lambda: reads.append(1) or array)
    turned = lazy.view(lambda x: x.transpose(2, 0, 1)[1:])
    assert turned.shape == (3, 2, 3) and not reads
    write_safetensors(tmp_path / "a.safetensors", {"x": turned})
    np.testing.assert_array_equal(
        load_file(tmp_path / "a.safetensors")["x"], array.transpose(2, 0, 1)[1:]
    )


# Hostile files


class Payload:
    """Unpickled by Python, it makes a file; `how` is the call."""

    def __init__(self, target: Path, how: str):
        self.target, self.how = target, how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.target}",)
        return getattr(builtins, self.how), (f"open({str(self.target)!r}, 'w')",)


@pytest.fixture
def canary(tmp_path):
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def archive(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes):
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("archive/data.pkl", data)
        for key, value in storages.items():
            z.writestr(f"archive/data/{key.removeprefix('s')}", value)


def refused(path: Path, *said: str) -> None:
    with one_line(WeightsError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < 300
    for text in said:
        assert text in message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("how", ["system", "exec", "eval"])
def test_payload_is_named_and_not_run(zipped, how, canary, tmp_path):
    torch.save(
        {"state_dict": {"w": torch.zeros(2)}, "x": Payload(canary, how)},
        tmp_path / "a.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    name = {"system": "posix.system"}.get(how, how)
    refused(tmp_path / "a.ckpt", "its pickle names", f"{name}, which no weights need")


def test_payload_in_a_plain_pickle(canary, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Payload(canary, "system")))
    refused(tmp_path / "a.pkl", "neither a safetensors file nor one written by torch.save")


GLOBALS = {
    "module attribute": b"ctorch\nhub.load\n.",
    "neighbour of the tensor": b"ctorch._utils\n_import_dotted_name\n.",
    "dunder": b"ccollections\nOrderedDict.__reduce__\n.",
    "instance of a class": b"(ios\nsystem\n.",
    "extension": b"\x82\x01.",
}


@pytest.mark.parametrize("data", GLOBALS.values(), ids=GLOBALS)
def test_other_globals(data, tmp_path):
    archive(tmp_path / "a.pth", data)
    refused(tmp_path / "a.pth", "its pickle")


BROKEN = {
    "empty": b"",
    "truncated": pickle.dumps({"a": [1, 2, 3]})[:-4],
    "stack underflow": b"R.",
    "call of a dictionary": b"}(tR.",
    "attributes of a type": b"ccollections\nOrderedDict\n}S'x'\nK\x01sb.",
    "huge memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "huge string": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fx.",
    "huge bytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x0fx.",
    "no storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))\x89Nt(tR.",
    "unhashable key": b"}]K\x01s.",
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pickles(case, tmp_path):
    archive(tmp_path / "a.pth", BROKEN[case])
    if case in ("huge memo", "attributes of a type"):  # harmless: nothing is allocated or changed
        load(tmp_path / "a.pth")
    else:
        refused(tmp_path / "a.pth", "its pickle is broken")
    assert not hasattr(OrderedDict, "x")


def tensor_pickle(numel: int, offset: int, shape: tuple, strides: tuple) -> bytes:
    """A pickle of one float32 tensor with any description."""

    class Storage:
        pass

    class Described:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Storage(),
                offset,
                shape,
                strides,
                False,
                OrderedDict(),
            )

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            kind = ("storage", torch.FloatStorage, "0", "cpu", numel)
            return kind if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": Described()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ((6, 1, (2, 3), (3, 1)), "reaches beyond its storage"),
        ((6, 0, (2, 3), (4, 1)), "reaches beyond its storage"),
        ((6, 0, (100_000, 100_000), (0, 0)), "reaches beyond its storage"),
        ((6, -1, (2, 3), (3, 1)), "something else than storage and sizes"),
        ((6, 3, (2, 3), (-3, 1)), "something else than storage and sizes"),
        ((6, 0, (2, 3), (1,)), "something else than storage and sizes"),
        ((7, 0, (2, 3), (3, 1)), "storage 0 has another size than its tensor"),
        ((10**12, 0, (2, 3), (3, 1)), "storage 0 has another size than its tensor"),
        ((6.0, 0, (2, 3), (3, 1)), "a storage is described by something else"),
    ],
    ids=str,
)
def test_tensors_that_lie_about_themselves(description, said, tmp_path):
    archive(tmp_path / "a.pth", tensor_pickle(*description), s0=bytes(24))
    refused(tmp_path / "a.pth", said)


def test_the_described_tensor_itself_is_sound(tmp_path):
    archive(tmp_path / "a.pth", tensor_pickle(6, 0, (2, 3), (3, 1)), s0=bytes(24))
    assert load(tmp_path / "a.pth")["w"].read().tolist() == [[0.0] * 3] * 2


def test_storage_missing_from_the_archive(tmp_path):
    archive(tmp_path / "a.pth", tensor_pickle(6, 0, (2, 3), (3, 1)))
    refused(tmp_path / "a.pth", "archive/data/0")


def test_compressed_archive(tmp_path):
    archive(tmp_path / "a.pth", bytes(10_000_000), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "a.pth", "compressed")


def test_other_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as z:
        z.writestr("../../data.pkl", b"N.")
    refused(tmp_path / "a.pth", "not one of torch.save")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_torch_file(zipped, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(100)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "truncated")


def test_flipped_byte_of_an_archive(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.full((100,), 3.0)}, path)
    flip(path, path.read_bytes().find(struct.pack("<ff", 3.0, 3.0)))
    with pytest.raises(WeightsError, match="data/0 is broken .*CRC"):
        load(path)["w"].read()


def header(entries: dict, data: bytes = b"", claim: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + data


def entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


UNSOUND = {
    "empty": b"",
    "a few bytes": b"\x01\x02",
    "absurd header": header({}, claim=2**63),
    "header longer than the file": header({}, claim=1000),
    "header beyond the limit": header({}, claim=200_000_000) + bytes(1000),
    "no JSON": struct.pack("<Q", 4) + b"nope",
    "overlap": header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "the same place twice": header({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, bytes(8)),
    "beyond the end": header({"a": entry(0, 8, [2])}, bytes(4)),
    "hole": header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "backwards": header({"a": entry(8, 0, [2])}, bytes(8)),
    "shape and size differ": header({"a": entry(0, 8, [3])}, bytes(8)),
    "overflow": header({"a": entry(0, 8, [2**62, 4])}, bytes(8)),
    "left over": header({"a": entry(0, 8, [2])}, bytes(16)),
    "unknown type": header({"a": entry(0, 8, [2], "F7")}, bytes(8)),
}


@pytest.mark.parametrize("data", UNSOUND.values(), ids=UNSOUND)
def test_unsound_safetensors(data, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(data)
    refused(tmp_path / "a.safetensors", "not a sound safetensors file")


def test_one_name_of_two_tensors(tmp_path):
    """The library takes such a header, where both lie in one place."""
    text = b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8, [2])).encode(),) * 2)
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(path, "tensors 1 of one name (a)")


def test_two_members_of_one_name(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as z, pytest.warns(UserWarning, match="Duplicate name"):
        z.writestr("a/data/0", bytes(8))
    refused(path, "a zip archive with members of one name")


def test_what_a_file_says_is_one_line():
    assert str(WeightsError("a\nb\x1b[31m\udc80")) == r"a\nb\x1b[31m\udc80"
    assert len(str(WeightsError("x" * 10_000))) == 4000


def test_type_that_no_network_has(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(header({"a": entry(0, 8, [1], "C64")}, bytes(8)))
    refused(tmp_path / "a.safetensors", "a is of type C64")


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_no_file_and_a_folder_in_its_place(name, tmp_path):
    refused(tmp_path / name, "No such file")
    (tmp_path / name).mkdir()
    refused(tmp_path / name)
