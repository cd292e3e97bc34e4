"""The metrics of the papers' tables, and those that need no file: PSNR and SSIM, on luma or RGB.

`METRICS` is the one list of what `evaluate` can compute: a name, the side on which it is better,
and what exactly is computed. `SETS` are the columns of a paper, OSDHuman's or HAODiff's, or of
NTIRE's challenge. Training validates by the functions on luma. They follow pyiqa's `psnr` and
`ssim` with `test_y_channel=True, color_space="ycbcr"` and no border crop, which is how the
published numbers were taken; those on RGB follow its `psnr` and `ssimc`. Images are uint8 RGB
(height, width, 3).
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

Pixels = UInt8[np.ndarray, "h w 3"]
Luma = Float64[np.ndarray, "h w"]


@dataclass(frozen=True)
class Metric:
    """A column of a table: what it is called, which way it points, what exactly is computed."""

    name: str  # as the command line takes it
    title: str
    higher: bool  # is better
    reference: bool  # needs one
    engine: str  # "numpy", "jax", "detector", "means" (of others), or "pyiqa", where it is `name`
    variant: str
    decimals: int = 4  # as the paper prints it
    options: dict[str, object] = field(default_factory=dict)  # of pyiqa.create_metric
    whole_set: bool = False  # one value for two sets, none for a picture
    relative: bool = False  # divided by the mean of the degraded pictures, which it needs

    @property
    def head(self) -> str:
        """Title with an arrow to the better side."""
        return f"{self.title} {'↑' if self.higher else '↓'}"


_Y = "Y of YCbCr (BT.601, 16-235), no border crop"
_RGB = "RGB, no border crop"
# Whether higher is better, and whether there is a reference.
_UP, _DOWN, _WITH, _WITHOUT = True, False, True, False
# The backbone that TOPIQ would have from timm is overwritten by TOPIQ's own file, which is whole.
_TOPIQ: dict[str, object] = {"backbone_pretrain": False}
# One order in which both papers' columns stand as they print them.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("dists", "DISTS", _DOWN, _WITH, "pyiqa", "DISTS, VGG16"),
        Metric("lpips", "LPIPS", _DOWN, _WITH, "pyiqa", "LPIPS v0.1, AlexNet"),
        Metric("lpips-vgg", "LPIPS-VGG", _DOWN, _WITH, "jax", "LPIPS v0.1, VGG16"),
        Metric("topiq_fr", "TOPIQ", _UP, _WITH, "pyiqa", "KADID-10k, ResNet50", options=_TOPIQ),
        Metric("psnr", "PSNR", _UP, _WITH, "numpy", _Y, decimals=2),
        Metric("ssim", "SSIM", _UP, _WITH, "numpy", f"{_Y}, 11 x 11 Gaussian window"),
        Metric("psnr-rgb", "PSNR-RGB", _UP, _WITH, "numpy", _RGB, decimals=2),
        Metric("ssim-rgb", "SSIM-RGB", _UP, _WITH, "numpy", f"{_RGB}, 11 x 11 Gaussian window"),
        Metric("afine_all_scale", "A-FINE", _DOWN, _WITH, "pyiqa", "both terms, 0 to 100", 3),
        Metric("fid", "FID", _DOWN, _WITH, "pyiqa", "clean-fid, Inception 2048", whole_set=True),
        Metric("clipiqa", "CLIPIQA", _UP, _WITHOUT, "pyiqa", "CLIP RN50, 5 pairs of prompts"),
        Metric("maniqa-pipal", "MANIQA", _UP, _WITHOUT, "pyiqa", "trained on PIPAL, 20 crops"),
        Metric("maniqa", "MANIQA-KonIQ", _UP, _WITHOUT, "pyiqa", "trained on KonIQ-10k, 20 crops"),
        Metric("musiq", "MUSIQ", _UP, _WITHOUT, "pyiqa", "trained on KonIQ-10k"),
        Metric("qalign", "Q-Align", _UP, _WITHOUT, "pyiqa", "one-align, quality, float16"),
        Metric("niqe", "NIQE", _DOWN, _WITHOUT, "numpy", "Y of YIQ, blocks of 96, no border crop"),
        Metric("brisque", "BRISQUE", _DOWN, _WITHOUT, "numpy", "Y of YIQ, LIVE's SVM"),
        Metric("liqe", "LIQE", _UP, _WITHOUT, "pyiqa", "KonIQ-10k, CLIP ViT-B/32, 15 crops of 224"),
        Metric("ilniqe", "IL-NIQE", _DOWN, _WITHOUT, "pyiqa", "resized to 524 x 524, blocks of 84"),
        Metric("hyperiqa", "HyperIQA", _UP, _WITHOUT, "pyiqa", "KonIQ-10k, ResNet50, 25 crops"),
        Metric("tres", "TReS", _UP, _WITHOUT, "pyiqa", "KonIQ-10k, ResNet50, 50 crops"),
        Metric("fgresq", "FGResQ", _UP, _WITHOUT, "pyiqa", "CLIP ViT-B/16, a crop of 224"),
        # NTIRE's: of any faces, against a hundred thousand others.
        Metric(
            *("fid-ffhq", "FID-FFHQ", _DOWN, _WITHOUT, "pyiqa"),
            "against FFHQ's statistics, bilinear to 299, Inception 2048",
            whole_set=True,
        ),
        Metric("ntire2026", "Score", _UP, _WITHOUT, "means", "see evaluation/ntire.py"),
        # Ours. HAODiff's own column, HMB-R, is of a detector that is not published: not the same.
        Metric(
            *("hmb-area", "HMB area", _DOWN, _WITHOUT, "detector"),
            "area of motion blur, restored / degraded, by the detector's third branch; not HMB-R",
            relative=True,
        ),
    )
}
# The columns of a paper's tables, by the name that `--metrics` takes.
SETS = {
    "osdhuman": (  # Tables 1 and 2: BRISQUE is in the former only
        *("dists", "lpips", "psnr", "ssim", "fid", "clipiqa", "maniqa-pipal", "musiq", "niqe"),
        "brisque",
    ),
    "haodiff": (  # HMB-R is left out: its detector is not published
        *("dists", "lpips", "topiq_fr", "fid", "clipiqa", "maniqa-pipal", "niqe", "liqe"),
        "ilniqe",
    ),
    "ntire2026": ("clipiqa", "maniqa", "musiq", "qalign", "niqe", "fid-ffhq", "ntire2026"),
}
# What only NTIRE's challenge asks: no part of "all".
FACES_ONLY = ("fid-ffhq", "ntire2026")

# ITU-R BT.601 in studio swing, where white is 235: what Matlab's rgb2ycbcr multiplies by.
_BT601 = np.array([65.481, 128.553, 24.966])
# Wang et al. 2004: an 11 x 11 window of sigma 1.5, K1 = 0.01, K2 = 0.03.
_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


def psnr_y(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB; 80 for equal images. Raises ValueError on unequal sizes."""
    _check(a, b)
    return _psnr(bt601_luma(a), bt601_luma(b))


