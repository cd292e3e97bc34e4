"""CLIPIQA, MANIQA, MUSIQ and BRISQUE by pyiqa, with weight files that the user names.

These are the metrics of the paper's Eq. 1 and Table 1, except NIQE, which osdhuman_jax computes. A
batch of crops goes in, a number for each crop comes out.

pyiqa (the extra `eval`) is for non-commercial use, as are its weights, and it fetches what it does
not find. Here it finds the files of one folder and nothing else: a missing one is an error before
anything is scored. pyiqa unpickles what it loads, so that folder must hold its authors' files only.
"""

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from curate.config import ConfigError
from curate.schema import Column, CropBatch, Facts
from osdhuman_jax.disk import known_digest
from osdhuman_jax.evaluation.offline import offline, process_folder

if TYPE_CHECKING:
    # At run time torch is imported only where a metric is made: it is an extra, and slow.
    import torch


class PyiqaMetric(NamedTuple):
    """A metric of pyiqa: its name there, its file, how that file's sha256 begins (if known)."""

    name: str
    file: str
    sha256: str


# OpenAI's RN50.pt, whose sha256 stands in its address.
CLIP = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
# Files as pyiqa names them; the ends of two names are the beginnings of their sha256.
PYIQA_METRICS = {
    "clipiqa": PyiqaMetric("clipiqa", "RN50.pt", CLIP),
    "maniqa": PyiqaMetric("maniqa-pipal", "MANIQA_PIPAL-ae6d356b.pth", "ae6d356b"),
    "musiq": PyiqaMetric("musiq", "musiq_koniq_ckpt-e95806b9.pth", "e95806b9"),
    "brisque": PyiqaMetric("brisque", "brisque_svm_weights.pth", ""),
}
WHERE = "huggingface.co/chaofengc/IQA-PyTorch-Weights (CC BY-NC-SA: not for commercial use)"


def weight_file(folder: str, name: str, sha256: str = "") -> tuple[Path, str]:
    """Path and sha256 of a file of this name anywhere below the user's folder.

    Raises ConfigError where it is missing, or if its sha256 does not begin with `sha256`.
    """
    path = next(iter(sorted(Path(folder).rglob(name))), None) if folder else None
    if path is None:
        starts = f", sha256 {sha256[:8]}..." if sha256 else ""
        raise ConfigError(f"--iqa_weights {folder or 'FOLDER'}: no {name}{starts}; see {WHERE}")
    digest = known_digest(path)
    if not digest.startswith(sha256):
        raise ConfigError(f"{path}: sha256 {digest[:16]}..., expected {sha256[:16]}...")
    return path, digest


def describe(metric: str, weights: str, device: str) -> Facts:
    """All that a score depends on except the crop; part of the score job's key.

    Raises ConfigError if anything is missing.
    """
    known = PYIQA_METRICS[metric]
    # Versions are read without importing the packages, which takes seconds.
    try:
        versions = {name: importlib.metadata.version(name) for name in ("pyiqa", "torch")}
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"--iqa pyiqa needs {error.name}: pip install 'osdhuman-jax[eval]'"
        ) from None
    digest = weight_file(weights, known.file, known.sha256)[1]
    return {"metric": known.name, "weights": {known.file: digest}, "device": device, **versions}


def make_metric(metric: str, weights: str, device: str) -> Callable[[CropBatch], Column]:
    """The function that scores batches, with its weights. Raises ConfigError if pyiqa fails."""
    # What is missing is said before pyiqa is imported.
    describe(metric, weights, device)
    known = PYIQA_METRICS[metric]
    try:
        with _offline(weight_file(weights, known.file)[0]):
            import pyiqa  # pyright: ignore[reportMissingImports]

            network = pyiqa.create_metric(known.name, device=_prepare_torch(device))
    except ConfigError:
        raise
    except Exception as error:
        # A torchvision of another build or a damaged file may raise nearly anything.
        line = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"pyiqa cannot make {metric}: {type(error).__name__}: {line}") from error
    return functools.partial(_score, network, device)


def _score(network: "torch.nn.Module", device: str, batch: CropBatch) -> Column:
    """Scores of a batch; pyiqa takes [0, 1] and channels first."""
    import torch

    unit = batch.astype(np.float32) * np.float32(1 / 255)
    tensor = torch.from_numpy(np.ascontiguousarray(unit.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        values = network(tensor.to(device))
    return values.double().reshape(len(batch)).cpu().numpy()


def _prepare_torch(device: str) -> "torch.device":
    """The device, after torch is told to give the same numbers each time, in full float32."""
    import torch

    # Sums over several threads change with their number in the last digits.
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device)


@contextlib.contextmanager
def _offline(file: Path) -> Iterator[None]:
    """While the block runs, torch.hub's folder holds `file` alone, and nothing is fetched.

    MANIQA's backbone is made without weights of its own: its file has them all.
    """
    import timm  # pyright: ignore[reportMissingImports]

    def refuse(url: str) -> NoReturn:
        raise ConfigError(f"pyiqa wants {url}, a file not asked")

    # A folder of our own in place of torch.hub's, with the one file under all names it may have.
    home, create = process_folder(), timm.create_model
    for folder in ("pyiqa", "clip", "checkpoints"):
        link = home / folder / file.name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(file.absolute())
    plain = lambda *names, pretrained=False, **options: create(*names, **options)  # noqa: E731
    # Whatever could fetch a file refuses, and timm makes networks without weights.
    with offline(refuse, home, [(timm, "create_model", plain)]):
        yield
