"""How HAODiff is trained: the dual-prompt generator first, then the restorer by it.

Stage 1 teaches the branches of the dual-prompt generator what its prompts are made of (Gong et al.
2025, Figure 3): the original I_H, the residual I_L - I_H, and the mask M of what moved,

    L_1 = L1(F_1(I_L), I_H) + L1(F_2(I_L), I_L - I_H) + alpha Dice(sigma(F_3(I_L)), M).

Stage 2 freezes it and trains LoRA, embedders and a critic of latents,

    L_2 = MSE(G(I_L), I_H) + L_EA(G(I_L), I_H) + beta L_G(z_H),

with DISTS on pictures and on their edges as L_EA (losses.py, dists.py) and DMD2's adversarial
term as L_G: the critic is the diffusion model itself, which sees noised latents (judge.py).
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from osdhuman_jax.config import LoRAConfig
from osdhuman_jax.methods import lora, losses
from osdhuman_jax.methods.dual_prompts import DualPrompter
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.dists import DISTS
from osdhuman_jax.networks.judge import Judge
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.types import Image, Latent, Scalar, Tokens

Scalars = dict[str, Scalar]
Draws = Mapping[str, Array]
# What a critic draws: a timestep, and noise for the generator's latent, and for both in its update.
GAN_NOISE = ("gan_noise", "gan_noise_fake", "gan_noise_real", "gan_posterior")


def dual_prompt_terms(prompter: DualPrompter, lq: Image, hq: Image, mask: Array) -> Scalars:
    """The three terms of stage 1.

    `mask` is (B, H, W), true where motion blurred a person. Raises ValueError where the extractor
    has no upsamplers.
    """
    made = prompter.feature_extractor.reconstruct(lq)
    return {
        "restored": losses.l1(made.restored, hq),
        "residual": losses.l1(made.residual, lq - hq),
        "dice": losses.dice(jax.nn.sigmoid(made.motion[..., 0]), mask.astype(jnp.float32)),
    }


def edge_aware(dists: DISTS, vgg: LPIPS, image: Image, target: Image) -> Scalar:
    """L_EA: DISTS of the pictures, and of their edges (OSDFace)."""
    distance = dists(vgg, image, target)
    edges = dists(vgg, edge_picture(image), edge_picture(target))
    return jnp.mean(distance + edges)


def edge_picture(image: Image) -> Image:
    """Edges as a gray picture; their range [0, ..] stands for DISTS' [0, 1], and is not scaled."""
    edges = losses.sobel((image + 1.0) / 2.0)  # [B, H, W]
    return jnp.repeat(2.0 * edges[..., None] - 1.0, 3, axis=-1)


# The critic of latents.


class LatentCritic:
    """A judge over the generator's frozen U-Net, which is held once.

    Kept is its graph; the U-Net's weights are put in by their names when it is asked for.
    """

    def __init__(self, judge: Judge) -> None:
        """A judge with adapters; its base weights are not looked at."""
        learnt = nnx.Any(lora.LoRAParam, nnx.PathContains("head"))
        self._graph, self.params, self._slots = nnx.split(judge, learnt, ...)

    def with_weights(self, unet: Mapping[str, nnx.Variable], params: nnx.State) -> Judge:
        """The judge with the frozen U-Net's weights by name, and with what it has learnt."""
        return nnx.merge(self._graph, params, lora.state_of_names(self._slots, unet, "unet."))


def inject_judge(judge: Judge, config: LoRAConfig, rng: np.random.Generator) -> None:
    """Put adapters of the generator's rank into what the judge uses of the U-Net, in place."""
    used = ("conv_in", "down_blocks", "mid_block")
    targets = [path for path in lora.unet_targets(judge.unet) if path[0] in used]
    lora.inject(judge.unet, targets, rank=config.rank, alpha=config.alpha, rng=rng)


def draw_gan(shape: tuple[int, ...], key: Array) -> dict[str, Array]:
    """Timesteps in [0, 1000) and noise of one step, for latents of `shape`."""
    t_key, *keys = jax.random.split(key, 1 + len(GAN_NOISE))
    normal = partial(jax.random.normal, shape=shape)
    drawn = {name: normal(k) for name, k in zip(GAN_NOISE, keys, strict=True)}
    steps = Schedule.num_train_timesteps
    return drawn | {"gan_t": jax.random.randint(t_key, shape[:1], 0, steps)}


def generator_gan(judge: Judge, latent: Latent, prompt: Tokens, drawn: Draws) -> Scalar:
    """L_G = softplus(-D(z_H)): the generator's latent should look real, at a random timestep."""
    prompt = jax.lax.stop_gradient(prompt)
    noisy = Schedule().add_noise(latent, drawn["gan_noise"], drawn["gan_t"])
    return jnp.mean(jax.nn.softplus(-judge(noisy, drawn["gan_t"], prompt)))


def judge_loss(
    judge: Judge, latent: Latent, real: Latent, prompt: Tokens, drawn: Draws
) -> tuple[Scalar, Scalars]:
    """L_D = softplus(D(z_H)) + softplus(-D(E(I_H))) of detached latents, and what to log."""
    t = drawn["gan_t"]
    # Generated and real latents in one batch, of like timesteps and with noise of their own.
    both = jnp.concatenate([latent, real])  # [2B, H, W, C]
    noise = jnp.concatenate([drawn["gan_noise_fake"], drawn["gan_noise_real"]])
    times = jnp.tile(t, 2)
    noisy = Schedule().add_noise(both, noise, times)
    fake, true = jnp.split(judge(noisy, times, jnp.tile(prompt, (2, 1, 1))), 2)
    loss = jnp.mean(jax.nn.softplus(fake)) + jnp.mean(jax.nn.softplus(-true))
    return loss, {"critic_loss": loss, "critic_right": jnp.mean(true > fake)}
