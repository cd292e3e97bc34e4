"""Compiled programs kept on disk, so that only the first run of a shape waits for the compiler.

Called once by a command, before JAX is loaded or after: it needs no JAX itself.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def keep_programs() -> None:
    """Let JAX keep compiled programs on disk, unless it was told where (JAX_COMPILATION_CACHE_DIR).

    A program that was compiled once is then read in a fraction of the time, in any later run.
    Where the folder cannot be written, one line says so, and nothing is kept.
    """
    try:
        # No home at all is a RuntimeError: a container's user without a line in its passwd.
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or _cache_home() / "osdhuman_jax"
        Path(folder).mkdir(parents=True, exist_ok=True)
        # By writing: permissions do not tell of a read-only file system or a full disk.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        _set("jax_enable_compilation_cache", False)
        advice = "set JAX_COMPILATION_CACHE_DIR to a folder that can be written"
        log.warning("compiled programs are not kept: %s (%s)", error, advice)
        return
    _set("jax_compilation_cache_dir", str(folder))


def _set(name: str, value: str | bool) -> None:
    """Set one of JAX's settings."""
    # JAX reads the environment when it is imported, and not again.
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(name, value)
    else:
        os.environ[name.upper()] = str(value)


def _cache_home() -> Path:
    """Where programs may keep what they can make again."""
    # The XDG base directory specification.
    given = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else Path.home() / ".cache"
