"""Values as label files write them: ids, flags and numbers, each also as text.

Every converter takes what a JSON, csv or xml file gave and raises ValueError where it can be no
such value, so that a mistake in labels is an error rather than a lost person.
"""

import math
import re

# The usual form of a whole number. "000001" is no such form, and is another id than 1: sets
# whose ids are file names have both, and one taken for the other puts labels on a wrong picture.
DECIMAL = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
# Words that export tools write for flags, in lower case.
NO = {"", "no", "n", "false", "f", "none", "null", "nan", "unknown", "unspecified"}
YES = {"yes", "y", "true", "t"}


def canonical_id(value: object) -> int | str:
    """The one form of an id: 1, 1.0 and "1" are the same. Raises ValueError if it is no id."""
    # True is an int for Python, but no id.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not an id")
    if isinstance(value, str):
        text = value.strip()
        return int(text) if DECIMAL.fullmatch(text) else text
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is not an id")
        return int(value) if value.is_integer() else repr(value)
    return value


def flag(value: object) -> bool:
    """Whether a flag is set, as by 1, "1", true, "yes". Unknown (-1, null, "Unspecified") is not.

    Raises ValueError on what says neither.
    """
    text = "" if value is None else str(value).strip().lower()
    if text in NO or text in YES:
        return text in YES
    try:
        return float(text) > 0
    except ValueError:
        raise ValueError(f"{value!r} is neither yes nor no") from None


def length(value: str | float | None) -> int:
    """A picture's width or height in whole pixels; 0 where it is not said. Raises ValueError."""
    return int(float(value or 0))
