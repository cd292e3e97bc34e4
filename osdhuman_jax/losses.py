"""Formulas of the objectives, pure functions of arrays in float32; `training.py` decides who calls
which network. Images are in [-1, 1]: the squared error is four times that of [0, 1] images.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from osdhuman_jax.types import Image, Latent, Scalar


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


def guide(
    eps: Latent, eps_unconditional: Latent | None = None, scale: float = 1.0
) -> Float[Array, "b zh zw zc"]:
    """Classifier-free guidance: eps_0 + scale (eps - eps_0), or eps where there is no eps_0."""
    eps = eps.astype(jnp.float32)
    if eps_unconditional is None:
        return eps
    base = eps_unconditional.astype(jnp.float32)
    return base + scale * (eps - base)


def score_error(noise: Latent, eps: Latent) -> Float[Array, "b 1 1 1"]:
    """mean |noise - eps| of each sample: Eq. 6's denominator but for a factor that cancels."""
    error = jnp.abs(noise.astype(jnp.float32) - eps.astype(jnp.float32))
    return jnp.mean(error, axis=(1, 2, 3), keepdims=True)


def vsd_gradient(noise: Latent, eps_frozen: Latent, eps_finetuned: Latent) -> Latent:
    """Eq. 6: (x0_finetuned - x0_frozen) / mean |z - x0_frozen|, each sample by its own mean.

    The x0 are estimates from the latent z noised by `noise`. With x0 = (z_t - sigma eps) / signal
    both differences are sigma / signal times a difference of eps, and that factor cancels:
    (eps_frozen - eps_finetuned) / mean |noise - eps_frozen|. So no error is multiplied, at any t.
    """
    difference = eps_frozen.astype(jnp.float32) - eps_finetuned.astype(jnp.float32)
    return difference / score_error(noise, eps_frozen)


def vsd(latent: Latent, gradient: Latent) -> Scalar:
    """A loss whose derivative by the latent is 2 gradient / size (OSEDiff's mean reduction).

    Its value is mean(gradient^2), which measures how far two moving targets are apart: it need not
    fall while training goes well.
    """
    latent = latent.astype(jnp.float32)
    return mse(latent, jax.lax.stop_gradient(latent - gradient))
