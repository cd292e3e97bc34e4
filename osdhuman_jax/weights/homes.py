"""Where published weights are: the table that `osdhuman weights get` reads, as typed values.

    read_homes()["osediff"].files  ->  the files of OSEDiff, each with its homes

The table is homes.toml beside this file, or a person's own of the same form, and is checked whole
before it is used. Needed before anything is fetched: reading it takes no network and no JAX.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from osdhuman_jax.weights.torch_files import WeightsError

TABLE = Path(__file__).parent / "homes.toml"
UNCONFIRMED, UNVERIFIED = "home not confirmed", "not verified"
_DIGITS = frozenset("0123456789abcdef")
_Table = TypeVar("_Table")


@dataclass(frozen=True)
class Home:
    """One place of files: a hub repository, an address to add names to, or a page for people."""

    hub: str = ""  # owner/name, or spaces/owner/name
    revision: str = "main"  # of the repository
    path: str = ""  # of the files' folder in the repository
    url: str = ""
    by_hand: str = ""
    seen: str = ""  # where it was read that the files are there; empty: a guess

    @property
    def fetchable(self) -> bool:
        """Whether a program can take the files from there."""
        return not self.by_hand

    def repository(self) -> tuple[str, str]:
        """The hub's kind of repository, "model" or "space", and its owner/name."""
        kind = "space" if self.hub.startswith("spaces/") else "model"
        return kind, self.hub.removeprefix("spaces/")

    def inside(self, name: str) -> str:
        """A file's path in the repository."""
        return str(PurePosixPath(self.path) / name)

    @property
    def place(self) -> str:
        """What it is, in words."""
        return f"hub {self.hub}" if self.hub else self.url or f"by hand: {self.by_hand}"

    def __str__(self) -> str:
        return self.place if self.seen else f"{self.place} ({UNCONFIRMED})"


@dataclass(frozen=True)
class WeightFile:
    """A published file, as far as it is known."""

    name: str  # with folders, as its homes have it
    bytes: int = 0  # 0: not known
    sha256: str = ""  # empty: not known
    known: str = ""  # who says so


@dataclass(frozen=True)
class Source:
    """Files of one origin and licence, which have their homes in common."""

    title: str
    folder: str  # below the folder of downloads
    licence: str
    licence_link: str
    homes: tuple[Home, ...]
    files: tuple[WeightFile, ...]


@dataclass(frozen=True)
class Wanted:
    """What a model needs."""

    sources: dict[str, Source]
    bytes: int  # about, of the model folder

    def files(self) -> list[tuple[Source, WeightFile]]:
        """Every file with its source, in the table's order."""
        return [(source, file) for source in self.sources.values() for file in source.files]


def read_homes(path: Path = TABLE) -> dict[str, Wanted]:
    """Every model of a table, by name. Raises WeightsError, in one line, where it is no table."""
    if not path.exists():
        raise WeightsError(f"{path}: no such file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a table of homes ({error})") from error
    # Every source is checked, whoever needs it: a table is sound as a whole or not used.
    models, sources = (_section(path, table, name) for name in ("models", "sources"))
    known = {name: _source(f"{path}: sources.{name}", value) for name, value in sources.items()}
    wanted = {}
    for name, value in models.items():
        where = f"{path}: models.{name}"
        model = _typed(_Model, where, value)
        if lacking := [source for source in model.sources if source not in known]:
            raise WeightsError(f"{where}: no such source: {', '.join(map(str, lacking))}")
        wanted[name] = Wanted({source: known[source] for source in model.sources}, model.bytes)
    return wanted


@dataclass(frozen=True)
class _Model:
    """A model as the table has it."""

    sources: list[str]
    bytes: int = 0


def _section(path: Path, table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = table.get(name)
    # TOML has no schema, so that any name may stand for anything.
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise WeightsError(f"{path}: holds no [{name}.NAME]; see the table of the package")
    return value


def _source(where: str, value: Mapping[str, Any]) -> Source:
    """A source whose every home and file is sound."""
    homes = tuple(_typed(Home, f"{where}.homes", home) for home in _list(where, value, "homes"))
    files = tuple(_typed(WeightFile, f"{where}.files", f) for f in _list(where, value, "files"))
    # Two addresses in one home would leave it open which of them `seen` is about.
    for home in homes:
        if sum(map(bool, (home.hub, home.url, home.by_hand))) != 1:
            raise WeightsError(f"{where}.homes: each has one of hub, url and by_hand")
        # `file:` and the like would read this machine's own files as if they were published.
        if home.url and not (home.url.startswith(("https://", "http://")) and home.url[-1] == "/"):
            raise WeightsError(f"{where}.homes: {home.url} is no http(s) address that ends in /")
    for file in files:
        _check_file(f"{where}.files", file)
    source = _typed(Source, where, dict(value) | {"homes": homes, "files": files})
    _check_inside(where, source.folder)
    return source


def _check_file(where: str, file: WeightFile) -> None:
    _check_inside(where, file.name)
    # A digest that nobody can have computed, or that nobody vouches for, would be a pretence.
    if file.sha256 and (len(file.sha256) != 64 or not _DIGITS.issuperset(file.sha256)):
        raise WeightsError(f"{where}: {file.name}: sha256 is not 64 hexadecimal digits")
    if file.sha256 and not file.known:
        raise WeightsError(f"{where}: {file.name}: say under `known` who says its sha256")


def _check_inside(where: str, name: str) -> None:
    """Raise WeightsError where a name would leave the folder of downloads."""
    # A table may come from others: it must not say where on this disk to write.
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise WeightsError(f"{where}: {name!r} is no name below a folder")


def _list(where: str, value: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(v, dict) for v in found):
        raise WeightsError(f"{where}: holds no [[{where.rpartition(' ')[2]}.{name}]]")
    return found


def _typed(kind: type[_Table], where: str, value: Mapping[str, Any]) -> _Table:
    """A dataclass of a table. Raises WeightsError on an unknown, missing or mistyped setting."""
    # A misspelt setting would else be a default in silence.
    types: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # type: ignore
    if unknown := sorted(set(value) - set(types)):
        raise WeightsError(f"{where}: unknown: {', '.join(unknown)}")
    for name, found in value.items():
        # Homes and files are tuples of dataclasses by now; True is an int to Python, but no size.
        plain = types[name] if types[name] in (int, str) else (tuple, list)
        if not isinstance(found, plain) or isinstance(found, bool):
            raise WeightsError(f"{where}: {name} has a value of another type")
    needed = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore
    if lacking := sorted(needed - set(value)):
        raise WeightsError(f"{where}: lacks {', '.join(lacking)}")
    return kind(**value)
