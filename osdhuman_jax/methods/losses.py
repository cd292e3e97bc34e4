"""Formulas of the objectives: pure functions of arrays, computed in float32 whatever comes in.

They are the terms of OSDHuman's Eqs. 4, 6 and 7, of DiffBody's Eq. 4, and those that small models
have in the place of LPIPS and VSD. Which network is asked for their arguments, and with which
weights they are summed, stands in objectives.py. Images are (B, H, W, 3) in [-1, 1]: the squared
error is four times that of images in [0, 1].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from osdhuman_jax.networks.types import Image, Latent, Scalar

# Luma of ITU-R BT.601 in studio swing, whose black is 16: as the metric SSIM-Y has it.
_LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 255
_BLACK = 16 / 255
_GRAY = np.array([0.2989, 0.587, 0.114], np.float32)  # HAODiff's weights of its edges
# SSIM's window: 11 taps of a Gaussian of deviation 1.5, which sum to one.
_TAPS = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2)).astype(np.float32)
_TAPS /= _TAPS.sum()


def mse(prediction: Image | Latent, target: Image | Latent) -> Scalar:
    """Mean squared error: the data term of Eq. 4 and the diffusion loss of Eq. 7."""
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def weighted_mse(
    prediction: Latent, target: Latent, attention: Float[Array, "b zh zw 1"]
) -> Scalar:
    """DiffBody's Eq. 4: the mean of ((1 + a) error)^2, up to four times as much where a person is.

    `attention` is in [0, 1], at the latent's size; where it is 0, this is `mse`.
    """
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square((1.0 + attention.astype(jnp.float32)) * error))


def chroma(prediction: Image, target: Image) -> Scalar:
    """Mean squared error of R - G and B - G.

    In photographs of people green against magenta has one percent of the variance of RGB, so that a
    small autoencoder trained on squared error alone drops it, and skin turns orange.
    """
    # A difference of errors is the error of the difference: both pairs in one subtraction.
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(error[..., 0::2] - error[..., 1:2]))


def l1(prediction: Image, target: Image) -> Scalar:
    """Mean absolute error, which blurs less than the squared one.

    Where several sharp answers are possible it is least for one in their middle (their median),
    the squared error for their blurred mean.
    """
    return jnp.mean(jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def gradient(prediction: Image, target: Image) -> Scalar:
    """Mean absolute error of the differences of neighbouring pixels, down and across."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    down, across = jnp.diff(error, axis=1), jnp.diff(error, axis=2)
    return jnp.mean(jnp.abs(down)) + jnp.mean(jnp.abs(across))


