"""Each name of a file has one spelling, which is text, and comes back from it."""

import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from osdhuman_jax.filenames import spelled, unspelled, unspelled_path


@given(st.binary().filter(lambda name: b"\0" not in name))
@example(b"Mu\xf1oz.png")
@example(rb"Mu\xf1oz.png")
@example(b"\\\xf1\\x\\x5c")
@example("\x1b[2J\x9b\u2028é\n".encode())
def test_names_come_back(name):
    text = spelled(os.fsdecode(name))
    text.encode()
    assert os.fsencode(unspelled(text)) == name


@given(st.binary(max_size=6), st.binary(max_size=6))
@example(b"\xf1", rb"\xf1")
def test_two_names_have_two_spellings(one, other):
    same = spelled(os.fsdecode(one)) == spelled(os.fsdecode(other))
    assert same == (one == other)


@pytest.mark.parametrize("name", ["a.png", "день.jpg", "a\\b", r"C:\xyz", "#1 100%.jpg"])
def test_other_names_are_their_own(name):
    assert spelled(name) == name and str(unspelled_path(name)) == name


def test_the_spelling_shows_the_byte():
    text = spelled(os.fsdecode(b"Mu\xf1oz.png"))
    assert text == r"Mu\xf1oz.png" and json.loads(json.dumps(text)) == text


def test_a_name_is_one_line_that_steers_no_terminal():
    assert spelled("a\n\x1b[31m\x9b.png") == r"a\x0a\x1b[31m\xc2\x9b.png"
