"""Part maps beside the sources: found, cut as their picture is, refused in one line."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from refusals import one_line

from osdhuman_jax.config import DataConfig, DegradationConfig
from osdhuman_jax.data.crops import cut, cut_labels, draw_window
from osdhuman_jax.data.loader import make_loader, make_sample
from osdhuman_jax.data.part_maps import PartMaps, open_part_maps, read_part_map, write_part_map
from osdhuman_jax.data.records import encode_record
from osdhuman_jax.data.sources import DataError, LabelledSource, open_sources
from osdhuman_jax.degrade import motion
from osdhuman_jax.images.codec import read_image, write_png

SIZE = (90, 120)
STILL = DegradationConfig(
    first_order=(0.0, 1.0, 0.0),
    noise_range2=(0.0, 0.0),
    poisson_scale_range2=(0.0, 0.0),
)


def labels(seed: int) -> np.ndarray:
    """Big squares of labels 0 to 6."""
    rng = np.random.default_rng(seed)
    return np.repeat(np.repeat(rng.integers(0, 7, (3, 4), dtype=np.uint8), 30, 0), 30, 1)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Pictures whose red channel is 40 times their label, and the maps of all but the last."""
    photos, parts = tmp_path / "photos", tmp_path / "parts"
    (photos / "b").mkdir(parents=True)
    (parts / "b").mkdir(parents=True)
    for index, name in enumerate(("a", "b/c", "d", "e")):
        picture = np.full((*SIZE, 3), 128, np.uint8)
        picture[..., 0] = 40 * labels(index)
        write_png(photos / f"{name}.png", picture)
        if name != "e":
            write_part_map(parts / f"{name}.png", labels(index))
    return photos, parts


def config(folders: tuple[Path, Path], **changes) -> DataConfig:
    photos, parts = folders
    values = {"crop": 64, "workers": 0, "seed": 5, "mask": True, "degradation": STILL, **changes}
    return DataConfig(sources=(str(photos),), parts=(str(parts),), **values)


def test_a_map_is_gray_and_comes_back(tmp_path):
    write_part_map(tmp_path / "a.png", labels(0))
    assert read_image(tmp_path / "a.png").gray
    np.testing.assert_array_equal(read_part_map(tmp_path / "a.png", SIZE), labels(0))


@pytest.mark.parametrize("crop, short", [(64, 0), (64, 150), (64, 70), (128, 0)])
def test_labels_are_cut_where_the_picture_is(crop, short):
    picture = np.repeat(40 * labels(3)[..., None], 3, axis=-1)
    window = draw_window(SIZE, np.random.default_rng(1), (crop, crop), short)
    cropped = cut(picture, window, (crop, crop))[..., 0] / 40
    found = cut_labels(labels(3), window, (crop, crop))
    # All but the borders of labels, where the picture is mixed.
    assert found.shape == (crop, crop) and np.mean(np.abs(cropped - found) < 0.1) > 0.85


def test_the_map_follows_window_and_mirror(folders, monkeypatch):
    seen = []
    draw = motion.draw_motion
    monkeypatch.setattr(motion, "draw_motion", lambda rng, p: seen.append(p) or draw(rng, p))
    setting = config(folders)
    source = open_sources(setting.sources)
    maps = open_part_maps(setting, source)
    mirrored = 0
    for epoch in range(8):
        sample = make_sample(source, setting, epoch, 1, maps=maps)
        np.testing.assert_array_equal(seen[-1], np.rint(sample["hq"][..., 0] / 40))
        plain = make_sample(source, replace(setting, flip=False), epoch, 1, maps=maps)
        mirrored += (plain["hq"][:, ::-1] == sample["hq"]).all()
    assert 0 < mirrored < 8


def test_a_batch_has_the_mask_only_where_it_is_wanted(folders):
    with make_loader(config(folders), batch_size=4) as loader:
        batch = next(loader)
    assert batch["mask"].dtype == bool and batch["mask"].shape == (4, 64, 64)
    moved = batch["mask"].any(axis=(1, 2))
    # The one without a map is degraded as ever; nearly all squares of the others may move.
    assert not moved[batch["index"] == 3].any() and moved.sum() >= 2
    with make_loader(config(folders, workers=1), batch_size=4) as loader:
        np.testing.assert_array_equal(next(loader)["mask"], batch["mask"])
    with make_loader(config(folders, mask=False), batch_size=4) as loader:
        other = next(loader)
    assert "mask" not in other
    np.testing.assert_array_equal(other["lq"], batch["lq"])


def test_mixtures_and_labelled_samples_have_a_mask_too(folders, tmp_path):
    kinds = (0.0, 0.0, 0.0, 0.0, 1.0)
    setting = config(folders, kinds=kinds)
    source = open_sources(setting.sources)
    maps = open_part_maps(setting, source)
    assert not make_sample(source, setting, 0, 1, maps=maps)["mask"].any()
    heavy = config(folders, kinds=(1.0,), gray=1.0)
    assert make_sample(source, heavy, 0, 1, maps=maps)["mask"].any()
    for kind in ("lq", "teacher"):
        (tmp_path / kind).mkdir()
        write_png(tmp_path / kind / "a.png", np.zeros((64, 64, 3), np.uint8))
    setting = config(folders, labelled_share=1.0)
    sample = make_sample(source, setting, 0, 1, LabelledSource([tmp_path]), maps)
    assert sample["mask"].shape == (64, 64) and not sample["mask"].any()


def test_a_source_may_have_no_maps(folders):
    photos, parts = map(str, folders)
    maps = PartMaps(open_sources([photos, photos]), ("", parts))
    assert maps.read(1, SIZE) is None
    np.testing.assert_array_equal(maps.read(4 + 1, SIZE), labels(1))
    assert maps.read(4 + 3, SIZE) is None


def test_packed_records_have_maps_by_their_crop_id(folders, tmp_path):
    photos, parts = folders
    writer = ArrayRecordWriter(str(tmp_path / "a.arrayrecord"), "group_size:1,uncompressed")
    header = {"crop_id": "d", "w": SIZE[1], "h": SIZE[0], "codec": "png"}
    writer.write(encode_record(header, (photos / "d.png").read_bytes()))
    writer.close()
    maps = PartMaps(open_sources([tmp_path / "a.arrayrecord"]), (str(parts),))
    np.testing.assert_array_equal(maps.read(0, SIZE), labels(2))


def test_wrong_maps_are_refused_in_one_line(folders, tmp_path):
    photos, parts = folders
    for changes, said in (
        ({"parts": (str(tmp_path / "none"),)}, "none: no such folder"),
        ({"parts": (str(parts), str(parts))}, "2 folders for 1 sources; name one for each"),
        ({"parts": ()}, "motion blur needs part maps: name data.parts"),
    ):
        with one_line(DataError, said):
            make_loader(replace(config(folders), **changes), batch_size=1)
    with pytest.raises(DataError, match="a.png: a part map of 120 x 90, its picture has 64 x 32"):
        read_part_map(parts / "a.png", (32, 64))
    (parts / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="a.png: no part map: not a PNG"):
        read_part_map(parts / "a.png", SIZE)
    cv2.imwrite(str(parts / "a.png"), np.full(SIZE, 40, np.uint8))
    with pytest.raises(DataError, match="a.png: no part map: it has a 40, labels are 0 to 6"):
        read_part_map(parts / "a.png", SIZE)
