"""OSDHuman (Gong et al., ICML 2025): restoration of people in one diffusion step.

A degraded picture I_L becomes a restored one I_H in four moves (section 3.2, Figure 2):

    z_L = E(I_L)                        the VAE's encoder, with LoRA
    p   = HFIE(I_L)                     tokens of the prompt, see prompts.py (section 3.3, Eq. 5)
    z_H = (z_L - sqrt(1 - abar) eps) / sqrt(abar),  eps = U(z_L; p, T_L)          (Eq. 2)
    I_H = D(z_H)                        the VAE's decoder, frozen

Where other diffusion models begin with noise, this one takes the degraded picture's latent for
the noisy latent of timestep T_L: no noise is added, and the U-Net, with LoRA, is asked once. What
it is trained on is in objectives.py.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from osdhuman_jax.methods.prompts import Prompter
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.types import Image, Latent, Tokens
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL, posterior_sample


class OneStepRestorer(nnx.Module):
    """VAE, U-Net and prompt extractor, with the timestep T_L of the one step.

    Where the prompt is not made by a module (tags are made on the host), there is no prompter, and
    every call brings its prompt.
    """

    scale = 1  # side of the output / side of the input
    guidance: float | None = None  # of two prompts, where there are two (haodiff.py)
    # No tile can be restored as in the whole picture: its prompt and its norms reach every pixel.
    reach = None

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        prompter: Prompter | None,
        timestep: int,
    ):
        self.vae = vae
        self.unet = unet
        self.prompter = prompter
        self.timestep = timestep

    @property
    def multiple(self) -> int:
        """Sides of the picture should be multiples of this, in pixels.

        The latent can then be halved at every level of the U-Net, and no level needs a resize.
        """
        return self.vae.downscale * 2 ** (len(self.unet.down_blocks) - 1)

    def encode(self, image: Image, noise: Latent | None = None) -> Latent:
        """Scaled latent: the posterior's mean or, with `noise` from N(0, 1), a sample of it."""
        mean, logvar = self.vae.encode(image)  # [B, H/8, W/8, 4] in Stable Diffusion
        # OSEDiff samples in training; in use the mean is taken, so that a picture has one result.
        z = mean if noise is None else posterior_sample(mean, logvar, noise)
        return self.vae.scaling_factor * z

    def decode(self, latent: Latent) -> Image:
        """Image of a scaled latent, clamped to [-1, 1]."""
        # The clamp is part of the model: an image beyond white is none, and no file holds it.
        return jnp.clip(self.vae.decode(latent / self.vae.scaling_factor), -1.0, 1.0)

    def denoise(self, latent: Latent, prompt: Tokens) -> Latent:
        """Eq. 2 at T_L: the U-Net runs once on the latent of the degraded image."""
        # One timestep for all: it is the model's, not drawn and not measured.
        t = jnp.full((latent.shape[0],), self.timestep, jnp.int32)  # [B]
        eps = self.unet(latent, t, prompt)  # [B, H/8, W/8, 4]
        return Schedule().eps_to_x0(latent, eps, t)

    def described(self, prompt: Tokens) -> Float[Array, "b _ d"]:
        """Of a prompt's tokens those that say what the picture should be: here all of them."""
        return prompt

    def tokens(self, image: Image) -> Tokens:
        """The prompter's tokens of images. Raises ValueError where there is no prompter."""
        if self.prompter is None:
            raise ValueError("this restorer has no prompter: give it a prompt")
        return self.prompter(image)

    def __call__(self, lq: Image, prompt: Tokens | None = None) -> Image:
        """Restore images (B, H, W, 3) in [-1, 1]; H and W multiples of the VAE's downscale.

        `prompt` takes the place of the prompter's tokens of `lq`. It must be given where `lq` is
        padded or a tile, since the prompt is that of the whole picture and of nothing else. Raises
        ValueError where there is neither a prompt nor a prompter.
        """
        # The order of the paper's Figure 2; encoder and prompter do not need each other.
        tokens = self.tokens(lq) if prompt is None else prompt  # [B, 77, 1024]
        return self.decode(self.denoise(self.encode(lq), tokens))
