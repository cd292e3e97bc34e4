"""Where training pictures come from: folders, packed files, several of them."""

import pickle

import numpy as np
import pytest
from photo_sources import COUNT, assert_equal, config_of, pack, picture, png, take
from refusals import one_line

from osdhuman_jax.config import ConfigError
from osdhuman_jax.data.loader import make_loader, make_sample
from osdhuman_jax.data.records import RecordError
from osdhuman_jax.data.sources import (
    ChainSource,
    DataError,
    FolderSource,
    RecordSource,
    open_source,
    open_sources,
)


def test_folder_order_and_pickle(folder):
    source = FolderSource(folder)
    assert source.files == [f"{i}.PNG" for i in range(0, 10, 2)] + [
        f"b/{i}.png" for i in range(1, 10, 2)
    ]
    again = pickle.loads(pickle.dumps(source))
    assert again.read(7) == source.read(7) == (folder / "b/5.png").read_bytes()
    assert again.name(7) == str(folder / "b/5.png")


def test_records_give_the_pixels_of_the_folder(folder, tmp_path):
    pictures = FolderSource(folder)
    payloads = [pictures.read(i) for i in range(COUNT)]
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "packed/a.arrayrecord", payloads[:6])
    pack(tmp_path / "packed/b.array_record", payloads[6:])
    runs = []
    for path in (folder, tmp_path / "packed"):
        with make_loader(config_of(path), batch_size=5) as loader:
            runs.append(take(loader, 3))
    assert_equal(runs[1], runs[0])


def test_record_source_pickles_and_names(tmp_path):
    path = pack(tmp_path / "a.arrayrecord", [b"one", b"two"])
    source = pickle.loads(pickle.dumps(open_source(path)))
    assert isinstance(source, RecordSource) and len(source) == 2
    assert (source.read(1), source.name(1)) == (b"two", f"{path}[1]")


def test_a_damaged_record_is_skipped(tmp_path):
    payloads = [png(picture(i, 60, 60)) for i in range(12)]
    path = pack(tmp_path / "a.arrayrecord", payloads)
    raw = bytearray(path.read_bytes())
    at = raw.find(payloads[5][1000:1100])
    raw[at : at + 20] = bytes(20)
    path.write_bytes(raw)
    source = open_source(path)
    with pytest.raises(RecordError):
        source.read(5)
    sample = make_sample(source, config_of(path, crop=60, flip=False), 0, 5)
    assert len(sample["failures"]) == 1 and f"{path}[5]" in sample["failures"][0]
    np.testing.assert_array_equal(sample["hq"], picture(6, 60, 60))


def test_sources_are_concatenated(folder, tmp_path):
    path = pack(tmp_path / "a.arrayrecord", [b"one", b"two"])
    source = open_sources([path, folder, path])
    assert isinstance(source, ChainSource) and len(source) == 14
    assert [source.read(i) for i in (0, 1, 12, 13)] == [b"one", b"two"] * 2
    assert source.name(2) == str(folder / "0.PNG") and source.name(11) == str(folder / "b/9.png")


def test_missing_and_empty_sources_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("a.png")
    (tmp_path / "junk.arrayrecord").write_bytes(b"junk")
    cases = {
        "nowhere": "neither a folder",
        "empty": "no pictures",
        "list.txt": "neither a folder nor a file",
        "nowhere.arrayrecord": "neither a folder",
        "junk.arrayrecord": "no whole ArrayRecord file",
        pack(tmp_path / "none.arrayrecord", []).name: "no records",
    }
    for name, message in cases.items():
        with one_line(DataError, f"{name}: {message}"):
            make_loader(config_of(tmp_path / name), batch_size=1)
    with pytest.raises(DataError, match="no data sources"):
        make_loader(config_of(), batch_size=1)


def test_numbers_out_of_range_are_refused(folder):
    for changes in ({"crop": 0}, {"workers": -1}, {"seed": -1}, {"resize_short": -1}):
        with pytest.raises(ConfigError):
            make_loader(config_of(folder, **changes), batch_size=1)
    for numbers in ({"batch_size": 0}, {"batch_size": 1, "shard_index": 1}):
        with pytest.raises(ConfigError):
            make_loader(config_of(folder), **numbers)
