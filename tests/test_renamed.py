"""Old names of modules: the same objects, one warning each, and `python -m` as before."""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from osdhuman_jax.renamed import PACKAGE, RENAMED, RenamedFinder, install

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_gives_the_module_that_has_its_place(old):
    sys.modules.pop(PACKAGE + old, None)
    module = importlib.import_module(PACKAGE + RENAMED[old])
    spec = module.__spec__
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [importlib.import_module(PACKAGE + old) for _ in range(2)]
    assert found == [module, module] and module.__spec__ is spec
    assert module.__name__ == PACKAGE + RENAMED[old]
    (warning,) = [w for w in caught if "the old name goes" in str(w.message)]
    assert warning.category is DeprecationWarning
    assert f" is now {PACKAGE}{RENAMED[old]}; " in str(warning.message)


def test_other_names_stay_unknown_and_one_finder_does():
    for name in ("osdhuman_jax.nothing", "osdhuman_jax.degrade.app", "app_of_another", "osdhuman"):
        assert RenamedFinder().find_spec(name, None) is None
    with pytest.raises(ModuleNotFoundError, match="osdhuman_jax.nothing"):
        importlib.import_module("osdhuman_jax.nothing")
    install()
    assert sum(isinstance(finder, RenamedFinder) for finder in sys.meta_path) == 1


def test_the_warning_is_of_the_line_that_imports(tmp_path):
    """In a process of its own: the wrappers that check shapes in tests are lines between."""
    (tmp_path / "own.py").write_text("\nfrom osdhuman_jax.sources import open_source\n")
    words = [sys.executable, "own.py"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "own.py:2: DeprecationWarning: osdhuman_jax.sources is now " in done.stderr


def test_an_old_command_runs_and_says_its_new_name(tmp_path):
    words = [sys.executable, "-m", "osdhuman_jax.degrade", "--help"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
    advice = "DeprecationWarning: osdhuman_jax.degrade is now osdhuman_jax.commands.degrade"
    assert done.stderr.count(advice) == 1
