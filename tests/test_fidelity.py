"""The fidelity table: its measures, its verdicts, its exit status; its cheapest rows for real."""

import numpy as np
import pytest

from benchmarks import fidelity
from benchmarks.fidelity import Row, compare, main


@pytest.mark.parametrize(("value", "kept"), [(1.0, True), (1.25, True), (1.3, False)])
def test_verdict_is_by_the_largest_error(value, kept):
    assert compare("x", [1.0, value], np.ones(2), 0.25).kept is kept


def test_not_a_number_breaks_every_budget():
    assert not compare("x", [np.nan, 1.0], np.ones(2), 1e9).kept


@pytest.mark.parametrize(("kept", "status"), [(True, 0), (False, 1)])
def test_exit_status(monkeypatch, capsys, kept, status):
    rows = {"a": lambda size: [Row("first", 0.0, 0.0, "none", True)]}
    rows["b"] = lambda size: [Row("second", 0.5, 0.1, "some", kept)]
    monkeypatch.setattr(fidelity, "ROWS", rows)
    assert main([]) == status
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.endswith("kept") and ("BROKEN" in second) is not kept
    assert "5.00e-01" in second and "1.00e-01" in second


def test_cheapest_rows(capsys):
    assert main(["--only", "hfie", "tagger", "eq2", "vsd"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    vsd = ["VSD gradient, Eq. 6", "VSD loss, its slope"]
    assert [line.split("  ")[0] for line in lines] == ["HFIE", "tagging head", "Eq. 2", *vsd]
    assert all(0 < float(line[38:50]) < 1e-4 for line in lines)  # not compared with themselves
