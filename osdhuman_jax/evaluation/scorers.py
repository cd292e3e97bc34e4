"""From a metric's name to a function that scores pictures: numpy, our own networks, or pyiqa.

`evaluate` opens one scorer at a time. What a value depends on, the library and the weights'
digests, goes with it: values are kept, and must not outlive what made them.

pyiqa (the extra `eval`) fetches weights when it is first asked for a metric. Here every such
request is answered from a folder that the user names, or the metric is missing with one line that
says which file and where to get it: nothing is downloaded. pyiqa unpickles what it loads, so that
folder must hold files of their authors only.
"""

import contextlib
import functools
import importlib.metadata
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from huggingface_hub import constants as hub
from jaxtyping import Float32, UInt8

from osdhuman_jax.config import Json
from osdhuman_jax.disk import file_digest
from osdhuman_jax.evaluation import brisque, motion_area, niqe
from osdhuman_jax.evaluation.metrics import Metric, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from osdhuman_jax.evaluation.offline import offline, process_folder
from osdhuman_jax.images.codec import to_float
from osdhuman_jax.weights.parts import load_part

PixelBatch = UInt8[np.ndarray, "b h w 3"]
# A torch.nn.Module, which has no type here: torch is there with the extra `eval` alone.
Network = Any

# By the names of `metrics.METRICS`.
NATIVE = {"psnr": psnr_y, "ssim": ssim_y, "psnr-rgb": psnr_rgb, "ssim-rgb": ssim_rgb}
# What pyiqa takes from a hub cache, not as a file.
_VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
REPOSITORIES = {
    "maniqa-pipal": _VIT,
    "maniqa": _VIT,
    "hyperiqa": "timm/resnet50.a1_in1k",
    "qalign": "q-future/one-align",
    "fgresq": "openai/clip-vit-base-patch16",
}
# What IL-NIQE gives for a picture depends on the others of its batch: its fits of Weibull
# distributions all end with the last one's. A-FINE and Q-Align take one picture alone.
ONE_BY_ONE = {"ilniqe", "afine_all_scale", "qalign"}
FFHQ = "inception_FFHQ_512.pth"  # means and covariances, of VQFR and NTIRE's challenge


class MissingMetric(Exception):
    """Why a metric cannot be computed here, in one line."""


@dataclass(frozen=True)
class Scorer:
    """A metric ready to score.

    `score(restored, reference or None)` gives the value of each picture of two batches (b, h, w, 3)
    uint8; where the metric compares sets, it takes two folders and gives one value. A relative
    metric's values are still to be divided by the mean of the degraded pictures'.
    """

    metric: Metric
    identity: Json  # all that the value depends on, but for the pictures
    score: Callable[..., list[float]]


def open_scorer(
    metric: Metric, weights: Path | None, model: Path | None, detector: Path | None = None
) -> Scorer:
    """The scorer of a metric.

    LPIPS-VGG's weights are in a model folder, `hmb-area`'s in the folder `detector`, all others
    below `weights`. Raises MissingMetric.
    """
    # Five ways to a value need nothing but this package; pyiqa has all the others.
    if metric.name == "niqe":
        return _niqe(metric, weights)
    if metric.name == "brisque":
        return _brisque(metric, weights)
    if metric.engine == "numpy":
        return _native(metric)
    if metric.engine == "jax":
        return _jax_lpips(metric, model)
    if metric.engine == "detector":
        return _blurred_area(metric, detector)
    return _pyiqa(metric, weights)


def _identity(metric: Metric, library: str, weights: dict[str, str]) -> Json:
    """What a scorer's value depends on; `weights` are the digests of files by their names."""
    names = {"metric": metric.name, "variant": metric.variant, "options": metric.options}
    return {**names, "library": library, "weights": dict(sorted(weights.items()))}


def _own(*names: str) -> str:
    """Versions of this package and of others, as in `osdhuman-jax 0.1.0, numpy 2.4.6`."""
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("osdhuman-jax", *names))


def _native(metric: Metric) -> Scorer:
    """PSNR and SSIM of luma or RGB, by NumPy."""
    measure = NATIVE[metric.name]

    def score(restored: PixelBatch, reference: PixelBatch) -> list[float]:
        return [measure(a, b) for a, b in zip(restored, reference, strict=True)]

    return Scorer(metric, _identity(metric, _own("numpy"), {}), score)


def _niqe(metric: Metric, weights: Path | None) -> Scorer:
    """NIQE by its authors' parameters. Raises MissingMetric without them."""
    # Fitted ones are a file of the same kind, and a table must not hold their values as NIQE.
    path = _niqe_file(weights)
    try:
        model = niqe.read_parameters(path)
    except niqe.NiqeError as error:
        raise MissingMetric(str(error)) from error
    if model.local:
        raise MissingMetric(f"{path}: fitted here, so its scores are niqe-local, which is not NIQE")

    def score(restored: PixelBatch, _reference: None) -> list[float]:
        values = [model(picture) for picture in restored]
        if not np.isfinite(values).all():
            side = niqe.BLOCK
            raise ValueError(f"NIQE needs two blocks of {side} x {side} pixels that are not flat")
        return values

    library = _own("numpy", "scipy", "opencv-python-headless")
    identity = _identity(metric, library, {path.name: file_digest(path)})
    return Scorer(metric, {**identity, "version": niqe.VERSION}, score)


