"""Large label files are read entry by entry: the same values, and only what is used is held."""

import json
import tracemalloc

import pytest

from benchmarks.curate import write_labels
from curate import readers
from curate.readers import ReaderError, SourceSpec, entries, openimages

DATA = {
    "info": {"by": r"x, ] } \" [", "n": -12.5e3},
    "images": [{"id": 10, "names": ["é", r"\u00e9"]}, {"id": 123456}],
    "numbers": [1234, 5, None, True],
    "empty": [],
    "nothing": None,
    "nested": [[[1], []], {}],
    "last": 123,
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 2])
def test_entries_are_those_of_the_whole(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(entries, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(DATA, indent=indent, ensure_ascii=False) + "\n")
    found = {name: list(rest) for name, rest in entries.members(path)}
    assert found == {k: v if isinstance(v, list) else [v] for k, v in DATA.items()}
    assert [name for name, _ in entries.members(path)] == list(DATA)  # all entries passed over


def test_a_cut_file_is_damaged_wherever_it_was_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "CHUNK", 16)
    path, text = tmp_path / "a.json", json.dumps(DATA)
    for end in range(len(text)):
        path.write_text(text[:end])
        with pytest.raises(ReaderError, match="a.json: not a json file"):
            for _ in entries.members(path):
                pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": [1 2]}', "'2' in place of , or ] at character 9"),
        (b"[1]", "'[' in place of {"),
        (b'{"a": 1} {', "more after its end at character 9"),
        (b'{"a": "\xff"}', "invalid start byte"),
        (b'{"a": [{"b": "' + b"x" * 200, "more than 100 characters"),
    ],
)
def test_the_fault_and_its_place_are_named(tmp_path, monkeypatch, text, words):
    monkeypatch.setattr(entries, "ENTRY_LIMIT", 100)
    monkeypatch.setattr(entries, "CHUNK", 8)
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ReaderError) as caught:
        for _ in entries.members(path):
            pass
    assert words in str(caught.value)


def test_a_label_file_is_not_held(tmp_path, monkeypatch):
    """Numbers of its boxes are; as objects they took 560 bytes each, besides the text."""
    count = 21_600
    kind, paths = write_labels(tmp_path, count).split("=")
    monkeypatch.setattr(entries, "CHUNK", 10_000)
    tracemalloc.start()
    found = readers.read(SourceSpec(kind, tuple(paths.split(",")), kind))
    people = sum(len(image.boxes) for image in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert people == count // 12
    assert peak < 100 * count


def test_three_columns_of_a_table_are_held(tmp_path):
    """Of twelve: as whole rows they took 1.2 kB a picture."""
    count, path = 2000, tmp_path / "info.csv"
    names = ["ImageID", "Rotation", "OriginalURL", "License", *(f"Other{i}" for i in range(8))]
    rows = [f"{i:016x},0,https://a/{i},CC{',some text' * 8}" for i in range(count)]
    path.write_text("\n".join([",".join(names), *rows]))
    wanted = {f"{i:016x}" for i in range(count)}
    tracemalloc.start()
    facts = openimages._info(path, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts["0" * 16] == (0, "https://a/0", "CC") and len(facts) == count
    assert peak < 450 * count
