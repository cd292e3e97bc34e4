"""What tests of folder jobs share: pictures to restore, a run, and what it left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from picture_files import noise
from PIL import Image
from tiny import halving

from osdhuman_jax.images.codec import to_float, to_uint8
from osdhuman_jax.inference.folder_plan import plan
from osdhuman_jax.inference.folder_run import Runner
from osdhuman_jax.inference.ledger import PROVENANCE, held, remaining
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.settings import Settings, identity


def save(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(20, 30, seed)).save(path, **options)
    return path


def work(
    source: Path | str,
    output: Path,
    pipeline: Pipeline | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> tuple[int, dict[str, str]]:
    """One run: how many jobs it had left, and the reasons of failures by the input's name."""
    pipeline, chosen = pipeline or halving(), Settings(**settings)
    found = plan(str(source), output, chosen)
    with held(output) as ledger:
        made = identity(pipeline.model.digest, pipeline.precision, chosen)
        left = remaining(found, output, ledger, made, overwrite)
        runner = Runner(pipeline, chosen, output, ledger)
        runner.run(left)
    return len(left), {job.source.name: reason for job, reason in runner.failures}


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (output / PROVENANCE).read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """Contents by name of all that is in a folder, but for the record."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name != PROVENANCE}


def halved(rgb: np.ndarray) -> np.ndarray:
    return to_uint8(to_float(rgb) * np.float32(0.5))
