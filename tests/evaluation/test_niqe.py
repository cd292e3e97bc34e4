"""NIQE against pyiqa 0.1.16's numbers, and the files of its parameters."""

import numpy as np
import pytest
from scipy.io import savemat
from skimage import data

from osdhuman_jax.evaluation import niqe

PHOTO = data.astronaut()
MODEL = niqe.Niqe(np.linspace(0.5, 2, 36), 0.1 * np.eye(36))
PYIQA = {  # pyiqa.archs.niqe_arch.calculate_niqe with the same parameters
    "astronaut": 30.620014398,
    "chelsea": 30.703393154,
    "coffee": 29.441858944,
    "flat": 30.456818901,
    "dark": 30.909842014,
}


def picture(name: str) -> np.ndarray:
    if name == "dark":
        return PHOTO // 4
    if name == "flat":
        photo = PHOTO.copy()
        photo[:200, :300] = 128
        return photo
    return getattr(data, name)()


@pytest.mark.parametrize("name", PYIQA)
def test_scores_are_pyiqas(name):
    assert MODEL(picture(name)) == pytest.approx(PYIQA[name], abs=1e-4)


def test_what_does_not_fill_a_block_is_not_seen():
    photo = PHOTO.copy()
    photo[480:] = photo[:, 480:] = 0
    seen = niqe.features(niqe.yiq_luma(PHOTO[:480, :480]))
    assert niqe.features(niqe.yiq_luma(PHOTO)).shape == (25, 36)
    np.testing.assert_allclose(niqe.features(niqe.yiq_luma(photo))[0], seen[0], atol=1e-12)


@pytest.mark.parametrize("shape", [(512, 512), (96, 150), (95, 512), (10, 10)])
def test_flat_or_small_pictures_have_no_score(shape):
    assert np.isnan(MODEL(np.full((*shape, 3), 128, np.uint8)))


@pytest.mark.parametrize("names", niqe.NAMES)
@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_parameters_are_read_by_either_name(tmp_path, names, suffix):
    path = tmp_path / f"niqe{suffix}"
    values = {names[0]: MODEL.mean[None], names[1]: MODEL.covariance}
    savemat(path, values) if suffix == ".mat" else np.savez(path, **values)
    model = niqe.read_parameters(path)
    np.testing.assert_array_equal(model.mean, MODEL.mean)
    assert model.name == "niqe"


def test_parameters_that_are_none_are_refused(tmp_path):
    text = tmp_path / "niqe.mat"
    text.write_text("none")
    short = tmp_path / "niqe.npz"
    np.savez(short, mu_prisparam=np.zeros(35), cov_prisparam=np.eye(35))
    words, holes = tmp_path / "words.npz", tmp_path / "holes.npz"
    np.savez(words, mu_prisparam=np.full(36, "a"), cov_prisparam=np.eye(36))
    np.savez(holes, mu_prisparam=np.zeros(36), cov_prisparam=np.full((36, 36), np.nan))
    for path in (text, short, words, holes):
        with pytest.raises(niqe.NiqeError, match=path.name):
            niqe.read_parameters(path)


def test_a_fit_needs_blocks():
    with pytest.raises(niqe.NiqeError, match="^[0-9]+ sharp blocks of 96 pixels: a fit"):
        niqe.fit([PHOTO])


def test_the_authors_parameters_are_found_by_name(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("niqe.npz", "deep/other.mat"):
        (tmp_path / name).touch()
    assert niqe.find_parameters(tmp_path) is None
    for name in reversed(niqe.FILES):
        (tmp_path / "deep" / name).touch()
        assert niqe.find_parameters(tmp_path) == tmp_path / "deep" / name


def test_single_precision_parameters_score_too(tmp_path):
    values = {"mu_prisparam": MODEL.mean, "cov_prisparam": MODEL.covariance}
    np.savez(tmp_path / "niqe.npz", **{k: v.astype(np.float32) for k, v in values.items()})
    model = niqe.read_parameters(tmp_path / "niqe.npz")
    assert model(PHOTO) == pytest.approx(PYIQA["astronaut"], abs=1e-3)
