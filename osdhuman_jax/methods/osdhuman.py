"""OSDHuman's generator: degraded image -> latent -> ONE U-Net step (Eq. 2) -> restored image."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from osdhuman_jax.methods.prompts import HFIE, FixedPrompter, HFIEPrompter
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.types import Image, Latent, Tokens
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL


class OneStepRestorer(nnx.Module):
    """VAE, U-Net and prompt extractor, with the timestep T_L of the one step.

    Without a prompter (the extractor is no module, as with tags) every call brings its prompt.
    """

    scale = 1  # side of the output / side of the input
    reach = None  # the whole picture, by its prompt and by the norms, changes every pixel

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        prompter: HFIEPrompter | FixedPrompter | None,
        timestep: int,
    ):
        self.vae = vae
        self.unet = unet
        self.prompter: Any = prompter
        self.timestep = timestep

    @property
    def multiple(self) -> int:
        """Image sides that are multiples of this need no resize to a skip anywhere."""
        return self.vae.downscale * 2 ** (len(self.unet.down_blocks) - 1)

    def encode(self, image: Image, key: Array | None = None) -> Latent:
        """Scaled latent: a sample of the posterior, or its mode where no key is given."""
        mean, logvar = self.vae.encode(image)
        if key is not None:
            mean = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return self.vae.scaling_factor * mean

    def decode(self, latent: Latent) -> Image:
        """Image of a scaled latent, clamped to [-1, 1]."""
        return jnp.clip(self.vae.decode(latent / self.vae.scaling_factor), -1.0, 1.0)

    def denoise(self, latent: Latent, prompt: Tokens) -> Latent:
        """Eq. 2 at T_L: the U-Net runs once on the latent of the degraded image, no noise added."""
        t = jnp.full((latent.shape[0],), self.timestep, jnp.int32)
        return Schedule().eps_to_x0(latent, self.unet(latent, t, prompt), t)

    def tokens(self, image: Image) -> Tokens:
        """The prompter's tokens of images. Raises ValueError where there is no prompter."""
        if self.prompter is None:
            raise ValueError("this restorer has no prompter: give it a prompt")
        return self.prompter(image)

    def __call__(self, lq: Image, key: Array | None = None, prompt: Tokens | None = None) -> Image:
        """Restore images (B, H, W, 3) in [-1, 1]; H and W multiples of the VAE's downscale.

        `prompt` stands in for the prompter's tokens of `lq`, as it must where `lq` is padded: the
        prompt is the picture's alone. Raises ValueError where there is neither.
        """
        tokens = self.tokens(lq) if prompt is None else prompt
        return self.decode(self.denoise(self.encode(lq, key), tokens))


def build_restorer(
    vae: dict[str, Any],
    unet: dict[str, Any],
    swin: dict[str, Any],
    hfie: dict[str, Any],
    timestep: int,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> OneStepRestorer:
    """A restorer with random weights; the dicts are the networks' arguments.

    Raises ValueError where VAE and U-Net disagree on the latent's channels.
    """

    if vae["latent_channels"] != unet["in_channels"]:
        pair = f"{vae['latent_channels']} and {unet['in_channels']}"
        raise ValueError(f"vae.latent_channels and unet.in_channels differ: {pair}")
    kw: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    tokens = {"dim": unet["cross_attention_dim"], "kv_dim": swin["image_proj_dim"]}
    prompter = HFIEPrompter(
        RAMEncoder(**swin, **kw), HFIE(**hfie, **tokens, dtype=dtype, rngs=rngs)
    )
    return OneStepRestorer(
        AutoencoderKL(**vae, **kw), UNet2DConditionModel(**unet, **kw), prompter, timestep
    )
