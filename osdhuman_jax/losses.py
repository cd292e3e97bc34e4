"""Formulas of the objectives, pure functions of arrays in float32; `training.py` decides who calls
which network. Images are in [-1, 1]: the squared error is four times that of [0, 1] images.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from osdhuman_jax.types import Image, Latent, Scalar

_LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 255  # BT.601, studio swing
_BLACK = 16 / 255
_TAPS = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2)).astype(np.float32)
_TAPS /= _TAPS.sum()


def mse(prediction: Image | Latent, target: Image | Latent) -> Scalar:
    """Mean squared error: the data term of Eq. 3, the diffusion loss of Eq. 7."""
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def chroma(prediction: Image, target: Image) -> Scalar:
    """Mean squared error of R - G and B - G.

    In photographs of people green against magenta has one percent of the variance of RGB, so that a
    small autoencoder trained on squared error alone drops it, and skin turns orange.
    """
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(error[..., 0::2] - error[..., 1:2]))


def kl(mean: Latent, logvar: Latent) -> Scalar:
    """KL divergence of the posterior from N(0, 1), in nats per latent element."""
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def structure(prediction: Image, target: Image) -> Scalar:
    """1 - SSIM of the luma (Wang et al. 2004, 11 x 11 Gaussian window), sides of 11 pixels or more.

    A perceptual term without weights. Squared error alone leaves grain in flat regions: there it is
    small beside the error of any edge, while SSIM counts both alike.
    """
    pair = (prediction.astype(jnp.float32), target.astype(jnp.float32))
    x, y = ((image + 1) / 2 @ _LUMA + _BLACK for image in pair)
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return 1.0 - jnp.mean(brightness * (2 * covariance + c2) / (var_x + var_y + c2))


def _window(values: Array) -> Array:
    """Gaussian window means of (batch, h, w), only where the whole window fits."""
    height, width = (n - len(_TAPS) + 1 for n in values.shape[1:])
    rows = sum(tap * values[:, i : i + height] for i, tap in enumerate(_TAPS))
    return jnp.asarray(sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(_TAPS)))
