"""Ids, flags and numbers of label files, each also as text."""

import math

import pytest

from curate.readers.values import canonical_id, flag, length


def test_an_id_has_one_form():
    assert {canonical_id(value) for value in (1, 1.0, "1", " 1 ")} == {1}
    assert canonical_id("-7") == -7 and canonical_id("0") == 0


def test_ids_that_only_look_alike_are_two():
    ids = ["000001", "1", "1.0", "+1", "1e0", "0x1", "\u0661", "01", "-0", 1.5]
    assert len({canonical_id(value) for value in ids}) == len(ids)


@pytest.mark.parametrize("value", [None, True, [1], {"$oid": "1"}, math.nan, math.inf])
def test_what_is_no_id(value):
    with pytest.raises(ValueError, match="is not an id"):
        canonical_id(value)


@pytest.mark.parametrize("value", [1, 1.0, True, "1", " 1 ", "1.0", "true", "True", "YES", "0.35"])
def test_flags_that_are_set(value):
    assert flag(value) is True


@pytest.mark.parametrize(
    "value",
    [0, 0.0, False, None, "", " ", "0", "0.0", "false", "FALSE", "No", "null", "None", "-1", -1]
    + ["Unspecified", "nan"],
)
def test_flags_that_are_not_set(value):
    assert flag(value) is False


def test_a_flag_that_says_neither_is_refused():
    with pytest.raises(ValueError, match="'maybe' is neither yes nor no"):
        flag("maybe")


def test_lengths_are_read_from_text_too():
    assert [length(v) for v in (640, "640", "640.0", 640.0, None, "")] == [640] * 4 + [0, 0]
    with pytest.raises(ValueError, match="wide"):
        length("wide")
