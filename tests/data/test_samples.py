"""Samples: crops, flips, degradations of every strength, labelled pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photo_sources import config_of, picture, png

from osdhuman_jax.config import DataConfig
from osdhuman_jax.data import sources
from osdhuman_jax.data.crops import random_crop
from osdhuman_jax.data.loader import make_loader, make_sample
from osdhuman_jax.data.sources import DataError, FolderSource, open_source
from osdhuman_jax.degrade.second_order import from_unit, to_unit, usm_sharpen

CLEAN = (0.0, 0.0, 0.0, 0.0, 1.0)  # every sample undegraded


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (8, 12), (15, 16), (16, 16), (17, 400)])
@pytest.mark.parametrize("resize_short", [0, 10, 16, 24])
def test_any_picture_gives_a_full_crop(size, resize_short):
    crop = random_crop(picture(0, *size), np.random.default_rng(0), (16, 16), resize_short)
    assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8


def test_without_resize_a_crop_is_a_window_and_every_place_occurs():
    image, rng, seen = picture(0, 5, 6), np.random.default_rng(0), set()
    for _ in range(200):
        crop = random_crop(image, rng, (4, 4), 0)
        places = [(y, x) for y in (0, 1) for x in (0, 1, 2)]
        seen |= {(y, x) for y, x in places if (image[y : y + 4, x : x + 4] == crop).all()}
    assert len(seen) == 6


def test_resize_short_is_the_area_mean():
    image = picture(0, 32, 32)
    crop = random_crop(image, np.random.default_rng(0), (16, 16), 16)
    mean = image.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(crop - mean).max() <= 0.5


def test_flip_mirrors_half_and_moves_nothing_else(folder):
    source, config = FolderSource(folder), config_of(folder)
    flipped = 0
    for epoch in range(60):
        plain = make_sample(source, replace(config, flip=False), epoch, 0)["hq"]
        hq = make_sample(source, config, epoch, 0)["hq"]
        mirrored = (hq == plain[:, ::-1]).all()
        assert mirrored or (hq == plain).all()
        flipped += mirrored
    assert 18 <= flipped <= 42  # 30 +- 3 sigma


def test_usm_sharpens_the_target_and_what_is_degraded(folder):
    config = config_of(folder, degrade=True)
    plain = make_sample(open_source(folder), config, 0, 1)
    sharp = replace(config, degradation=replace(config.degradation, usm=True))
    sample = make_sample(open_source(folder), sharp, 0, 1)
    want = from_unit(usm_sharpen(to_unit(plain["hq"])))
    np.testing.assert_array_equal(sample["hq"], want)
    assert (sample["hq"] != plain["hq"]).any() and (sample["lq"] != plain["lq"]).any()


def labelled_folder(root: Path, count: int = 3, side: int = 48) -> Path:
    for kind in ("lq", "teacher"):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            image = picture(100 * i + len(kind), side, side)
            (root / kind / f"{i}.png").write_bytes(png(image))
    return root


def labelled_config(*folders: Path, **changes) -> DataConfig:
    return config_of(*folders, **{"degrade": True, **changes})


def test_labelled_samples_are_windows_of_one_pair(folder, tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    config = labelled_config(labelled=(str(root),), labelled_share=1.0, teacher_share=0.5)
    labelled, source = sources.LabelledSource([root]), FolderSource(folder)
    pairs = [labelled.read(i) for i in range(3)]
    sample = make_sample(source, config, 0, 4, labelled)
    assert sample["index"] == 4 and sample["lq"].shape == (32, 32, 3)
    found = [
        (lq, label)
        for lq, label in pairs
        for mirrored in (slice(None), slice(None, None, -1))
        for top in range(17)
        for left in range(17)
        if np.array_equal(lq[top : top + 32, left : left + 32][:, mirrored], sample["lq"])
        and np.abs(
            (lq / 2 + label / 2)[top : top + 32, left : left + 32][:, mirrored] - sample["hq"]
        ).max()
        <= 0.5
    ]
    assert len(found) == 1
    again = make_sample(source, config, 0, 4, labelled)
    assert np.array_equal(again["lq"], sample["lq"]) and np.array_equal(again["hq"], sample["hq"])


def test_share_of_labelled_samples(folder, tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    labelled, source = sources.LabelledSource([root]), FolderSource(folder)
    config = labelled_config(kinds=CLEAN, labelled_share=0.5)
    samples = [make_sample(source, config, epoch, 0, labelled) for epoch in range(40)]
    clean = sum(np.array_equal(s["hq"], s["lq"]) for s in samples)
    assert 10 <= clean <= 30


def test_loader_reads_labelled_folders(folder, tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    config = labelled_config(folder, labelled=(str(root),), labelled_share=1.0)
    with make_loader(config, batch_size=2) as loader:
        batch = next(loader)
    labelled = sources.LabelledSource([root])
    want = make_sample(FolderSource(folder), config, 0, int(batch["index"][0]), labelled)
    assert np.array_equal(batch["lq"][0], want["lq"])


def test_labels_that_do_not_fit_their_pictures_are_named(tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    (root / "teacher" / "0.png").write_bytes(png(picture(0, 40, 40)))
    with pytest.raises(DataError, match="0.png: of another size than its label"):
        sources.LabelledSource([root]).read(0)
    (root / "lq" / "1.png").unlink()
    with pytest.raises(DataError, match="lq/1.png: missing, though it has a label"):
        sources.LabelledSource([root])


def test_gray_pictures_are_degraded_gray(folder):
    config = labelled_config(gray=1.0, kinds=CLEAN)
    sample = make_sample(FolderSource(folder), config, 0, 0)
    assert np.ptp(sample["hq"], axis=-1).max() == 0
    assert np.array_equal(sample["hq"], sample["lq"])
