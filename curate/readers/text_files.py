"""Text files that people give: UTF-8, or what a byte order mark at their start says.

Spreadsheets save csv files with such a mark. This is for files that are read line by line or piece
by piece; of a JSON file that is read as a whole `json.loads` takes the bytes and heeds the mark.
"""

import codecs
from pathlib import Path
from typing import TextIO

# The longer ones first, since UTF-32's mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def marked_encoding(start: bytes) -> str:
    """The encoding named by the byte order mark at the start; empty where there is none."""
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "")


def open_text(path: Path, errors: str = "strict") -> TextIO:
    """Open a file to read its text without the mark; ends of lines are left as they are.

    Reading raises UnicodeDecodeError, which is a ValueError, where the bytes are no such text.
    """
    with open(path, "rb") as file:
        encoding = marked_encoding(file.read(4)) or "utf-8"
    return open(path, newline="", encoding=encoding, errors=errors)
