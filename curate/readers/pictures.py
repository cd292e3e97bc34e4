"""Pictures below a folder, found by the names that labels give them. All readers use this.

Labels are written on other systems and in other folders than they are read in: a name may have
backslashes, a drive, `..`, an address, other letter case, another Unicode form, percent escapes,
more folders or fewer, no suffix. A wrong picture is worse than none, so a name is never guessed.
Either all of the name must be the end of a picture's path below the folder, or all of that path the
end of the name. If two pictures fit equally well the picture is missing, and so it is if another
name fits it better.

A name's fit is a rank, of which less is better: first by how the spellings differ, then by folders
that differ, then by whether the paths are the same to their beginnings, then by how many parts are
the same.
"""

import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from curate.readers.common import Notes, ReaderError
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.listing import SUFFIXES, Tree, tree

# Scheme and host of an address.
URL = re.compile(r"[a-z][a-z0-9+.-]+://[^/]*", re.IGNORECASE)
# Label Studio's addresses have the path in the query.
SERVED = re.compile(r".*/local-files/\?d=", re.DOTALL)
DRIVE = re.compile(r"[A-Za-z]:(?=/|\\)")
# The rank of a file that no name claims, and the owner of one that two names claim alike.
FREE, TIE = 0xFFFF, 0
# Parts of a path that count in a rank; it bounds the rank, which has to fit in 16 bits.
DEEPEST = 63
# More files of one name than this are compared only where their folders fit too: where thousands of
# folders hold the same names, the comparisons would grow with the square of their number.
CROWD = 64
# What it costs in rank to add a suffix, and to be a less telling name: more than all else together.
ADDED, WEAKER = 2048, 4096
# Links to folders that are followed within one name; the system's own limit.
LINKS = 40


def clean(name: str) -> str:
    """A name as a relative path with /, without drive, host, query, `.` and `..`."""
    text = SERVED.sub("", name) if "local-files" in name else name
    if address := URL.match(text):
        text = re.split("[?#]", text[address.end() :])[0]
    text = text.replace("\\", "/")
    # A letter and a colon are a drive only before a slash; else they may be part of a name.
    if DRIVE.match(text):
        text = text[2:]
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def leads_out(name: str) -> bool:
    """Whether a name begins elsewhere than in the folder of pictures, as /a, C:/a and ../a do."""
    text = name.replace("\\", "/")
    return bool(text.startswith("/") or DRIVE.match(text) or URL.match(text)) or (
        ".." in text.split("/")
    )


def _nfc(text: str) -> str:
    """Composed characters: macOS writes an accent as a character of its own, others do not."""
    return unicodedata.normalize("NFC", text)


def _lower(text: str) -> str:
    """One letter case. Folding can undo the composed form, which is made anew."""
    return _nfc(_nfc(text).casefold())


def _fold(text: str) -> str:
    """The form that all spellings of a name have in common."""
    # Most names are in this form already, and looking is cheaper than folding.
    return text if text.isascii() and text.islower() and "%" not in text else _lower(_plain(text))


def _alike(one: str, other: str) -> bool:
    """Whether two names are spellings of one."""
    return one == other or _fold(one) == _fold(other)


def _plain(text: str) -> str:
    """A name without percent escapes."""
    return unquote(text, errors="surrogateescape") if "%" in text else text


# The forms in which two names are compared, from exactly as they stand to the most tolerant. The
# place of the first that makes them equal is part of the rank.
SPELLINGS = (lambda text: text, _nfc, _lower, _fold)


def _ends(path: str) -> list[str]:
    """The folded last part of a path, its last two parts, and so on to the whole path."""
    parts = _fold(path).split("/")
    return ["/".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]


def _without_links(path: str, links: dict[str, str], form: Callable[[str], str]) -> str:
    """A path whose beginnings are replaced where `links` has what `form` makes of them."""
    # A link may lead to a path with another link in it, or around in a circle.
    for _ in range(LINKS if links else 0):
        parts = path.split("/")
        for end in range(1, len(parts)):
            target = links.get(form("/".join(parts[:end])))
            if target is not None:
                path = "/".join([target, *parts[end:]]).lstrip("/")
                break
        else:
            break
    return path


def _folded(found: Tree) -> dict[str, str]:
    """Where links to folders lead, by their folded paths; those that are not alone are left out."""
    spellings = Counter(_fold(path) for path in (*found.folders, *found.aliases))
    links = ((_fold(path), target) for path, target in found.aliases.items())
    return {path: target for path, target in links if spellings[path] == 1}


