"""Prompts as CLIP's token ids: BOS, at most 75 tokens, EOS, then padding up to 77.

It is needed wherever `clip.py` is: texts go in, ids (B, 77) for the text encoder come out. Stable
Diffusion 2 pads with id 0 ("!"), as OpenCLIP does; files that came with it name another padding
token, and libraries differ in which they obey. Hence `transformers` cuts words to tokens and
nothing else; ends and padding are put here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from osdhuman_jax.disk import parse_json

# Ids 49406 and 49407 in CLIP's vocabulary.
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PAD_ID = 0
LENGTH = 77
# Where tokenizer.json holds the two tables.
_MODEL = ("vocab", "merges")


class Tokenizer:
    """CLIP's byte-pair encoding, by the vocabulary in a folder (`read_vocabulary`)."""

    def __init__(self, folder: str | Path, length: int = LENGTH) -> None:
        """Raises FileNotFoundError, or ValueError where the files are not CLIP's."""
        vocab, merges = read_vocabulary(Path(folder))
        # Imported here because it takes a second, and few commands need it.
        from transformers import CLIPTokenizer

        self.length, self.bos, self.eos = length, vocab[BOS], vocab[EOS]
        self._words = CLIPTokenizer(vocab=vocab, merges=merges)  # type: ignore[arg-type]

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "b t"]:
        """Ids (B, length) of texts; the end of a text that is too long is cut off."""
        # Two places are left for the ends, whatever the text's length.
        ids = np.full((len(texts), self.length), PAD_ID, np.int32)
        for row, text in zip(ids, texts, strict=True):
            words = self._words.encode(text, add_special_tokens=False)[: self.length - 2]
            row[: len(words) + 2] = [self.bos, *words, self.eos]
        return ids


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by token, and the pairs to join in their order.

    Read are `vocab.json` and `merges.txt`, or `tokenizer.json` where it stands alone. Raises
    FileNotFoundError, or ValueError where they are not CLIP's.
    """
    # Either all is in one file, as newer folders have it, or it is in two.
    rows: list[str | list[str]] | None
    file = whole = folder / "tokenizer.json"
    if whole.is_file() and not (folder / "vocab.json").exists():
        found = _read_json(whole)
        model = found.get("model") if isinstance(found, dict) else None
        vocab, rows = (model.get(k) if isinstance(model, dict) else None for k in _MODEL)
    else:
        whole, file = folder / "vocab.json", folder / "merges.txt"
        vocab = _read_json(whole)
        lines = _read_text(file).strip().split("\n")
        rows = [line for line in lines if not line.startswith("#version")]
    # Anybody's file may lie there: what is not CLIP's is refused before a word is looked up in it.
    if not isinstance(vocab, dict) or not {BOS, EOS} <= set(vocab):
        raise ValueError(f"{whole}: not CLIP's vocabulary (no {BOS} or {EOS})")
    if not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise ValueError(f"{whole}: not CLIP's vocabulary (ids that are no numbers)")
    # A pair is "a b" or, in newer files of the `tokenizers` library, ["a", "b"].
    pairs = [row.split() if isinstance(row, str) else row for row in rows or ()]
    if not pairs or not all(map(_is_pair, pairs)):
        raise ValueError(f"{file}: not pairs of tokens")
    # The library of tokens says no more of such a pair than that something is out of place.
    if strange := [pair for pair in pairs if not {*pair, "".join(pair)} <= vocab.keys()]:
        raise ValueError(f"{file}: {' '.join(strange[0])!r:.40} is of no tokens of {whole.name}")
    return vocab, [(pair[0], pair[1]) for pair in pairs]


def _is_pair(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(isinstance(t, str) for t in row)


def _read_json(path: Path) -> Any:
    """Raises ValueError, which names the file, where it holds no JSON."""
    text = _read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _read_text(path: Path) -> str:
    """Raises ValueError, which names the file, where it holds no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text in UTF-8") from error