def psnr_rgb(a: Pixels, b: Pixels) -> float:
    """The same of all three channels."""
    _check(a, b)
    return _psnr(a / 255.0, b / 255.0)


def _psnr(a: Float64[np.ndarray, "..."], b: Float64[np.ndarray, "..."]) -> float:
    """Of values in [0, 1]."""
    # pyiqa adds 1e-8, so that equal pictures have 80 dB and not infinity.
    return float(10 * np.log10(1 / (np.mean((a - b) ** 2) + 1e-8)))


def ssim_y(a: Pixels, b: Pixels) -> float:
    """Mean structural similarity, 1 for equal images (Wang et al. 2004, 11 x 11 Gaussian window).

    Raises ValueError on unequal sizes or sides below 11 pixels.
    """
    _check(a, b)
    # pyiqa rounds both to whole levels.
    return _ssim(np.round(bt601_luma(a) * 255), np.round(bt601_luma(b) * 255))


def ssim_rgb(a: Pixels, b: Pixels) -> float:
    """The mean of the three channels' similarities."""
    _check(a, b)
    planes = (np.moveaxis(picture.astype(np.float64), -1, 0) for picture in (a, b))
    return float(np.mean([_ssim(x, y) for x, y in zip(*planes, strict=True)]))


def _ssim(x: Luma, y: Luma) -> float:
    """Of one plane, in levels of 255."""
    if min(x.shape) < _WINDOW:
        raise ValueError(f"SSIM needs sides of at least {_WINDOW} pixels, got {x.shape}")
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    brightness = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    # pyiqa clips negative structure.
    return float(np.mean(brightness * np.maximum(structure, 0)))


def bt601_luma(pixels: Pixels) -> Luma:
    """Y of BT.601 as a fraction of 255: black 16 / 255, white 235 / 255."""
    return ((pixels / 255.0) @ _BT601 + 16) / 255


def _check(a: Pixels, b: Pixels) -> None:
    """Raises ValueError where two images differ in size."""
    if a.shape != b.shape:
        raise ValueError(f"images differ in size: {a.shape} and {b.shape}")


def _blur(values: Luma) -> Float64[np.ndarray, "h-10 w-10"]:
    """Gaussian window means, only where the whole window fits."""
    # The border that OpenCV makes up is cut off again: the published SSIM has "valid" windows.
    taps = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    taps /= taps.sum()
    half = _WINDOW // 2
    return cv2.sepFilter2D(values, cv2.CV_64F, taps, taps)[half:-half, half:-half]
