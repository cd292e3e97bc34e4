"""DiffBody (Zhang et al., ECCV 2024): restoration of people by imagining what is lost.

A degraded picture I_LQ is cleaned first, then imagined anew in many steps from noise (section 3,
Figure 2, Algorithm 1):

    I_reg = C(I_LQ)                               a restorer without imagination, frozen     (Eq. 2)
    I_pose, I_attn = Pose(I_reg), Attn(I_reg)     joints drawn, and where people are         (Eq. 3)
    hint = [E(I_reg) | E(I_pose) | I_attn]        at the latent's size
    eps  = U(z_t; t, c, ControlNet(z_t; t, c, hint)),   c = tokens of a text
    z_T -> .. -> z_0                              DDPM or DDIM, see sampler.py               (Eq. 5)
    I    = D(z_0)

The VAE (E, D), the U-Net and the text encoder are Stable Diffusion's, frozen; ControlNet is a
trainable copy of the U-Net's encoder, which learns to predict the noise, and most of all where
people are:

    L = mean of ((1 + I_attn) (eps - n))^2,   z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) n    (Eq. 4)

What is not in this file is how pose and attention are found: pictures of them come in. Guidance by
parts of the body (Eq. 6) is in body_parts.py.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from osdhuman_jax.methods import losses, sampler
from osdhuman_jax.methods.body_parts import PartLoss
from osdhuman_jax.methods.cleaner import CleanerNetwork
from osdhuman_jax.methods.prompts import Prompter
from osdhuman_jax.methods.sampler import Guidance, Keys, LatentLoss, Predict, Steps
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.controlnet import ControlNet, Hint
from osdhuman_jax.networks.types import Image, Latent, Scalar, Timestep, Tokens
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL, posterior_sample

Map = Float[Array, "b h w c"]
Attention = Float[Array, "b h w 1"]  # in [0, 1]: 1 where a person is


class Given(NamedTuple):
    """What is the same at every step of a picture."""

    hint: Hint
    prompt: Tokens
    # What to lead away from, by the scale `cfg`; without it the networks are asked once a step.
    negative: Tokens | None = None
    cfg: float | Scalar = 1.0
    control_scale: float | Scalar = 1.0


class DiffBody(nnx.Module):
    """Cleaner, VAE, U-Net and ControlNet; small models have a prompter in the text's place."""

    scale = 1  # side of the output / side of the input
    # Prompts and scales come with a call; no tile is as in the whole picture, for its norms.
    prompter = guidance = reach = None

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        control: ControlNet,
        cleaner: CleanerNetwork,
        prompter: Prompter | None = None,
    ):
        self.vae = vae
        self.unet = unet
        self.control = control
        self.cleaner = cleaner
        self.prompter = prompter

    @property
    def multiple(self) -> int:
        """Sides of the picture should be multiples of this, in pixels: 64 in Stable Diffusion."""
        return self.vae.downscale * 2 ** (len(self.unet.down_blocks) - 1)

    def clean(self, lq: Image) -> Image:
        """I_reg of Eq. 2, of the same size. A cleaner that enlarges is given a smaller picture."""
        return self.cleaner(reduced(lq, self.cleaner.scale))

    def encode(self, image: Image, noise: Latent | None = None) -> Latent:
        """Scaled latent: the posterior's mode or, with `noise` from N(0, 1), a sample of it.

        Conditions are modes, and what the networks learn to make are samples, as in DiffBIR.
        """
        mean, logvar = self.vae.encode(image)
        z = mean if noise is None else posterior_sample(mean, logvar, noise)
        return self.vae.scaling_factor * z

    def decode(self, latent: Latent) -> Image:
        """Image of a scaled latent, clamped to [-1, 1]."""
        return jnp.clip(self._decoded(latent), -1.0, 1.0)

    def _decoded(self, latent: Latent) -> Image:
        return self.vae.decode(latent / self.vae.scaling_factor)

    def at_latent(self, attention: Attention) -> Float[Array, "b _ _ 1"]:
        """Attention at the latent's size, where it is the mean of what was there."""
        return reduced(attention.astype(jnp.float32), self.vae.downscale)

    def tokens(self, reg: Image) -> Tokens:
        """The prompter's tokens of I_reg. Raises ValueError where there is no prompter."""
        if self.prompter is None:
            raise ValueError("this model has no prompter: give it the tokens of a text")
        return self.prompter(reg)

    def conditions(
        self, reg: Image, skeleton: Image | None = None, attention: Attention | None = None
    ) -> Hint:
        """The hint of Figure 2: E(I_reg), E(I_pose) and I_attn, side by side at the latent's size.

        `skeleton` (in [-1, 1], black where nobody is) and `attention` are of the picture's size.
        Each is given if, and only if, the ControlNet has channels for it.
        """
        parts = [self.encode(reg)]
        if skeleton is not None:
            parts.append(self.encode(skeleton))
        if attention is not None:
            parts.append(self.at_latent(attention))
        return jnp.concatenate(parts, axis=-1)  # [B, H/8, W/8, 4 + 4 + 1]

    def noise(self, z: Latent, t: Timestep, given: Given) -> Latent:
        """The noise that U-Net and ControlNet see in z at t, guided by `given.cfg`, float32.

        Both prompts see the same conditions, in one batch. Without a second prompt, or with a scale
        that is known to be 1, the first one alone is asked for.
        """
        hint, prompt, negative, cfg, strength = given
        if negative is None or (isinstance(cfg, float) and cfg == 1.0):
            return losses.guide(self._noise(z, t, prompt, hint, strength))
        z, hint = (jnp.concatenate([x, x]) for x in (z, hint))
        prompts = jnp.concatenate([jnp.broadcast_to(negative, prompt.shape), prompt])  # [2B, N, D]
        eps = self._noise(z, jnp.concatenate([t, t]), prompts, hint, strength)
        base, prompted = jnp.split(eps, 2)
        return losses.guide(prompted, base, cfg)

    def _noise(
        self, z: Latent, t: Timestep, prompt: Tokens, hint: Hint, strength: float | Scalar
    ) -> Latent:
        return self.unet(z, t, prompt, self.control(z, t, prompt, hint, strength))

    def predict(self, given: Given) -> Predict:
        """`noise` of conditions that do not change, as a sampler asks for it."""
        return lambda z, t: self.noise(z, t, given)

    def loss(
        self,
        z0: Latent,
        t: Timestep,
        noise: Latent,
        given: Given,
        attention: Attention | None = None,
    ) -> Scalar:
        """Eq. 4 of the scaled latents z0 of HQ pictures; without `attention`, of plain weights."""
        eps = self.noise(Schedule().add_noise(z0, noise, t), t, given)
        if attention is None:
            return losses.mse(eps, noise)
        return losses.weighted_mse(eps, noise, self.at_latent(attention))

    def latent_loss(self, part_loss: PartLoss) -> LatentLoss:
        """L_part of a latent, D(z_0) not being clamped: beyond white a clamp has no gradient."""
        return lambda z0: part_loss(self._decoded(z0))

    def sample(
        self,
        given: Given,
        steps: Steps,
        keys: Keys,
        begin: Literal["noise", "cond"] = "noise",
        guidance: Guidance | None = None,
    ) -> Latent:
        """Algorithm 1: z_0, of which `decode` makes the picture; one key for each picture.

        It begins with noise or ("cond", which DDIM needs) with I_reg's latent under noise.
        """
        # I_reg's latent is what the hint begins with.
        reg = given.hint[..., : self.vae.post_quant_conv.in_features]
        z = sampler.start_latent(steps, keys, reg.shape, reg if begin == "cond" else None)
        return sampler.sample(steps, z, keys, self.predict(given), guidance)


def reduced(x: Map, factor: int) -> Float[Array, "b _ _ c"]:
    """Means of squares of `factor` x `factor` pixels (the area filter); sides are its multiples."""
    b, h, w, c = x.shape
    squares = x.reshape(b, h // factor, factor, w // factor, factor, c)  # [B, H/f, f, W/f, f, C]
    return squares.mean((2, 4))
