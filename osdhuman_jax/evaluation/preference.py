"""Which of two methods a person prefers who cannot know whose picture is whose.

    write_page(folder, (first, second), pairs, seed)   ->  index.html and key.json
    count(read_key(key), [read_answers(csv, key)])     ->  Preference(first=17, second=6, ...)

A seed draws the order of the pairs and the side of each method. The page holds pictures and names
of pairs, and nothing that tells one method from the other: sizes, formats and metadata of files are
made alike, and the sides are in key.json alone, which stays closed until the answers are given. A
preference is the share of the pairs on which a side was chosen, with Wilson's interval of 95 %.
"""

import base64
import csv
import hashlib
import html
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy import stats

from osdhuman_jax.disk import parse_json, write_json, write_text
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import encode_png
from osdhuman_jax.images.sizes import resized

Pixels = UInt8[np.ndarray, "_ _ 3"]
Pair = tuple[str, Pixels, Pixels]  # name, the first method's picture, the second's

PAGE, KEY, ANSWERS = "index.html", "key.json", "answers.csv"
TEMPLATE = Path(__file__).with_name("blind_page.html")
LEFT, RIGHT, NONE = "left", "right", "none"  # what is chosen of a pair
COLUMNS = ("page", "pair", "choice")
# Browsers hold no text of more than about 512 MB.
MOST_BYTES = 400_000_000


@dataclass(frozen=True)
class Key:
    """What a page does not tell: whose picture is on the left of each pair."""

    page: str  # the page's own name, which its answers carry
    seed: int
    methods: tuple[str, str]
    left: dict[str, str]  # method by name of the pair


@dataclass(frozen=True)
class Preference:
    """How often each method was chosen, and how often neither."""

    first: int
    second: int
    neither: int
    unanswered: int

    @property
    def decided(self) -> int:
        """Pairs on which a side was chosen."""
        return self.first + self.second

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the first method's share of the decided pairs."""
        found = stats.binomtest(self.first, self.decided).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


def write_page(folder: Path, methods: tuple[str, str], pairs: Iterable[Pair], seed: int) -> Key:
    """Write the page and its key into a folder. Raises ValueError where it would be too large."""
    drawn, left, size = [], {}, 0
    for name, *pictures in pairs:
        # One bit of a digest is the side, the rest the place in the order: a pair more or less
        # moves no other. Other methods have other sides, or one page would tell of the next.
        drawn_of = json.dumps([seed, methods, name])
        digest = hashlib.sha256(drawn_of.encode()).digest()
        swapped = digest[-1] % 2
        shown = [_data_address(_like_largest(p, pictures)) for p in pictures]
        left[name] = methods[swapped]
        drawn.append((digest, [name, shown[swapped], shown[1 - swapped]]))
        size += sum(map(len, shown))
        if size > MOST_BYTES:
            raise ValueError(f"{len(drawn)} pairs are too large for one page; give fewer (--names)")
    ordered = [row for _, row in sorted(drawn)]
    # JSON in a script must not end the script.
    rows = json.dumps(ordered).replace("<", "\\u003c")
    page = hashlib.sha256(rows.encode()).hexdigest()[:16]
    key = Key(page, seed, methods, {name: left[name] for name, *_ in ordered})
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("__PAGE__", html.escape(page)).replace("__ANSWERS__", ANSWERS)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PAGE, text.replace("__PAIRS__", rows))
    write_json(folder / KEY, asdict(key))
    return key


def _like_largest(picture: Pixels, pair: Sequence[Pixels]) -> Pixels:
    """The picture in the size of the pair's largest, since a size may tell whose it is."""
    height, width = max((other.shape[:2] for other in pair), key=np.prod)
    return picture if picture.shape[:2] == (height, width) else resized(picture, (height, width))


def _data_address(picture: Pixels) -> str:
    """A picture as an address that holds it, without whatever its file said besides."""
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()


def read_key(path: Path) -> Key:
    """The key beside a page. Raises ValueError, in one line, where a file is none."""
    try:
        return _key(parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{spelled(path)}: not the key of a page of pairs") from error


def _key(found: Any) -> Key:
    """The key of its JSON. Raises ValueError, KeyError or TypeError where that is another."""
    page, seed, methods, left = (found[name] for name in ("page", "seed", "methods", "left"))
    kinds = ((page, str), (seed, int), (methods, list), (left, dict))
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise ValueError("of other types than a key")
    first, second = methods
    if not all(isinstance(name, str) for name in (*methods, *left.values())):
        raise ValueError("a method's name is no text")
    if first == second or not {*left.values()} <= {first, second}:
        raise ValueError("not of two methods")
    return Key(page, seed, (first, second), left)


def read_answers(path: Path, key: Key) -> dict[str, str]:
    """What a person chose, by name of the pair: LEFT, RIGHT or NONE; pairs may lack.

    Raises ValueError, in one line, on another page's answers and on what is no answer.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            rows = list(csv.reader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{spelled(path)}: not a table of answers ({error})") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise ValueError(f"{spelled(path)}: not a table of answers; it begins {','.join(COLUMNS)}")
    found: dict[str, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        page, name, choice = row if len(row) == len(COLUMNS) else ("", "", "")
        if page != key.page:
            raise ValueError(f"{spelled(path)}:{line}: not an answer of this key's page")
        if name not in key.left or name in found or choice not in (LEFT, RIGHT, NONE):
            what = "answered twice" if name in found else "no pair, or no choice, of the page"
            raise ValueError(f"{spelled(path)}:{line}: {name:.80}: {what}")
        found[name] = choice
    return found


def count(key: Key, answers: Sequence[dict[str, str]]) -> Preference:
    """Choices of one person or of several, who each answered the same page."""
    chosen = Counter()
    for given in answers:
        for name, side in given.items():
            on_left = key.left[name] == key.methods[0]
            chosen[NONE if side == NONE else key.methods[on_left != (side == LEFT)]] += 1
    total = len(key.left) * len(answers)
    first, second = key.methods
    return Preference(chosen[first], chosen[second], chosen[NONE], total - chosen.total())


def told(key: Key, found: Preference) -> str:
    """The preference in two lines."""
    first, second = key.methods
    rest = f"{second}: {found.second}, no difference: {found.neither}"
    rest += f", not answered: {found.unanswered}"
    if not found.decided:
        return f"{first}: {found.first}; {rest}\nno pair was decided, so there is no preference"
    low, high = found.interval()
    share = f"{100 * found.first / found.decided:.1f} %"
    return (
        f"{first}: {found.first}, {rest}\n"
        f"{first} preferred in {share} of {found.decided} decided pairs "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %, Wilson)"
    )
