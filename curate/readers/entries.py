"""A JSON file larger than memory, read entry by entry.

Label files are one object whose long members are lists. A path goes in; names of members and the
entries of their lists come out. An entry is held for as long as its reader needs it, and of the
file's text only what is being read. Python's own JSON scanner reads the entries; this module
only refills its buffer. The library for this, ijson, was tried: it is no faster (38 MB of boxes
took it 1.7 to 2.0 CPU seconds, and this module 1.0), and its parser refuses the NaN that Python
writes, turns a broken surrogate in a file's name into "?" without a word, and names no place.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from curate.readers.common import ReaderError
from curate.readers.text_files import open_text
from curate.schema import Json

# Characters that are read at a time.
CHUNK = 1 << 20
# Characters an entry may have; a longer one is a file that is not what it seems.
ENTRY_LIMIT = 1 << 26
# What JSON allows between values.
SPACE = re.compile(r"[ \t\n\r]*")
raw_decode = json.JSONDecoder().raw_decode


def members(path: Path) -> Iterator[tuple[str, Iterator[Json]]]:
    """Yields the names of the members of the object in a file, with the entries of their lists.

    A value that is no list is one entry. Entries that the caller does not take are passed over.
    Raises ReaderError where the file is no json object.
    """
    try:
        with open_text(path) as file:
            text = _Text(path, file)
            for _ in text.items("{", "}"):
                name = text.value()
                text.take(":")
                rest = _entries(text)
                yield name, rest
                # The next member begins after this one's last entry.
                for _ in rest:
                    pass
            if text.peek():
                raise text.fault("more after its end")
    except OSError as error:
        raise ReaderError(f"{path}: not a json file: {error}") from None


def _entries(text: "_Text") -> Iterator[Json]:
    if text.peek() != "[":
        yield text.value()
        return
    for _ in text.items("[", "]"):
        yield text.value()


class _Text:
    """A place in a file's text that moves on as values are taken; what is behind it is dropped."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._passed = "", 0, 0

    def fault(self, what: str) -> ReaderError:
        """The error to raise: what is wrong, and where."""
        place = self._passed + self._at
        return ReaderError(f"{self._path}: not a json file: {what} at character {place}")

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            space = SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """Go past the next character. Raises ReaderError unless it is one of those wanted."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.fault(f"{found or 'its end'!r} in place of {' or '.join(wanted)}")
        self._at += 1
        return found

    def items(self, start: str, end: str) -> Iterator[None]:
        """Go through what is between two brackets.

        Yields where each item begins; the caller goes past the item before it asks for the next.
        """
        self.take(start)
        if self.peek() == end:
            self.take(end)
            return
        while True:
            yield
            if self.take(f",{end}") == end:
                return

    def value(self) -> Json:
        """Go past a value, and return it. Raises ReaderError if it is damaged."""
        self.peek()
        while True:
            try:
                value, end = raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The value may only be cut off by the end of what was read.
                if not self._more():
                    raise self.fault(error.msg) from None
            except RecursionError:
                raise self.fault("values in values, too deep to be labels,") from None
            else:
                # At the end of what was read a number might go on.
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value

    def _more(self) -> bool:
        """Read on; returns False at the end of the file."""
        # As much again as is held: an entry of n characters is then scanned log n times, not n.
        held = len(self._text) - self._at
        if held > ENTRY_LIMIT:
            raise self.fault(f"an entry of more than {ENTRY_LIMIT:,} characters")
        try:
            read = self._file.read(max(CHUNK, held))
        except UnicodeError as error:
            raise self.fault(str(error)) from None
        if read:
            self._passed += self._at
            self._text, self._at = self._text[self._at :] + read, 0
        return bool(read)
