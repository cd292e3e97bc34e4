"""Captions of training pictures, by which text-to-image networks are steered (DiffBody).

    {"file": "a/b.jpg", "text": "young woman, red dress", "by": "human"}

`data.captions` names a file of such lines for each of `data.sources`; who or what wrote a caption,
`by`, is for people. A picture without one has the caption "". Packed records bring their own, the
field `text` of a record, which counts where no file is named ('').
"""

from collections.abc import Sequence
from pathlib import Path

from osdhuman_jax.config import DataConfig, Json
from osdhuman_jax.data.picture_lines import Table, check_pictures, read_lines
from osdhuman_jax.data.sources import ChainSource, check_count
from osdhuman_jax.filenames import spelled


def read_captions(path: Path, *, unfinished: bool = False) -> Table[str]:
    """Captions by a picture's path without its suffix. Raises DataError."""
    return read_lines(path, "text", _text, unfinished=unfinished)


def _text(entry: Json) -> str:
    text = entry["text"]
    if not isinstance(text, str):
        raise ValueError("its text is no text")
    # Half of a pair of surrogates, which JSON can spell and no tokenizer can read.
    text.encode()
    return text


class Captions:
    """The captions of `data.sources`, by the index of a picture in them."""

    def __init__(self, source: ChainSource, files: Sequence[str]) -> None:
        """`files`: one for each source, empty where a source has none. Raises DataError."""
        check_count("captions", "files", len(files), source)
        self._source = source
        self._tables = [read_captions(Path(file)) if file else None for file in files]
        # A wrong file is found out now, not by a model that learned to heed no text.
        self.missing: dict[str, int] = {}  # pictures without a caption, by file
        for file, table, part in zip(files, self._tables, source.parts, strict=True):
            if table is not None and (without := check_pictures(spelled(file), table, part)):
                self.missing[file] = without

    def read(self, index: int) -> str:
        """The caption of a picture, "" where it has none. Raises RecordError, OSError."""
        number, source, local = self._source.locate(index)
        table = self._tables[number]
        return source.text(local) if table is None else table.get(source.stem(local), "")


def open_captions(config: DataConfig, source: ChainSource) -> Captions | None:
    """The captions of a configuration's opened sources, None where none are wanted.

    Raises DataError.
    """
    return Captions(source, config.captions) if config.captions else None
