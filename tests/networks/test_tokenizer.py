"""Token ids against those of transformers' tokenizer, with a vocabulary the test writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from make_weights import MERGES, VOCAB

from osdhuman_jax.networks.tokenizer import BOS, EOS, Tokenizer

TEXTS = ["dog, cat", " ", "", "A CAT\n ##  dog.", ", ".join(["dog"] * 20), "dog " * 9, "a" * 9]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as CLIP's tokenizer has them."""
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCAB)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return tmp_path


def ids(*tokens: str) -> list[int]:
    return [VOCAB.index(token) for token in tokens]


def test_ids(folder):
    got = Tokenizer(folder, 9)(["dog, cat", " ", "##", "dog dog cat dog cat dog cat dog"])
    assert got.dtype == np.int32 and VOCAB[0] == "!"
    assert got.tolist() == [
        [*ids(BOS, "dog</w>", ",</w>", "cat</w>", EOS), 0, 0, 0, 0],
        [*ids(BOS, EOS), 0, 0, 0, 0, 0, 0, 0],
        [*ids(BOS, "##</w>", EOS), 0, 0, 0, 0, 0, 0],
        ids(BOS, *(f"{word}</w>" for word in "dog dog cat dog cat dog cat".split()), EOS),
    ]


@pytest.mark.parametrize("listed", [False, True], ids=["text", "list"])
def test_one_file_is_as_good_as_two(folder, listed):
    """`tokenizer.json`, whose merges are texts or, since a later version, lists."""
    want = Tokenizer(folder, 9)(TEXTS)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    vocab = {token: i for i, token in enumerate(VOCAB)}
    merges = [merge.split() for merge in MERGES] if listed else MERGES
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    assert Tokenizer(folder, 9)(TEXTS).tolist() == want.tolist()
    for text, said in (("[]", "not CLIP's vocabulary"), ('{"model": 3}', "not CLIP's vocabulary")):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            Tokenizer(folder)


@pytest.mark.parametrize("length", [11, 77])
def test_transformers_pads_and_truncates_alike_when_told_the_pad_token(folder, length):
    """No "!" in the texts: transformers takes one for padding, OpenCLIP for an exclamation."""
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folder, pad_token="!", local_files_only=True)
    kw = {"padding": "max_length", "truncation": True, "max_length": length}
    want = theirs(TEXTS, **kw)["input_ids"]
    assert len({len(set(row)) for row in want}) > 2
    assert Tokenizer(folder, length)(TEXTS).tolist() == want


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("vocab.json", json.dumps({"a": 0, EOS: 1}), "not CLIP's vocabulary"),
        ("vocab.json", "[]", "not CLIP's vocabulary"),
        ("vocab.json", json.dumps({BOS: "0", EOS: 1}), "ids that are no numbers"),
        ("vocab.json", "{", "Expecting"),
        ("vocab.json", "[" * 100_000, r"vocab.json: not JSON \(nested too deep\)"),
        ("merges.txt", "#version: 0.2\nd o g\n", "not pairs"),
        ("merges.txt", "#version: 0.2\nd o\nx y\n", "merges.txt: 'x y' is of no tokens of vocab"),
    ],
)
def test_other_files_are_refused(folder, name, text, said):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        Tokenizer(folder)
    # Bytes that are no text are told of with the file's name.
    (folder / name).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{name}: no text in UTF-8"):
        Tokenizer(folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Tokenizer(folder)
