"""A command line's `--config=FILE` and `--config.section.field=value`, by absl and ml_collections.

Needed by commands that take a whole configuration, as training does. A config is a Python file
whose `get_config` gives an `osdhuman_jax.config.Config`.
"""

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from osdhuman_jax.cli import CommandError, call_config
from osdhuman_jax.config import Config


def define_config(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Define absl's --config by the file that a command line names; returns the line without it.

    absl's own would run the file a second time, and tell of a bad one at length. Raises
    CommandError.
    """
    name, rest = take_flag(argv, "config")
    if not name:
        raise CommandError("--config is missing: give a config such as configs/base.py")
    config = load_config(name)
    for word in rest:
        flag = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and flag.startswith("config."):
            _check_setting(config, flag)
    # ml_collections checks each value's type by the field's annotation.
    config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=rest)
    return rest


def _check_setting(config: Config, flag: str) -> None:
    """Raise CommandError where a flag names no setting."""
    found: object = config
    for part in flag.split(".")[1:]:
        # Of a tuple one element may be set.
        name, inside = part.partition("[")[0], _fields(found)
        if name not in inside:
            there = f"; there are {', '.join(inside)}" if inside else ""
            raise CommandError(f"--{flag}: no such setting: {name!r}{there} (see --help)")
        found = inside[name]


def _fields(section: object) -> dict[str, object]:
    """The values of a config dataclass by their names; nothing of a value that is none."""
    if not dataclasses.is_dataclass(section) or isinstance(section, type):
        return {}
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


def take_flag(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """What a command line gives as `--name=value` or `--name value`, and the line without it."""
    # Of several, the last one counts.
    found, rest, words = None, [], iter(argv)
    for word in words:
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == name:
            found = value if equals else next(words, None)
        else:
            rest.append(word)
    return found, rest


def load_config(name: str) -> Config:
    """The configuration of a Python file, `FILE` or `FILE:ARGUMENT` of its get_config.

    Raises CommandError, in one line, where there is none.
    """
    file, *arguments = name.split(":", 1)
    config = call_config(Path(file), *arguments)
    if not isinstance(config, Config):
        raise CommandError(f"{file}: its get_config() gives no osdhuman_jax.config.Config")
    return config


def settings(kind: type, prefix: str) -> Iterator[str]:
    """A line for each field of a config dataclass: its flag, its default, what the source says."""
    yield from _settings(kind(), prefix)


def _settings(defaults: object, prefix: str) -> Iterator[str]:
    notes = _notes(type(defaults))
    for field, value in _fields(defaults).items():
        name = f"{prefix}.{field}"
        # A section has a headline, which is its docstring's, and its own fields below it.
        if dataclasses.is_dataclass(value):
            yield f"\n{name}: {(value.__doc__ or '').splitlines()[0]}"
            yield from _settings(value, name)
        else:
            yield f"  --{name}={value!r}  {notes.get(field, '')}".rstrip()


def _notes(kind: type) -> dict[str, str]:
    """The comments at the ends of a dataclass's fields."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    (body,) = ast.parse(source).body
    # Python keeps no comments: lines of the source are found by its syntax tree.
    return {
        node.target.id: lines[(node.end_lineno or 1) - 1].partition("  # ")[2]
        for node in ast.walk(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
