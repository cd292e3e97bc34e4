"""ncnn's files: what is not RRDBNet's, or not whole, is refused in one line that says where."""

from pathlib import Path

import make_cleaners as files
import numpy as np
import pytest
from refusals import one_line

from osdhuman_jax.weights.ncnn import names_in_order, read_ncnn
from osdhuman_jax.weights.torch_files import WeightsError


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return files.ncnn_files(tmp_path / "net", files.network().state_dict())


def refused(path: Path) -> str:
    with one_line(WeightsError, path.stem) as error:
        read_ncnn(path)
    return str(error.value)


@pytest.mark.parametrize("half", [True, False])
def test_tensors_have_the_names_of_their_order(half, tmp_path):
    state = files.halved(files.network().state_dict())
    path = files.ncnn_files(tmp_path / "net", state, half)
    for file in (path, path.with_suffix(".param")):
        found = read_ncnn(file)
        assert set(found) == set(state)
        for name, tensor in found.items():
            np.testing.assert_array_equal(tensor.read(), state[name].numpy(), err_msg=name)
            assert tensor.dtype == (np.float16 if half and "weight" in name else np.float32)


def test_published_order():
    names = names_in_order(23)
    assert len(names) == len(set(names)) == 351
    assert names[:2] == ["conv_first", "body.0.rdb1.conv1"]
    assert names[345:] == ["body.22.rdb3.conv5", "conv_body", *names[347:]]


LINES: dict[str, tuple[str, str, str]] = {
    "another network": ("BinaryOp ", "PReLU ", "not RRDBNet: it has a layer of kind PReLU"),
    "another share": ("2.000000e-01,1.0", "3.000000e-01,1.0", "not what RRDBNet has as Eltwise"),
    "another resize": ("Interp", "Concat", "not what RRDBNet has as Concat"),
    "another factor": ("1=2.000000e+00", "1=3.000000e+00", "not what RRDBNet has as Interp"),
    "another slope": ("-23310=1,2.0", "-23310=1,1.0", "in the place of body.0.rdb1.conv1"),
    "another kernel": ("1=3 4=1", "1=5 4=1", "in the place of conv_first"),
    "a stride": ("1=3 4=1", "1=3 3=2 4=1", "in the place of conv_first"),
    "no bias": (" 5=1 ", " 5=0 ", "in the place of conv_first"),
    "no activation": (" 9=2 -23310=1,2.000000e-01", "", "in the place of body.0.rdb1.conv1"),
    "no sizes": ("0=8 1=3", "0=x 1=3", "a line that is no layer"),
    "no outputs": ("0=8 1=3", "0=0 1=3", "in the place of conv_first"),
    "odd weights": ("6=216", "6=217", "no 3x3 kernels"),
    "no counts": (" 1 1 data", " one 1 data", "a line that is no layer"),
    "no magic": ("7767517", "7767518", "not a .param of ncnn"),
    "another count": (" 4711", " 4711\nConvolution", "a line that is no layer"),
}


@pytest.mark.parametrize("fault", LINES)
def test_other_descriptions(fault, binary):
    old, new, reason = LINES[fault]
    param = binary.with_suffix(".param")
    text = param.read_text()
    assert old in text
    param.write_text(text.replace(old, new, 1))
    assert reason in refused(binary)


def test_a_truncated_description(binary):
    param = binary.with_suffix(".param")
    lines = param.read_text().splitlines()
    param.write_text("\n".join(lines[:-1]))
    assert "truncated" in refused(binary)
    for text in ("", "7767517", "7767517\n0 0\n"):
        param.write_text(text)
        refused(binary)


def test_other_bytes(binary):
    data = binary.read_bytes()
    binary.write_bytes(data[:-1])
    assert "truncated: it ends within conv_last" in refused(binary)
    binary.write_bytes(data[:2])
    assert "truncated: it ends within conv_first" in refused(binary)
    binary.write_bytes(data + b"1234")
    assert "4 bytes more than its .param describes" in refused(binary)
    binary.write_bytes(b"\x38\x4b\x0d\x00" + data[4:])
    assert "conv_first has weights of tag 0x000d4b38" in refused(binary)
    binary.write_bytes(b"")
    assert "empty" in refused(binary)


@pytest.mark.parametrize("gone", [".param", ".bin"])
def test_one_file_alone(gone, binary):
    binary.with_suffix(gone).unlink()
    assert f"net{gone}: missing" in refused(binary)
