"""Formulas of the objectives, pure functions of arrays in float32; `training.py` decides who calls
which network. Images are in [-1, 1]: the squared error is four times that of [0, 1] images.
"""

import jax.numpy as jnp

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
