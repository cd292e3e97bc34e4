"""The DDPM noise schedule of Stable Diffusion and the one-step estimate of OSDHuman's Eq. 2.

    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps,   t in [0, 1000)

Restoring needs the second alone, which solves this for z_0; training also needs the first, to add
noise. Latents are (B, H, W, C), timesteps (B,); everything is computed in float32.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float64

from osdhuman_jax.networks.types import Latent, Timestep


@dataclass(frozen=True)
class Schedule:
    """`scaled_linear` betas; the defaults are Stable Diffusion's scheduler_config.json."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def products(self) -> Float64[np.ndarray, " t"]:
        """Cumulative product of 1 - beta, (num_train_timesteps,) float64, as 1000 factors round."""
        # "scaled": evenly spaced are the square roots.
        start, end = np.sqrt([self.beta_start, self.beta_end])
        betas = np.linspace(start, end, self.num_train_timesteps) ** 2
        return np.cumprod(1.0 - betas)

    @property
    def alphas_bar(self) -> Array:
        """The same for programs, float32."""
        return jnp.asarray(self.products, jnp.float32)

    def coefficients(self, t: Timestep) -> tuple[Array, Array]:
        """(sqrt(abar_t), sqrt(1 - abar_t)), each (B, 1, 1, 1) float32."""
        # Both from the same product, so that their squares sum to one.
        alpha_bar = self.alphas_bar[t][:, None, None, None]  # [B, 1, 1, 1]
        return jnp.sqrt(alpha_bar), jnp.sqrt(1.0 - alpha_bar)

    def add_noise(self, z0: Latent, noise: Latent, t: Timestep) -> Latent:
        """z_t from z_0 (Ho et al. 2020, Eq. 4)."""
        signal, sigma = self.coefficients(t)
        return signal * z0.astype(jnp.float32) + sigma * noise.astype(jnp.float32)

    def eps_to_x0(self, z: Latent, eps: Latent, t: Timestep) -> Latent:
        """Eq. 2: z_0 = (z - sqrt(1 - abar_t) eps) / sqrt(abar_t).

        At t = 999 an error of eps grows 14.6 times, hence float32 whatever the inputs' dtype.
        """
        signal, sigma = self.coefficients(t)
        return (z.astype(jnp.float32) - sigma * eps.astype(jnp.float32)) / signal