def colour(prediction: Image, source: Image, side: int = 16) -> Scalar:
    """Mean squared error of the means of squares of `side` x `side` pixels.

    Noise and JPEG leave these means as they are, so `source` is the degraded picture itself.
    """
    error = prediction.astype(jnp.float32) - source.astype(jnp.float32)
    b, h, w, c = error.shape
    # What is left over at the right and at the bottom makes no whole square.
    error = error[:, : h // side * side, : w // side * side]
    squares = error.reshape(b, h // side, side, w // side, side, c)  # [B, H/16, 16, W/16, 16, 3]
    return jnp.mean(jnp.square(squares.mean((2, 4))))


def kl(mean: Latent, logvar: Latent) -> Scalar:
    """KL divergence of the posterior from N(0, 1), in nats per latent element."""
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def guide(
    eps: Latent, eps_unconditional: Latent | None = None, scale: float | Scalar = 1.0
) -> Float[Array, "b zh zw zc"]:
    """Classifier-free guidance (Ho & Salimans 2022): eps_0 + scale (eps - eps_0).

    eps_0 is `eps_unconditional`; without it there is no guidance, and eps is the result.
    """
    eps = eps.astype(jnp.float32)
    if eps_unconditional is None:
        return eps
    base = eps_unconditional.astype(jnp.float32)
    return base + scale * (eps - base)


def score_error(noise: Latent, eps: Latent) -> Float[Array, "b 1 1 1"]:
    """mean |noise - eps| of each sample, by which `vsd_gradient` divides."""
    error = jnp.abs(noise.astype(jnp.float32) - eps.astype(jnp.float32))
    return jnp.mean(error, axis=(1, 2, 3), keepdims=True)


def vsd_gradient(noise: Latent, eps_frozen: Latent, eps_finetuned: Latent) -> Latent:
    """Eq. 6 with OSEDiff's denominator: (x0_finetuned - x0_frozen) / mean |z - x0_frozen|.

    The paper prints (eps_frozen - eps_finetuned) / mean |eps_frozen - z|, whose denominator takes a
    latent from an estimate of the noise. These are different quantities: that mean is near 1 at any
    t and however good the estimate is, so it weighs nothing. The paper says that its VSD follows
    OSEDiff, whose trainer (as DMD's) subtracts the latent from the frozen network's estimate of
    the latent, x0_frozen: so we read the equation, and each sample is divided by its own mean.

    Both x0 are estimates from the latent z that `noise` made z_t of. Since x0 = (z_t - sigma eps) /
    signal and z = (z_t - sigma noise) / signal, the numerator is sigma / signal times (eps_frozen -
    eps_finetuned), the paper's, and the denominator the same factor times |noise - eps_frozen|. The
    factor cancels, and what is computed is (eps_frozen - eps_finetuned) / mean |noise -
    eps_frozen|: no error is multiplied by it, at any t.
    """
    # The frozen estimate comes first: the gradient leads away from what the generator makes.
    difference = eps_frozen.astype(jnp.float32) - eps_finetuned.astype(jnp.float32)
    return difference / score_error(noise, eps_frozen)


def vsd(latent: Latent, gradient: Latent) -> Scalar:
    """A loss whose derivative by the latent is 2 gradient / size (OSEDiff's mean reduction).

    Its value is mean(gradient^2), which measures how far two moving targets are apart: it need not
    fall while training goes well.
    """
    # The target moves with the latent, so that the derivative is the gradient wherever it stands.
    latent = latent.astype(jnp.float32)
    return mse(latent, jax.lax.stop_gradient(latent - gradient))


def relativistic(better: Float[Array, "b h w"], worse: Float[Array, "b h w"]) -> Scalar:
    """softplus(-(D(better) - D(worse))): the relativistic pairing loss (Jolicoeur-Martineau 2019).

    A critic has the real picture as `better`, a generator its own; both are of one source, so that
    only what differs between them is judged.
    """
    return jnp.mean(jax.nn.softplus(worse.astype(jnp.float32) - better.astype(jnp.float32)))


def steadiness(logits: Float[Array, "b h w"], beside: Float[Array, "b h w"]) -> Scalar:
    """Squared difference of a critic's answers to a picture and to the same with faint noise.

    It is R1's penalty, the squared gradient by the picture, without a second derivative (Lin et al.
    2025, APT): for noise of deviation s it is s^2 times R1.
    """
    difference = logits.astype(jnp.float32) - beside.astype(jnp.float32)
    return jnp.mean(jnp.square(difference))


def dice(probability: Float[Array, "b h w"], mask: Float[Array, "b h w"]) -> Scalar:
    """1 - (2 sum p m + 1) / (sum p^2 + sum m^2 + 1) over all samples (Milletari et al. 2016).

    The ones make empty masks, met by empty answers, no error. A fraction of sums is no mean over
    samples: with `optim.accumulate`, or on several slices of TPUs, it is that of each part, and no
    longer that of the batch.
    """
    # Most masks are empty. One by one they would have no gradient, and an answer of "all of it"
    # would be the best constant one, from which a saturated network does not come back: by the
    # squares and the common sum it is the root of the share that is true.
    both = jnp.sum(probability * mask)
    either = jnp.sum(probability**2) + jnp.sum(mask**2)
    return 1.0 - (2.0 * both + 1.0) / (either + 1.0)


def sobel(image: Image) -> Float[Array, "b h w"]:
    """Length of Sobel's gradient of the luma of images in [0, 1], black beyond the borders."""
    gray = image.astype(jnp.float32) @ _GRAY  # [B, H, W]
    gray = jnp.pad(gray, ((0, 0), (1, 1), (1, 1)))
    # Separable: the difference of two lines, smoothed along them.
    down, across = gray[:, 2:] - gray[:, :-2], gray[:, :, 2:] - gray[:, :, :-2]
    dy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    dx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    # What stands under the root keeps its derivative finite where nothing changes.
    return jnp.sqrt(jnp.square(dx) + jnp.square(dy) + 1e-6)


def ssim_loss(prediction: Image, target: Image) -> Scalar:
    """1 - SSIM of the luma (Wang et al. 2004, 11 x 11 Gaussian window), sides of 11 pixels or more.

    A perceptual term without weights. Squared error alone leaves grain in flat regions: there it is
    small beside the error of any edge, while SSIM counts both alike.
    """
    # Luma of [16, 235] as in the metric SSIM-Y, on a scale of [0, 1].
    pair = (prediction.astype(jnp.float32), target.astype(jnp.float32))
    x, y = ((image + 1) / 2 @ _LUMA + _BLACK for image in pair)
    # Means, variances and covariance under a window around each pixel.
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    # Wang et al.'s constants keep both quotients finite where a window is flat or dark.
    c1, c2 = 0.01**2, 0.03**2
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return 1.0 - jnp.mean(brightness * (2 * covariance + c2) / (var_x + var_y + c2))


def _window(values: Array) -> Array:
    """Gaussian window means of (batch, h, w), only where the whole window fits."""
    # A Gaussian is separable: eleven shifted sums down and eleven across, not 121.
    height, width = (n - len(_TAPS) + 1 for n in values.shape[1:])
    down = sum(tap * values[:, i : i + height] for i, tap in enumerate(_TAPS))
    rows = jnp.asarray(down)  # [B, H - 10, W]
    across = sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(_TAPS))
    return jnp.asarray(across)  # [B, H - 10, W - 10]
