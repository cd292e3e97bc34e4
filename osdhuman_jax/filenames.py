"""Names of files as text: a name may have bytes that are no UTF-8, which no record can hold.

Python reads such a byte as a lone surrogate, which JSON, Parquet and terminals refuse; control
characters end lines and steer terminals. Records and messages have `spelled` names; `unspelled`
gives back the one that the file system knows.
"""

import os
import re
from pathlib import Path

# What has a spelling of its own: control characters, bytes that are no UTF-8, and some backslashes.
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]|\\(?=x[0-9a-f]{2})")
_SPELLED = re.compile(r"(?:\\x[0-9a-f]{2})+")


def spelled(name: str | os.PathLike[str]) -> str:
    r"""The name with `\xf1` in the place of a byte F1 that is no part of UTF-8, or of a control's.

    A backslash in a name is spelled `\x5c` where it would read as such a byte, so that two names
    never have one spelling. All other names are their own.
    """
    # A lone surrogate stands for one byte (PEP 383), which `fsencode` gives back.
    return _ODD.sub(
        lambda odd: "".join(rf"\x{byte:02x}" for byte in os.fsencode(odd[0])), os.fspath(name)
    )


def unspelled(text: str) -> str:
    """The name that `spelled` gives this text of."""
    # Bytes in a row together: several may be one character.
    return _SPELLED.sub(lambda run: os.fsdecode(bytes.fromhex(run[0].replace(r"\x", ""))), text)


def unspelled_path(text: str) -> Path:
    """The path that `spelled` gives this text of."""
    return Path(unspelled(text))
