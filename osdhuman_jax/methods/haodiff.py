"""HAODiff (Gong et al., NeurIPS 2025): restoration of people by two prompts and guidance.

OSDHuman's one step (osdhuman.py) from an earlier timestep, T_L = 199, where Eq. 2 multiplies an
error of the noise by 0.57 and not by 14.6, and with the difference of two prompts: what the picture
should be, and what is wrong with it (dual_prompts.py).

    eps = eps_neg + lambda (eps_pos - eps_neg),   eps_i = U(z_L; p_i, T_L)
    z_H = (z_L - sqrt(1 - abar) eps) / sqrt(abar)                                  (Eq. 2)

Lambda is a part of the training, so that values far from its own lead off what the U-Net knows.
The VAE is frozen, encoder and decoder.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from osdhuman_jax.methods.losses import guide
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import Prompter
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.types import Image, Latent, Scalar, Tokens
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL


class DualPromptRestorer(OneStepRestorer):
    """A one-step restorer whose prompts are (B, 2 N, D), the negative half first."""

    guidance: float

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        prompter: Prompter | None,
        timestep: int,
        guidance: float,
    ):
        super().__init__(vae, unet, prompter, timestep)
        self.guidance = guidance

    def described(self, prompt: Tokens) -> Float[Array, "b _ d"]:
        """The positive half."""
        return jnp.split(prompt, 2, axis=1)[1]  # [B, N, D]

    def denoise(
        self, latent: Latent, prompt: Tokens, guidance: float | Scalar | None = None
    ) -> Latent:
        """Eq. 2 at T_L of the guided noise; `guidance` stands in for the model's own lambda."""
        # Both prompts in one batch: the U-Net runs once, on twice as many latents.
        negative, positive = jnp.split(prompt, 2, axis=1)  # [B, N, D] each
        prompts = jnp.concatenate([negative, positive])  # [2B, N, D]
        t = jnp.full((latent.shape[0],), self.timestep, jnp.int32)  # [B]
        eps = self.unet(jnp.tile(latent, (2, 1, 1, 1)), jnp.tile(t, 2), prompts)
        eps_negative, eps_positive = jnp.split(eps, 2)  # [B, H/8, W/8, 4] each
        scale = self.guidance if guidance is None else guidance
        return Schedule().eps_to_x0(latent, guide(eps_positive, eps_negative, scale), t)

    def __call__(
        self,
        lq: Image,
        prompt: Tokens | None = None,
        guidance: float | Scalar | None = None,
    ) -> Image:
        """As OneStepRestorer's, by a `guidance` that may be traced: none compiles anew."""
        tokens = self.tokens(lq) if prompt is None else prompt  # [B, 2 N, D]
        return self.decode(self.denoise(self.encode(lq), tokens, guidance))
