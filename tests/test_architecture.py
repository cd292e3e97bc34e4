"""The house rules that a reader cannot see at a glance: who may import whom.

A folder imports from those above it alone, and inside a folder no imports make a circle.
"""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (  # the package from the ground up; a name is a folder or a file beside them
    *("renamed", "filenames", "disk", "interruption", "workers", "cli"),
    *("networks", "config", "images", "methods", "degrade", "data", "weights"),
    *("evaluation", "training", "inference", "models", "api", "commands", "__main__"),
)
CURATE_ROOMS = (
    *("schema", "config", "readers", "engine", "cropping", "quality", "selection", "publish"),
    *("plan", "prune", "curation", "forget", "niqe", "unpack", "run", "demo"),
)
TORCH = {"osdhuman_jax.evaluation.scorers", "osdhuman_jax.evaluation.offline"}
CURATE = sorted(ROOT.glob("curate/**/*.py"))
PACKAGE = sorted(ROOT.glob("osdhuman_jax/**/*.py"))
FREE_OF_JAX = {"renamed", "filenames", "disk", "workers", "cli", "images", "degrade"}
FREE_OF_JAX |= {"config", "models"}
# Files and pixels are read, written and judged in one place for both packages, without JAX.
SHARED_WITH_CURATE = {"disk", "workers", "cli", "filenames", "images", "data.records"}
SHARED_WITH_CURATE |= {"evaluation.niqe", "evaluation.offline"}


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of everything that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def module(path: Path) -> str:
    """`osdhuman_jax.networks.unet`; of an `__init__.py` the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module(path) for path in [*PACKAGE, *CURATE]}


def modules_imported(path: Path) -> set[str]:
    """Modules of the two packages that a file imports, each by the longest name that is one."""
    found = set()
    for name in imports(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found |= {name} - {"", "osdhuman_jax", "curate", module(path)}
    return found


def room(name: str) -> str:
    """`networks` for osdhuman_jax.networks.unet, `disk` for osdhuman_jax.disk."""
    return name.split(".")[1]


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_file_has_a_room():
    assert {room(module(p)) for p in PACKAGE if module(p) != "osdhuman_jax"} == set(ROOMS)
    assert {room(module(p)) for p in CURATE if module(p) != "curate"} == set(CURATE_ROOMS)


@pytest.mark.parametrize("path", [p for p in [*PACKAGE, *CURATE] if "." in module(p)], ids=names)
def test_a_room_imports_from_those_above(path):
    """Of its own package; what curation takes of the other, another test tells."""
    package, name = module(path).split(".")[:2]
    rooms = ROOMS if package == "osdhuman_jax" else CURATE_ROOMS
    used = {room(n) for n in modules_imported(path) if n.startswith(f"{package}.")}
    assert not {other for other in used if rooms.index(other) > rooms.index(name)}


@pytest.mark.parametrize("folder", ["osdhuman_jax", "curate"])
def test_no_imports_make_a_circle(folder):
    """Raises CycleError, which names them. A package stands for its `__init__.py` alone."""
    files = [path for path in [*PACKAGE, *CURATE] if module(path).split(".")[0] == folder]
    graph = {module(path): modules_imported(path) for path in files}
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", PACKAGE, ids=names)
def test_bans(path):
    name, packages = module(path), {i.split(".")[0] for i in imports(path)}
    where = room(name) if "." in name else ""
    if where in FREE_OF_JAX or name == "osdhuman_jax.data.records":
        assert not packages & {"jax", "flax"}
    if where == "data":
        assert "flax" not in packages
    assert "safetensors" not in packages or where == "weights"
    assert "orbax" not in packages or name == "osdhuman_jax.training.checkpoint"
    assert "grain" not in packages or where == "data"
    torch = packages & {"torch", "diffusers", "peft", "torchvision", "pyiqa"}
    assert not torch or name in TORCH
    assert "curate" not in packages


@pytest.mark.parametrize("path", CURATE, ids=names)
def test_curation_meets_the_trainer_in_files_only(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert not packages & {"configs", "jax", "flax", "grain"}
    used = {n.removeprefix("osdhuman_jax.") for n in modules_imported(path) if n[0] == "o"}
    assert {n for n in used if not {n, n.split(".")[0]} & SHARED_WITH_CURATE} == set()
    if path.stem != "learned":
        assert not packages & {"torch", "pyiqa"}
    if path.stem != "detect":
        assert not packages & {"onnxruntime", "ultralytics"}
    assert "ai_edge_litert" not in packages or path.stem == "litert"


def longest_functions() -> list[tuple[int, str]]:
    return [
        (node.end_lineno - node.lineno + 1, f"{path.name}:{node.name}")
        for path in [*PACKAGE, *CURATE]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]


def test_functions_are_short():
    assert not [(lines, name) for lines, name in longest_functions() if lines > 60]


def test_tests_import_no_tests():
    """What two of them need is a helper's; and no two have one name, else pytest takes one."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    stems = [path.stem for path in tests]
    assert len(stems) == len(set(stems))
    assert not {n for path in tests for n in imports(path) if n.split(".")[0] in stems}
