"""NIQE's parameters of one's own: the command that fits them."""

import numpy as np
from PIL import Image
from skimage import data

from curate import niqe
from osdhuman_jax.evaluation.niqe import Niqe, read_parameters

PHOTO = data.astronaut()
MODEL = Niqe(np.ones(36), np.eye(36), local=True)


def test_fitted_parameters_tell_clean_from_spoiled(tmp_path, capsys):
    folder, path = tmp_path / "pristine", tmp_path / "own.npz"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for at in range(8):  # sharp texture of two scales
        coarse = Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8))
        size = 480 if at % 2 else 384
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{at}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    assert niqe.main([str(folder), "--output", str(path)]) == 0
    assert "broken.png: left out: corrupt" in capsys.readouterr().err
    model = read_parameters(path)
    assert model.name == "niqe-local"
    clean = np.asarray(Image.open(folder / "3.png"))
    noisy = np.clip(clean + rng.normal(0, 40, clean.shape), 0, 255).astype(np.uint8)
    assert model(clean) < model(noisy)


def test_too_few_pictures_leave_no_file(tmp_path, capsys):
    folder = tmp_path / "few"
    folder.mkdir()
    Image.fromarray(PHOTO).save(folder / "a.png")
    assert niqe.main([str(folder), "--output", str(tmp_path / "own.npz")]) == 2
    assert "a fit needs 100" in capsys.readouterr().err
    assert not (tmp_path / "own.npz").exists()
    assert niqe.main([str(tmp_path / "none"), "--output", str(tmp_path / "own.npz")]) == 2
    assert niqe.main([str(folder), "--output", str(tmp_path / "own.mat")]) == 2


def test_parameters_are_fitted_to_the_best_of_a_curation(made, tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.npz"
    assert niqe.main([str(made), "--output", str(path)]) == 2
    assert "sharp blocks of 96 pixels: a fit needs 100" in capsys.readouterr().err
    taken = []
    monkeypatch.setattr(niqe, "fit", lambda pictures: taken.extend(pictures) or MODEL)
    assert niqe.main([str(made), "--output", str(path)]) == 0
    assert len(taken) == 9 and all(rgb.shape == (512, 512, 3) for rgb in taken)
    assert read_parameters(path).name == "niqe-local"
    (tmp_path / "plan.json").touch()
    assert niqe.main([str(tmp_path), "--output", str(path)]) == 2
    assert "run `select` first" in capsys.readouterr().err