class _Table:
    """Numbers by text, held as sorted hashes in an eighth of a dictionary's memory."""

    def __init__(self, entries: Iterable[tuple[str, int]]) -> None:
        """Take in pairs of a text and a number; a text may come with several numbers."""
        hashes, numbers = array("q"), array("q")
        for text, number in entries:
            hashes.append(hash(text))
            numbers.append(number)
        found = np.array(hashes, np.int64)
        order = np.argsort(found, kind="stable")
        self._hashes, self._numbers = found[order], np.array(numbers, np.int64)[order]

    def get(self, text: str) -> list[int]:
        """Numbers of a text, and perhaps of another text with the same hash.

        Callers compare the texts, so that a collision costs time and never a wrong picture.
        """
        key = np.int64(hash(text))
        low = int(self._hashes.searchsorted(key))
        # Most texts are not there, so that the end is looked for only where the start is.
        if low == len(self._hashes) or self._hashes[low] != key:
            return []
        return self._numbers[low : int(self._hashes.searchsorted(key, "right"))].tolist()


class PictureFinder:
    """The files below a folder by the names that labels give them.

    First every name is told (`claim`), then each is asked for (`find`): which picture a name means
    depends on what the others mean. About 200 bytes are held for each file, and nothing for a name.
    """

    def __init__(self, root: Path, notes: Notes, distinct: bool = False) -> None:
        """List the folder. Raises ReaderError if that cannot be done.

        Args:
            notes: counts names that fit no picture, or several.
            distinct: whether no two pictures of the set have one file name, whatever their folders.
        """
        if not root.is_dir():
            raise ReaderError(f"{spelled(root)}: not a folder of pictures")
        self._root, self._notes, self._distinct = root, notes, distinct
        # Names of the folder and of those it lies in, the innermost first.
        self._above = root.parts[:0:-1]
        try:
            found = tree(root)
        except OSError as error:
            where = spelled(error.filename or root)
            raise ReaderError(f"{where}: cannot be listed: {error.strerror}") from None
        self._files, self._aliases = found.files, found.aliases
        self._folded_aliases = _folded(found)
        # Names of folders that are there: only a folder that is not can have been renamed.
        self._folders = {_fold(part) for path in self._files for part in path.split("/")[:-1]}
        # By whole paths and by all their ends: thousands of folders may hold files of one name.
        self._paths = _Table((_fold(path), i) for i, path in enumerate(self._files))
        self._ends = _Table((e, i) for i, path in enumerate(self._files) for e in _ends(path))
        # Of each file the best claim so far: its rank, and whose it is.
        self._ranks = array("H", [FREE]) * len(self._files)
        self._owners = array("q", [TIE]) * len(self._files)
        # How often each file was found: 0, 1, or 2 for more often.
        self._given = bytearray(len(self._files))

    def claim(self, *names: str, owner: str = "") -> None:
        """Tell of a picture's names, the most telling first.

        `owner` is what is labelled, where two that give one name are two nevertheless.
        """
        who = self._who(names, owner)
        for strength, name in enumerate(names):
            rank, files = self._best(name)
            if len(files) != 1:
                # The name fits no file, or several alike: it is a claim on none.
                continue
            rank += strength * WEAKER
            if rank < self._ranks[files[0]]:
                self._ranks[files[0]], self._owners[files[0]] = rank, who
            elif rank == self._ranks[files[0]] and self._owners[files[0]] != who:
                self._owners[files[0]] = TIE

    def find(self, *names: str, owner: str = "") -> str:
        """The path of a picture by the names that it was claimed with, as osdhuman_jax spells it.

        The path of a missing picture is where it would be. A picture is missing, too, where two of
        its names lead to two pictures.
        """
        who = self._who(names, owner)
        found = [files for _, files in map(self._best, names) if files]
        won = {files[0] for files in found if len(files) == 1 and self._owners[files[0]] == who}
        # A file counts only for the owner of the best claim on it.
        if len(won) == 1:
            return self._give(won.pop())
        if any(len(files) > 1 for files in found) or len(won) > 1:
            self._notes["names that fit several pictures alike"] += 1
        elif found:
            self._notes["names whose picture another name fits as well or better"] += 1
        return self._nowhere(names[-1])

    def _give(self, file: int) -> str:
        """A file's path; notes it if the file is asked for a second time."""
        self._notes["pictures that several images of the labels name"] += self._given[file] == 1
        self._given[file] = min(self._given[file] + 1, 2)
        return spelled(self._root / self._files[file])

    def _who(self, names: Sequence[str], owner: str) -> int:
        """A number for the owner of names, which is never TIE."""
        return hash(owner or self._own_path(clean(names[0]))) or 1

    def _nowhere(self, name: str) -> str:
        """A path at which there is no file, for a picture that is missing."""
        # A file there may be another picture, which fits the name but was not certain enough.
        cleaned = clean(name) or "unnamed"
        places = [cleaned.rsplit("/", 1)[-1]] if leads_out(name) else []
        places += [cleaned, f"{cleaned} (missing)"]
        free = (place for place in places if not os.path.lexists(self._root / place))
        return spelled(self._root / next(free, places[-1]))

    def _best(self, name: str) -> tuple[int, list[int]]:
        """The files that fit a name best: their rank (less is better) and their numbers.

        More than one file means that they fit alike and are not the same file under two names.
        """
        # A name that is a file's path exactly needs no comparison.
        raw = self._own_path(name)
        for file in self._paths.get(_fold(raw)):
            if self._files[file] == raw:
                return 0, [file]
        cleaned = clean(name)
        matches = self._matches(raw, self._own_path(cleaned))
        if not matches and not cleaned.lower().endswith(SUFFIXES):
            # Formats that leave the suffix out mean .jpg; any other must be the only one.
            usual, *others = (self._own_path(cleaned + suffix) for suffix in SUFFIXES)
            matches = self._matches("", usual, added=True) or [
                match for path in others for match in self._matches("", path, added=True)
            ]
        if not matches:
            return FREE, []
        # Of those with the best rank, links to one file count as that file.
        rank = min(matches)[0]
        best = [file for found, file in matches if found == rank]
        best.sort(key=lambda file: self._files[file])
        if len(best) > 1 and len({os.path.realpath(self._root / self._files[i]) for i in best}) < 2:
            best = best[:1]
        return rank, best

    def _own_path(self, path: str) -> str:
        """A path in which links to folders are replaced by the folders that they lead to."""
        return _without_links(path, self._aliases, lambda start: start)

    def _spelled_path(self, path: str) -> str:
        """The same, of links that are spelled in another way than they are here."""
        return _without_links(path, self._folded_aliases, _fold)

    def _matches(self, raw: str, cleaned: str, added: bool = False) -> list[tuple[int, int]]:
        """Rank and number of each file that fits a name, given as it stands and cleaned.

        `added` says that a suffix was added to it.
        """
        found: dict[int, int] = {}
        # Here a backslash or a percent sign may be part of a name: as it stands comes first.
        forms = dict.fromkeys(path for path in (raw, cleaned, _plain(cleaned)) if path)
        forms |= dict.fromkeys(map(self._spelled_path, tuple(forms)))
        for form in forms:
            closest = 0 if form in (raw, cleaned) else len(SPELLINGS) - 1
            for file in self._candidates(form):
                rank = self._rank(form, self._files[file], closest)
                if rank is not None:
                    rank += added * ADDED
                    found[file] = min(rank, found.get(file, FREE))
        return [(rank, file) for file, rank in found.items()]

    def _candidates(self, name: str) -> set[int]:
        """Files that may fit a name: one of the two paths is the end of the other."""
        ends = _ends(name)
        found = set(self._ends.get(ends[-1])).union(*map(self._paths.get, ends))
        # If file names alone tell pictures apart, those in other folders may fit as well.
        if self._distinct:
            alike = self._ends.get(ends[0])
            found.update(alike if len(alike) <= CROWD else ())
        return found

    def _rank(self, name: str, path: str, closest: int) -> int | None:
        """The rank of a name on a path; None where it does not fit.

        Folders that both have may differ only if file names alone tell pictures apart, and there is
        no folder of that name here.

        Args:
            closest: the least place in SPELLINGS that this form of the name may be given.
        """
        # Parts are compared from the end: the name of the file, its folder, and so on.
        wanted, given = name.split("/")[::-1], path.split("/")[::-1]
        theirs = [*given, *self._above]
        pairs = list(zip(wanted, theirs, strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if not _alike(a, b)), len(pairs))
        differ = same < len(wanted) and same < len(given)
        if not same or (differ and (not self._distinct or _fold(wanted[same]) in self._folders)):
            return None
        # The strictest spelling in which the parts that fit are equal.
        spelling = next(
            i
            for i, form in enumerate(SPELLINGS)
            if all(form(a) == form(b) for a, b in pairs[:same])
        )
        # The three criteria in one number, the most telling first.
        whole = same == len(wanted) == len(given)
        score = (max(spelling, closest) * 2 + differ) * 2 + (not whole)
        return 1 + score * (DEEPEST + 1) + DEEPEST - min(same, DEEPEST)
