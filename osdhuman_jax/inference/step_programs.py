"""What DiffBody computes, as functions of a network's graph, its weights and arrays.

`Programs.call` compiles them, once for all steps and pictures of a size. VAE and noise also serve
windows of a large picture: the VAE's norms then take statistics that were measured over some
windows (see tiling.py), and those of U-Net and ControlNet are each window's own, as in DiffBIR.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, UInt32

from osdhuman_jax.inference.tiling import Statistics, share_norms
from osdhuman_jax.methods import sampler
from osdhuman_jax.methods.body_parts import PartLoss, heatmap_loss, parser_loss
from osdhuman_jax.methods.diffbody import DiffBody, Given
from osdhuman_jax.methods.sampler import Guidance, Steps
from osdhuman_jax.networks import remat
from osdhuman_jax.networks.blazepose import Graph, run
from osdhuman_jax.networks.types import Image, Latent, Scalar, Timestep

KeyData = UInt32[Array, "b k"]
Index = Int[Array, ""]
Half = Literal["encode", "decode"]
Judge = Callable[..., PartLoss]  # of what it judges by, and I_reg
HEATMAPS = 3  # number of the landmarker's output that has a map for each joint


# The VAE -----------------------------------------------------------------------------------------


def _whole(half: Half, graphdef: nnx.GraphDef, weights: nnx.State, x: Array) -> Array:
    return getattr(nnx.merge(graphdef, weights), half)(x)


def _measured(half: Half, graphdef: nnx.GraphDef, weights: nnx.State, x: Array) -> nnx.State:
    model = nnx.merge(graphdef, weights)
    share_norms(model.vae, measure=True)
    getattr(model, half)(x)
    return nnx.state(model.vae, Statistics)


def _shared(
    half: Half, graphdef: nnx.GraphDef, weights: nnx.State, statistics: nnx.State, x: Array
) -> Array:
    model = nnx.merge(graphdef, weights)
    share_norms(model.vae, measure=False)
    nnx.update(model.vae, statistics)
    return getattr(model, half)(x)


# Made once, since a function is what its compiled program is found by.
HALVES: tuple[Half, Half] = ("encode", "decode")
WHOLE = {half: partial(_whole, half) for half in HALVES}
MEASURED = {half: partial(_measured, half) for half in HALVES}
SHARED = {half: partial(_shared, half) for half in HALVES}


# Steps -------------------------------------------------------------------------------------------


def noise(
    graphdef: nnx.GraphDef, weights: nnx.State, z: Latent, t: Timestep, given: Given
) -> Float[Array, "b h w c"]:
    """The noise that the networks see, of which a step is made by `move`."""
    return nnx.merge(graphdef, weights).noise(z, t, given)


@jax.jit
def move(steps: Steps, i: Index, z: Latent, eps: Latent, keys: KeyData) -> Latent:
    """A step by a noise that is known."""
    return sampler.step(steps, i, z, eps, jax.random.wrap_key_data(keys))


def step(
    graphdef: nnx.GraphDef,
    weights: nnx.State,
    steps: Steps,
    i: Index,
    z: Latent,
    keys: KeyData,
    given: Given,
) -> Latent:
    """Step number `i`; all steps and all their counts are one program, see `long`."""
    model: DiffBody = nnx.merge(graphdef, weights)
    eps = sampler.predicted(steps, i, z, model.predict(given))
    return sampler.step(steps, i, z, eps, jax.random.wrap_key_data(keys))


def long(steps: Steps, length: int = 1000) -> Steps:
    """Steps followed by zeros, so that a program of any number of them is one."""
    return Steps(*(jnp.pad(value, (0, length - len(value))) for value in steps))


def guided_step(
    judge: Judge,
    graphdef: nnx.GraphDef,
    weights: nnx.State,
    steps: Steps,
    i: Index,
    z: Latent,
    keys: KeyData,
    given: Given,
    scale: Scalar,
    judged_by: nnx.State | tuple,
    reg: Image,
) -> Latent:
    """The same, led by the parts that `judge` finds in `reg`, I_reg (Algorithm 1).

    It is for timesteps that are guided (`sampler.in_window`). A branch in the program would spare
    a second one, but XLA computes convolutions in a branch many times slower on CPUs.
    """
    model: DiffBody = nnx.merge(graphdef, weights)
    # The gradient goes through the decoder, at the picture's full size.
    remat.set_policy(model.vae, "blocks")
    guidance = Guidance(model.latent_loss(judge(judged_by, reg)), scale)
    eps, shift = sampler.led(steps, i, z, model.predict(given), guidance)
    return sampler.step(steps, i, z, eps, jax.random.wrap_key_data(keys), shift)


def by_parser(graph: nnx.GraphDef, weights: nnx.State, reg: Image) -> PartLoss:
    """L_part by the parser of parts."""
    return parser_loss(nnx.merge(graph, weights), reg)


def by_heatmaps(graph: Graph, judged_by: tuple, reg: Image) -> PartLoss:
    """L_part by BlazePose's landmarker: its weights, squares of people, and which are there."""
    weights, squares, present = judged_by

    def heatmaps(x: Float[Array, "n s s 3"]) -> Float[Array, "n h w j"]:
        # Its graph is of one square.
        return jax.vmap(lambda one: run(graph, weights, one[None])[HEATMAPS][0])(x)

    return heatmap_loss(heatmaps, reg, squares, present)
