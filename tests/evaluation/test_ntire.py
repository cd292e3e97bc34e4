"""NTIRE 2026's score, term by term, and the gate that keeps persons who they are."""

import pytest
from refusals import one_line

from osdhuman_jax.evaluation.metrics import METRICS, SETS
from osdhuman_jax.evaluation.ntire import NAME, PARTS, Gate, read_gate, score

MEANS = {"clipiqa": 0.7, "maniqa": 0.6, "musiq": 75, "niqe": 4, "qalign": 4.5, "fid-ffhq": 50}


def test_the_score_by_hand():
    assert score(MEANS) == pytest.approx(0.7 + 0.6 + 0.75 + 0.6 + 0.9 + 0.5)
    # Two terms end at zero.
    assert score(MEANS | {"niqe": 12, "fid-ffhq": 130}) == pytest.approx(0.7 + 0.6 + 0.75 + 0.9)
    assert score(MEANS | {"qalign": None}) is None and score({}) is None
    assert set(PARTS) | {NAME} == set(SETS[NAME]) <= set(METRICS)


def test_the_gate_by_sets(tmp_path):
    """Eleven faces below the lowest similarity of their set are one too many."""
    path = tmp_path / "ours.csv"
    fine = [("CelebA", 0.5), ("LFW-Test", 0.6), ("Wider-Test", 0.2), ("WebPhoto-Test", 0.25)]
    lost = [("CelebChild-Test", 0.59)] * 5 + [("WebPhoto-Test", 0.24)] * 4 + [("CelebA", "nan")]

    def write(rows) -> None:
        lines = [f"{i}.png,{kind},{value},4.0" for i, (kind, value) in enumerate(rows)]
        path.write_text("\n".join(["Filename,Dataset,ID_Sim,NIQE", *lines]) + "\n")

    names = [f"some/{i}" for i in range(15)]
    write(fine + lost)
    found = read_gate(path, names[:14])
    assert found == Gate(below=10, faces=14) and found.passed
    write(fine + lost + [("LFW-Test", 0.1)])
    assert not read_gate(path, names).passed
    # Of other pictures it tells nothing.
    for pictures, said in (
        (names[:14], "'14.png': none of the method's pictures"),
        ([*names, "b/c.d"], "lacks the method's picture b/c.d"),
    ):
        with one_line(ValueError, said):
            read_gate(path, pictures)
    for text, said in (
        ("Filename,ID_Sim\n", "lacks the column Dataset"),
        ("Filename,Dataset,ID_Sim\n", "holds no face"),
        ("Filename,Dataset,ID_Sim\na,FFHQ,0.5\n", "no set 'FFHQ'; there are CelebA"),
        ("Filename,Dataset,ID_Sim\na,CelebA,high\n", "not eval.py's table"),
        ("Filename,Dataset,ID_Sim\n" + "a.png,CelebA,0.4\n" * 2, "has 'a' twice"),
    ):
        path.write_text(text)
        with one_line(ValueError, said):
            read_gate(path, ["a"])
