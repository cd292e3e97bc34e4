"""What is trained beside the generator to judge its output: a critic of pictures, or of latents.

A run has one of them or none. Small models are taught by a critic of pictures (networks/critic.py),
HAODiff by one of latents over the generator's own frozen U-Net (networks/judge.py). Its parameters
are a part of the training state; what it looks at was made by the generator, and is detached.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import PyTree

from osdhuman_jax.config import Config, ModelConfig
from osdhuman_jax.methods.haodiff_training import LatentCritic, inject_judge, judge_loss
from osdhuman_jax.methods.objectives import (
    Frozen,
    Scalars,
    critic_objective,
    frozen_unet,
    has_critic,
    has_latent_critic,
)
from osdhuman_jax.networks import remat
from osdhuman_jax.networks.critic import Critic
from osdhuman_jax.networks.judge import Judge
from osdhuman_jax.training.optimizer import accumulate
from osdhuman_jax.training.sharding import over_slices
from osdhuman_jax.weights.model_folder import DTYPES, abstract, begin_at_zero, draw_parameters


class Critics:
    """The graph of a run's critic, drawn by the seed; `start` is None where it has none."""

    def __init__(self, config: Config, model: ModelConfig) -> None:
        self._loss = config.loss
        self._pictures: nnx.GraphDef | None = None
        self._latents: LatentCritic | None = None
        self.start: nnx.State | None = None
        if has_critic(config):
            self._pictures, self.start = nnx.split(_of_pictures(config))
        if has_latent_critic(config):
            self._latents = LatentCritic(_of_latents(config, model))
            self.start = self._latents.params

    def of_pictures(self, params: nnx.State | None) -> Critic | None:
        """The critic of pictures with these parameters, where the run has one."""
        return None if self._pictures is None else nnx.merge(self._pictures, params)

    def of_latents(self, params: nnx.State | None, frozen: Frozen) -> Judge | None:
        """The critic of latents with these parameters, where the run has one."""
        if self._latents is None or params is None:
            return None
        return self._latents.with_weights(frozen_unet(frozen), params)

    def gradients(
        self, params: nnx.State, frozen: Frozen, parts: PyTree, mesh: Mesh | None = None
    ) -> tuple[nnx.State, Scalars]:
        """Gradients of the critic's own loss, and scalars; means over microbatches and slices.

        `parts` are what the generator made, and the microbatches.
        """

        def of(held: tuple[nnx.State, Frozen], part: PyTree) -> tuple[PyTree, PyTree]:
            params, frozen = held
            made, microbatch = part

            def loss(params: nnx.State) -> tuple[Array, Scalars]:
                if (critic := self.of_pictures(params)) is not None:
                    found = critic_objective(self._loss, critic, made["image"], microbatch)
                    return found.value, found.scalars
                judge = self.of_latents(params, frozen)
                assert judge is not None  # else there is nothing to train
                latents = made["latent"], made["real"], made["prompt"]
                return judge_loss(judge, *latents, microbatch)

            return jax.grad(loss, has_aux=True)(params), ()

        return over_slices(mesh, partial(accumulate, of), (params, frozen), parts)[0]


# The second word of a seed tells what is drawn apart: 1 the regularizer's adapters, 2 a critic.


def _of_pictures(config: Config) -> Critic:
    width, exact = config.loss.critic_width, jnp.float32
    critic = abstract(lambda rngs: Critic(width, rngs=rngs, dtype=exact, param_dtype=exact))
    draw_parameters(critic, np.random.default_rng([config.run.seed, 2]))
    # It begins without an opinion: every logit is 0, and no picture is better than another.
    begin_at_zero(critic.conv_out)
    return critic


def _of_latents(config: Config, model: ModelConfig) -> Judge:
    make = partial(Judge, model.unet, dtype=DTYPES[config.run.precision])
    # Of the U-Net shapes are enough: its weights are those of the generator's frozen one.
    judge = abstract(lambda rngs: make(rngs=rngs))
    rng = np.random.default_rng([config.run.seed, 2])
    inject_judge(judge, config.lora, rng)
    draw_parameters(judge.head, rng)
    begin_at_zero(judge.head.conv_out)
    remat.set_policy(judge, config.run.remat)
    return judge