def _niqe_file(weights: Path | None) -> Path:
    """The file of parameters below `weights`. Raises MissingMetric."""
    if weights and (path := niqe.find_parameters(weights)):
        return path
    first, second = niqe.FILES
    raise MissingMetric(
        f"needs {first} (pyiqa's) or {second} (BasicSR's, in basicsr/metrics) below --weights"
    )


def _brisque(metric: Metric, weights: Path | None) -> Scorer:
    """BRISQUE by its authors' support vectors. Raises MissingMetric without them."""
    path = brisque.find_machine(weights) if weights else None
    if path is None:
        first, second = brisque.FILES
        raise MissingMetric(f"needs {first} (LIVE's) or {second} (pyiqa's) below --weights")
    try:
        machine = brisque.read_machine(path)
    except brisque.BrisqueError as error:
        raise MissingMetric(str(error)) from error

    def score(restored: PixelBatch, _reference: None) -> list[float]:
        return [machine(picture) for picture in restored]

    identity = _identity(metric, _own("numpy", "scipy"), {path.name: file_digest(path)})
    return Scorer(metric, {**identity, "version": brisque.VERSION}, score)


def _jax_lpips(metric: Metric, model: Path | None) -> Scorer:
    """LPIPS on VGG16 by the weights in a model folder. Raises MissingMetric without them."""
    if model is None:
        raise MissingMetric("needs --model, a folder made by `weights import --lpips`")
    try:
        network = load_part(model, "lpips")
    except (OSError, ValueError) as error:
        raise MissingMetric(str(error)) from error
    # The weights are an argument: closed over, they would become constants of the program.
    graphdef, state = nnx.split(network)
    distance = jax.jit(lambda state, a, b: nnx.merge(graphdef, state)(a, b))

    def score(restored: PixelBatch, reference: PixelBatch) -> list[float]:
        return np.asarray(distance(state, to_float(restored), to_float(reference))).tolist()

    digest = {"lpips.safetensors": file_digest(model / "lpips.safetensors")}
    return Scorer(metric, _identity(metric, _own("jax"), digest), score)


def _blurred_area(metric: Metric, detector: Path | None) -> Scorer:
    """Area of motion blur, by a network of HAODiff's stage 1. Raises MissingMetric."""
    if detector is None:
        raise MissingMetric("needs --detector, a folder of HAODiff's stage 1")
    try:
        logits = motion_area.load_motion_detector(detector)
    except (OSError, ValueError) as error:
        raise MissingMetric(str(error)) from error

    def score(restored: PixelBatch, _reference: None) -> list[float]:
        # One at a time: a Swin network fills the cores by itself, and is compiled for one size.
        return [float(motion_area.blurred_area(logits(picture[None]))[0]) for picture in restored]

    # It holds the digest of the weights.
    digest = {"config.json": file_digest(detector / "config.json")}
    return Scorer(metric, _identity(metric, _own("jax"), digest), score)


def _pyiqa(metric: Metric, weights: Path | None) -> Scorer:
    """One of pyiqa's metrics, its files from below `weights`. Raises MissingMetric."""
    # Its files are asked for while it is made, and noted: their digests belong to the identity.
    used: dict[str, str] = {}
    name = "fid" if metric.name == "fid-ffhq" else metric.name
    try:
        with _weights_only(weights, name, used):
            import pyiqa  # pyright: ignore[reportMissingImports]

            if name not in pyiqa.list_models():
                raise MissingMetric(f"pyiqa {pyiqa.__version__} has no {name}; take a later one")
            network = pyiqa.create_metric(name, **metric.options)
    except MissingMetric:
        raise
    except ImportError as error:
        raise MissingMetric(f"needs pip install 'osdhuman-jax[eval]' ({error})") from error
    except Exception as error:
        # torchvision of another build, a damaged file: nearly anything may come.
        lines = str(error).strip().splitlines() or [""]
        raise MissingMetric(f"pyiqa fails: {type(error).__name__}: {lines[0]}") from error
    import torch

    # How it is called: for a batch, for each picture, or for two folders.
    library = f"pyiqa {pyiqa.__version__}, torch {torch.__version__}"
    score = _score_one_by_one if metric.name in ONE_BY_ONE else _score_batches
    score = _score_folders if metric.whole_set else score
    if metric.name == "fid-ffhq":
        score = functools.partial(_score_ffhq, _ffhq(weights, used))
    return Scorer(metric, _identity(metric, library, used), functools.partial(score, network))


