"""A teacher's labels: what is written, that it goes on, and that training reads it."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tiny

from osdhuman_jax.commands import label, teacher_pairs
from osdhuman_jax.data.sources import LabelledSource, open_source
from osdhuman_jax.disk import json_lines
from osdhuman_jax.images.codec import read_image, write_png
from osdhuman_jax.inference.pipeline import Pipeline


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        write_png(
            folder / f"{i}.png", np.roll(skimage.data.astronaut()[:200, :160], 30 * i, axis=1)
        )
    return folder


@pytest.fixture
def teacher(monkeypatch) -> list[int]:
    """Stands for a model that halves contrast; counts the pictures it is given."""
    pipeline, asked = tiny.halving(), []
    restore = pipeline.restore

    def counted(pictures, *arguments):
        asked.append(len(pictures))
        return restore(pictures, *arguments)

    monkeypatch.setattr(pipeline, "restore", counted)
    monkeypatch.setattr(Pipeline, "from_folder", lambda *_: pipeline)
    return asked


def run(photos: Path, output: Path, *flags: str) -> int:
    places = ("--input", str(photos), "--model", "models/teacher", "--output", str(output))
    return label.main([*places, *flags])


def test_pairs_are_an_lq_and_what_the_teacher_makes_of_it(photos, teacher, tmp_path):
    output = tmp_path / "labelled"
    assert run(photos, output, "--count", "3", "--seed", "5") == 0
    pairs = LabelledSource([output])
    assert len(pairs) == 3
    for number in range(3):
        lq, made = pairs.read(number)
        assert lq.shape == (512, 512, 3)
        np.testing.assert_array_equal(lq, teacher_pairs.crop(open_source(photos), 5, number))
        assert np.abs(made - (lq / 2 + 127.5 / 2)).max() <= 0.51
    lines = json_lines((output / "labels.jsonl").read_bytes())
    assert [line["number"] for line in lines] == [0, 1, 2]
    assert {line["seed"] for line in lines} == {5}


def test_only_what_is_missing_or_of_another_run_is_made(photos, teacher, tmp_path):
    output = tmp_path / "labelled"
    run(photos, output, "--count", "2")
    assert run(photos, output, "--count", "3") == 0
    assert len(teacher) == 3
    write_png(output / "teacher" / "000001.png", read_image(output / "lq" / "000001.png").rgb)
    with (output / "labels.jsonl").open("a") as log:
        log.write('{"number": 2, "se')  # torn by a kill
    assert run(photos, output, "--count", "3") == 0
    assert len(teacher) == 4
    assert run(photos, output, "--count", "3", "--seed", "1") == 0
    assert len(teacher) == 7


def test_bad_input_is_one_line_and_leaves_nothing(photos, tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "out") == 2
    assert run(photos, tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "none" in lines[0] and "models/teacher" in lines[1]
    assert not (tmp_path / "out").exists()
