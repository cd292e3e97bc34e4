"""BRISQUE: pyiqa's values, and files that are not LIVE's machine.

The machine here has LIVE's form and random support vectors; what it gives was computed once by
pyiqa 0.1.16's network with the same vectors, in float64.
"""

import numpy as np
import pytest
import torch
from refusals import one_line
from skimage.data import astronaut

from osdhuman_jax.evaluation.brisque import (
    COUNT,
    BrisqueError,
    features,
    find_machine,
    read_machine,
)
from osdhuman_jax.evaluation.niqe import yiq_luma

PYIQA = [332.1724, 314.8023]
HEAD = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\nrho {}\nSV\n"


@pytest.fixture(scope="module")
def machine() -> tuple[np.ndarray, np.ndarray]:
    """Weights and support vectors; one of their numbers is zero, which libsvm leaves out."""
    rng = np.random.default_rng(0)
    vectors = np.round(rng.uniform(-1, 1, (COUNT, 36)), 6)
    vectors[3, 5] = 0
    return np.round(rng.normal(0, 10, COUNT), 6), vectors


def libsvm(weights: np.ndarray, vectors: np.ndarray, rho: float = -153.591) -> str:
    rows = [
        " ".join([f"{w:.6f}", *(f"{i}:{v:.6f}" for i, v in enumerate(row, 1) if v)])
        for w, row in zip(weights, vectors, strict=True)
    ]
    return HEAD.format(rho) + "\n".join(rows) + "\n"


def test_pyiqas_values_by_either_file(machine, tmp_path):
    """Also of sides that are odd, whose half is rounded up."""
    (tmp_path / "allmodel").write_text(libsvm(*machine))
    torch.save(tuple(map(torch.tensor, machine)), tmp_path / "brisque_svm_weights.pth")
    found = find_machine(tmp_path)
    assert found is not None and found.name == "allmodel" and find_machine(tmp_path / "x") is None
    for name in ("allmodel", "brisque_svm_weights.pth"):
        score = read_machine(tmp_path / name)
        values = [score(picture) for picture in (astronaut(), astronaut()[100:201, :201])]
        assert values == pytest.approx(PYIQA, abs=5e-3)


def test_flat_pictures_have_no_score(machine, tmp_path):
    (tmp_path / "allmodel").write_text(libsvm(*machine))
    with one_line(BrisqueError, "not flat"):
        read_machine(tmp_path / "allmodel")(np.zeros((32, 32, 3), np.uint8))


def test_features_at_half_size():
    """Those of the second half are of a picture of half the size."""
    plane = yiq_luma(astronaut()[:101, :100])
    assert features(plane).shape == (36,) and np.isfinite(features(plane)).all()


def test_other_files_are_one_line(machine, tmp_path):
    weights, vectors = machine
    for name, text, said in (
        ("allmodel", "%YAML:1.0\nopencv_ml_svm:\n", "not LIVE's support vectors"),
        ("allmodel", libsvm(weights, vectors, -155.845), "another machine than that of gamma"),
        ("allmodel", libsvm(weights[1:], vectors[1:]), "which are 774 of 36 numbers"),
        ("allmodel", libsvm(weights, vectors).replace(" 1:", " 99:"), "not LIVE's support vec"),
        ("allmodel", libsvm(weights, vectors).replace(" 1:", " 1:nan"), "not LIVE's|not finite"),
        ("brisque_svm_weights.pth", "x", "neither a safetensors file nor"),
    ):
        (tmp_path / name).write_text(text)
        with one_line(BrisqueError, said):
            read_machine(tmp_path / name)
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "brisque_svm_weights.pth")
    with one_line(BrisqueError, "no pair of tensors"):
        read_machine(tmp_path / "brisque_svm_weights.pth")