def _score_batches(
    network: Network, restored: PixelBatch, reference: PixelBatch | None
) -> list[float]:
    """A value for each picture of a batch."""
    import torch

    # A metric with a full reference ("FR") takes both, the others take the restored one alone.
    tensors = [torch.from_numpy(to_unit(x)) for x in (restored, reference) if x is not None]
    values = network(*tensors if network.metric_mode == "FR" else tensors[:1])
    return values.detach().double().reshape(len(restored)).cpu().tolist()


def _score_one_by_one(
    network: Network, restored: PixelBatch, reference: PixelBatch | None
) -> list[float]:
    """A value for each picture of a batch, computed alone."""
    others = [None] * len(restored) if reference is None else reference[:, None]
    pairs = zip(restored[:, None], others, strict=True)
    return [_score_batches(network, one, other)[0] for one, other in pairs]


def _score_folders(network: Network, restored: Path, reference: Path) -> list[float]:
    """The one value of two folders."""
    return [float(network(str(restored), str(reference), num_workers=0, verbose=False))]


def _ffhq(weights: Path | None, used: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of FFHQ's features, by VQFR's file. Raises MissingMetric."""
    import torch

    path = next(iter(sorted(weights.rglob(FFHQ))), None) if weights else None
    if path is None:
        raise MissingMetric(f"needs {FFHQ} below --weights; NTIRE's challenge links to it")
    used[FFHQ] = file_digest(path)
    # NumPy's arrays and nothing else, under the names of its first and second major version.
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    named = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    plain = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8"))]
    try:
        with torch.serialization.safe_globals([*named, *plain]):
            stats = torch.load(path, weights_only=True)
        mean, spread = (np.asarray(stats[key], np.float64) for key in ("mean", "cov"))
    except Exception as error:
        # Whatever a file of a stranger may be.
        raise MissingMetric(f"{path}: no mean and cov of features") from error
    return mean, spread


def _score_ffhq(
    ffhq: tuple[np.ndarray, np.ndarray], network: Network, restored: Path, _reference: Path
) -> list[float]:
    """FID of a folder against FFHQ, as VQFR and NTIRE compute it: torch's bilinear scaling."""
    import torch
    from pyiqa.archs import fid_arch  # pyright: ignore[reportMissingImports]

    found = fid_arch.get_folder_features(
        *(str(restored), network.net.model),
        num_workers=0,
        device=torch.device("cpu"),
        mode="legacy_pytorch",
        verbose=False,
    )
    return [float(fid_arch.frechet_distance(found.mean(0), np.cov(found, rowvar=False), *ffhq))]


def to_unit(pixels: PixelBatch) -> Float32[np.ndarray, "b 3 h w"]:
    """Pictures as torch's metrics take them: float32 in [0, 1], channels first."""
    # The GPUs on which published values were taken divide by 255 by multiplying with its
    # reciprocal. That decides how luma rounds where it lies halfway between two levels, and with it
    # the third decimal of NIQE.
    unit = pixels.astype(np.float32) * np.float32(1 / 255)
    return np.ascontiguousarray(unit.transpose(0, 3, 1, 2))


@contextlib.contextmanager
def _weights_only(weights: Path | None, name: str, used: dict[str, str]) -> Iterator[None]:
    """Context in which files come from below `weights`, and none is downloaded.

    `name` is the metric's. `used` gets the digest of each file that was asked for.
    """
    # Files go by their names alone, in whatever folder below `weights` they lie.
    paths = weights.rglob("*") if weights else ()
    files = {path.name: path for path in sorted(paths) if path.is_file()}
    open_url = urllib.request.urlopen

    def serve(url: str) -> object:
        file = url.rsplit("/", 1)[-1]
        if file not in files:
            raise MissingMetric(f"needs {file} below --weights; it is at {url}")
        used[file] = file_digest(files[file])
        return open_url(files[file].absolute().as_uri())

    cache = _hub_cache(weights, REPOSITORIES[name], used) if name in REPOSITORIES else ""
    # An empty folder each time, so that every metric's files are asked for, and noted.
    folder = process_folder() / "hub"
    folder.mkdir()
    try:
        with offline(serve, folder, [(hub, "HF_HUB_OFFLINE", True), (hub, "HF_HUB_CACHE", cache)]):
            yield
    finally:
        shutil.rmtree(folder)


def _hub_cache(weights: Path | None, repository: str, used: dict[str, str]) -> str:
    """The hub cache below `weights` that holds a repository. Raises MissingMetric."""
    # The hub's own layout: a folder for each repository, in it a snapshot for each revision.
    folder = "models--" + repository.replace("/", "--")
    for found in sorted(weights.rglob(folder)) if weights else ():
        kinds = (sorted(found.glob(f"snapshots/*/*.{kind}")) for kind in ("safetensors", "bin"))
        if files := next(filter(None, kinds), None):
            # A large model has several.
            used |= {f"{repository}/{file.name}": file_digest(file) for file in files}
            return str(found.parent)
    where = weights or "WEIGHTS"
    raise MissingMetric(
        f"needs {repository} below --weights: hf download {repository} --cache-dir {where}"
    )
