"""Policies change what is kept and never what is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import normal
from flax import nnx

from osdhuman_jax.config import LoRAConfig
from osdhuman_jax.networks import remat
from osdhuman_jax.networks.layers import ResnetBlock2D, Transformer2DModel
from osdhuman_jax.networks.swinir import ConvDownsampler, Upsampler

POLICIES = ("none", "products", "blocks")


def loss_and_gradient(policy: str):
    """Of the small U-Net by its LoRA, as a function of the LoRA."""
    model = tiny.restorer(LoRAConfig()).unet
    remat.set_policy(model, policy)
    graphdef, params, frozen = nnx.split(model, nnx.filterlib.PathContains("lora_A"), ...)
    z, prompt = (jnp.asarray(normal(*shape)) for shape in ((2, 8, 8, 4), (2, 3, 8)))

    def loss(params):
        unet = nnx.merge(graphdef, params, frozen)
        return jnp.mean(jnp.square(unet(z, jnp.array([3, 900]), prompt)))

    return jax.value_and_grad(loss), params


def test_gradients_are_the_same():
    plain, params = loss_and_gradient("none")
    value, slope = jax.jit(plain)(params)
    for policy in POLICIES[1:]:
        other, _ = loss_and_gradient(policy)
        value2, slope2 = jax.jit(other)(params)
        np.testing.assert_allclose(value2, value, rtol=1e-5, err_msg=policy)
        for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(slope2), strict=True):
            # What is computed again is fused, and so rounded, in another way: an error of the
            # largest.
            error = 1e-4 * float(jnp.abs(a).max()) + 1e-6
            np.testing.assert_allclose(b, a, rtol=0, atol=error, err_msg=policy)


def kept(policy: str, block: nnx.Module, *inputs: jax.Array) -> int:
    """Bytes of intermediate values that a block keeps for its gradient by input and weights."""
    remat.set_policy(block, policy)
    graphdef, state = nnx.split(block)

    def loss(state: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, state)(x, *inputs[1:]))

    _, backward = jax.vjp(loss, state, inputs[0])
    return sum(x.nbytes for x in jax.tree.leaves(backward) if x.shape[:1] == inputs[0].shape[:1])


@pytest.mark.parametrize("kind", ["resnet", "transformer", "upsampler", "downsampler"])
def test_policies_keep_less_and_less(kind):
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    x = jnp.asarray(normal(7, 8, 8, 64))
    inputs = [x]
    if kind == "resnet":
        block = ResnetBlock2D(64, 64, groups=4, epsilon=1e-5, **kw)
    elif kind == "upsampler":
        block = Upsampler(64, 4, 3, **kw)
    elif kind == "downsampler":
        # Its first convolution has 27 terms, and is computed again by either policy.
        block, inputs = ConvDownsampler(64, 4, **kw), [x[..., :3]]
    else:
        block = Transformer2DModel(64, heads=2, context_dim=8, groups=4, **kw)
        inputs.append(jnp.asarray(normal(7, 3, 8)))
    sizes = [kept(policy, block, *inputs) for policy in POLICIES]
    assert sizes[0] > sizes[1] > sizes[2] >= inputs[0].nbytes
