"""The package as people install it: a wheel, away from the clone.

The wheel is built of a copy of the sources and installed without dependencies, which the new
environment takes from the one that runs the tests: no network is needed. Building takes half a
minute, and each of two processes compiles the bundled model: the whole takes minutes (`slow`).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from skimage import data

from osdhuman_jax.images.codec import read_image, write_png

ROOT = Path(__file__).parent.parent
SOURCES = ("osdhuman_jax", "curate", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


def run(*words: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, without this clone on its path."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: setuptools leaves folders beside what it builds of, and reads them again."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name, **({"ignore": skipped} if (ROOT / name).is_dir() else {}))
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "-w", "wheels", ".")
    run(sys.executable, "-m", "pip", "wheel", "-q", *flags, cwd=folder)
    (found,) = (folder / "wheels").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of a new environment that has the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # After the environment's own folder, so that the wheel hides a package of the same name.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    flags = ("--no-deps", "--no-index", "--python", folder / "bin" / "python")
    run(sys.executable, "-m", "pip", *flags[2:], "install", "-q", *flags[:2], wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_has_all_that_is_needed(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = [*ROOT.glob("osdhuman_jax/**/*.py"), *ROOT.glob("curate/**/*.py")]
    tracked += [*ROOT.glob("curate/**/*.csv"), ROOT / "osdhuman_jax" / "py.typed"]
    tracked += ROOT.glob("osdhuman_jax/models/nano/*")
    assert {path.relative_to(ROOT).as_posix() for path in tracked} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "curate",
        "osdhuman_jax",
    }


def test_it_restores_a_picture_by_the_command_and_the_class(installed, tmp_path):
    write_png(tmp_path / "photo.png", data.astronaut()[100:356, 100:356])
    said = run(installed / "osdhuman", "restore", "photo.png", cwd=tmp_path)
    assert said == "restored 1 of 1 images to restored\n"
    code = (
        "import osdhuman_jax; from PIL import Image; from pathlib import Path;"
        "assert not Path(osdhuman_jax.__file__).is_relative_to(Path({0!r})), osdhuman_jax.__file__;"
        "better = osdhuman_jax.Restorer.load()(Image.open('photo.png')); better.save('again.png')"
    )
    run(installed / "python", "-c", code.format(str(ROOT)), cwd=tmp_path)
    first, second = (read_image(tmp_path / n).rgb for n in ("restored/photo.png", "again.png"))
    assert (first == second).all() and (first != read_image(tmp_path / "photo.png").rgb).any()


def test_its_commands_are_there(installed, tmp_path):
    from osdhuman_jax import __version__

    assert run(installed / "osdhuman", "--version", cwd=tmp_path) == f"osdhuman {__version__}\n"
    for words in (("app",), ("evaluate",), ("export",)):
        assert "usage: " in run(installed / "osdhuman", *words, "--help", cwd=tmp_path)
    python = (installed / "python", "-m")
    assert "usage: " in run(*python, "osdhuman_jax", "restore", "--help", cwd=tmp_path)
    assert "usage: " in run(*python, "curate.run", "--help", cwd=tmp_path)
