"""The house rules that a reader cannot see at a glance: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"icc", "target", "disk", "names", "png", "jpeg", "exif", "alpha", "interruption"},
    {"config", "types", "images", "listing", "attention", "convolution", "tokenizer", "remat"}
    | {"command", "flops", "memory", "niqe"},
    {"schedule", "layers", "lora", "sharding", "metrics", "records", "colour", "hosts"}
    | {"compare", "pairs", "frames"},
    {"vae", "unet", "swin", "rrdbnet", "lpips", "clip", "tagger", "degrade", "tables", "tiling"}
    | {"sources", "plans", "finishing"},
    {"prompts", "data", "plots"},
    {"restorer", "losses", "optimizer", "flags"},
    {"weights", "monitor", "objectives", "programs"},
    {"experiment"},
    {"checkpoint", "training"},
    {"pipeline", "iqa", "validation"},
    {"scoring", "jobs", "api", "export", "label"},
    {"evaluate", "app"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
WITHOUT_JAX = {"data", "degrade", "records", "icc", "images", "metrics", "colour", "frames"}
WITHOUT_JAX |= {"compare", "tables", "sources", "listing", "niqe", "disk", "command"}
WITHOUT_JAX |= {"names", "png", "jpeg", "exif", "alpha"}
# Files and pixels are read, written and judged in one place for both packages, without JAX.
SHARED_WITH_CURATE = {"disk", "command", "images", "listing", "icc", "niqe", "names", "exif"}
COMMANDS = {"train.py", "infer.py"}
NETWORKS = set(
    "layers attention convolution vae unet swin rrdbnet lpips clip tagger prompts restorer".split()
)


def files() -> list[Path]:
    return sorted([*ROOT.glob("osdhuman_jax/**/*.py"), *(ROOT / name for name in COMMANDS)])


CURATE = sorted(ROOT.glob("curate/**/*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module(path: Path) -> str:
    """`unet` for osdhuman_jax/unet.py, `weights` for osdhuman_jax/weights/ but for its command."""
    if path.name == "__main__.py":
        return path.stem
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if len(parts) > 1 else parts[0]


def house_imports(path: Path) -> set[str]:
    own = {name.split(".")[1] for name in imports(path) if name.startswith("osdhuman_jax.")}
    return own - {module(path)}


def test_every_file_has_a_floor() -> None:
    inside = {module(p) for p in files() if p.name not in COMMANDS} - {"__init__", "__main__"}
    assert inside == set(FLOOR)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_lower_floors(path: Path) -> None:
    own = FLOOR.get(module(path), len(FLOORS))
    upward = {name for name in house_imports(path) if FLOOR[name] >= own}
    assert not upward


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_bans(path: Path) -> None:
    name, packages = module(path), {i.split(".")[0] for i in imports(path)}
    if name in NETWORKS:
        assert not house_imports(path) & {"lora", "config", "sharding"}
    if name in WITHOUT_JAX:
        assert not packages & {"jax", "flax"}
    assert "safetensors" not in packages or name == "weights"
    assert "orbax" not in packages or name == "checkpoint"
    assert "grain" not in packages or name in ("data", "sources")
    assert not packages & {"torch", "diffusers", "peft", "torchvision", "pyiqa"} or name == "iqa"
    assert not house_imports(path) & {"iqa", "scoring", "evaluate"} or name in {
        "iqa",
        "scoring",
        "evaluate",
    }
    assert "curate" not in packages


@pytest.mark.parametrize("path", CURATE, ids=lambda p: str(p.relative_to(ROOT)))
def test_curation_meets_the_trainer_in_files_only(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path)}
    assert not packages & {"configs", "jax", "flax", "grain"}
    assert house_imports(path) <= SHARED_WITH_CURATE
    if path.stem != "learned":
        assert not packages & {"torch", "pyiqa"}
    if path.stem not in {"detect"}:
        assert not packages & {"onnxruntime", "ultralytics"}


def longest_functions() -> list[tuple[int, str]]:
    return [
        (node.end_lineno - node.lineno + 1, f"{path.name}:{node.name}")
        for path in [*files(), *CURATE]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]


def test_functions_are_short() -> None:
    limits = {"unet.py:__init__": 70}  # the network's own table of contents
    long = [(n, name) for n, name in longest_functions() if n > limits.get(name, 60)]
    assert not long


def test_no_two_test_files_have_one_name() -> None:
    """Else pytest collects one of them alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
