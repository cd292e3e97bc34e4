"""ControlNet against diffusers' on random weights, its beginning, and the published sizes."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import abstract, call, close, count, filled, from_torch, normal, randomise
from flax import nnx

from benchmarks import references
from osdhuman_jax.networks.configs import ControlNetConfig, UNetConfig
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.unet import UNet2DConditionModel

UNET = UNetConfig(
    in_channels=4,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    num_attention_heads=(2, 4),
    cross_attention_dim=16,
    norm_num_groups=8,
)
DIFFBODY, DIFFBIR = ControlNetConfig(UNET, True, True), ControlNetConfig(UNET, False, False)


def inputs(config: ControlNetConfig) -> tuple[np.ndarray, ...]:
    """Latent, timestep, prompt and hint of two pictures; no side is a multiple of two."""
    z, hint = normal(2, 9, 7, 4), normal(2, 9, 7, config.hint_channels, seed=1)
    return z, np.asarray([999, 20], np.int32), normal(2, 5, 16, seed=2), hint


@nnx.jit
def controlled(unet, control, z, t, context, hint, scale):
    return unet(z, t, context, control(z, t, context, hint, scale))


@pytest.mark.parametrize("config", [DIFFBODY, DIFFBIR])
def test_control_and_what_the_unet_makes_of_it(config):
    theirs = randomise(references.controlnet(asdict(config.unet), config.in_channels), 1)
    unet = randomise(references.unet(asdict(config.unet)))
    mine = from_torch(lambda r: ControlNet(config, rngs=r), references.controlnet_state(theirs))
    mine_unet = from_torch(lambda r: UNet2DConditionModel(config.unet, rngs=r), unet)
    z, t, context, hint = inputs(config)
    down, middle = references.control(theirs, z, t, context, hint, scale=0.7)
    for got, want in zip(call(mine, z, t, context, hint, 0.7), [*down, middle], strict=True):
        close(got, want, 2e-5)
    want = references.controlled(unet, (down, middle), z, t, context)
    got = controlled(mine_unet, mine, z, t, context, hint, 0.7)
    assert float(np.abs(got - call(mine_unet, z, t, context)).max()) > 0.1
    close(got, want, 1e-4)


def test_it_begins_as_the_unet():
    unet = filled(lambda rngs: UNet2DConditionModel(UNET, rngs=rngs))
    control = abstract(lambda rngs: ControlNet(DIFFBODY, rngs=rngs))
    control.copy_from(unet)
    z, t, context, hint = map(jnp.asarray, inputs(DIFFBODY))
    alone = np.asarray(call(unet, z, t, context))
    np.testing.assert_array_equal(controlled(unet, control, z, t, context, hint, 1.0), alone)
    # Only the convolutions to the U-Net learn in the first step; the conditions' weights are zero.
    graphdef, state = nnx.split(control)

    def loss(state):
        return jnp.mean(unet(z, t, context, nnx.merge(graphdef, state)(z, t, context, hint)) ** 2)

    slopes = {p: v[...] for p, v in nnx.to_flat_state(jax.jit(jax.grad(loss))(state))}
    own = [p for p in slopes if str(p[0]).startswith("controlnet_")]
    assert len(own) == 2 * 5 and all(np.abs(slopes[p]).max() > 0 for p in own)
    assert not any(np.abs(slopes[p]).max() for p in set(slopes) - set(own))
    assert slopes["conv_in", "kernel"].shape == (3, 3, 13, 32)
    kernel = np.asarray(control.conv_in.kernel[...])
    np.testing.assert_array_equal(kernel[:, :, :4], unet.conv_in.kernel[...])
    assert not kernel[:, :, 4:].any()


def test_too_little_control_is_refused():
    def run(unet, control):
        *made, _, last = control(z, t, context, hint)
        return unet(z, t, context, (*made, last))

    z, t, context, hint = map(jnp.asarray, inputs(DIFFBODY))
    unet = abstract(lambda rngs: UNet2DConditionModel(UNET, rngs=rngs))
    control = abstract(lambda rngs: ControlNet(DIFFBODY, rngs=rngs))
    with pytest.raises(ValueError, match="shorter"):
        jax.eval_shape(run, unet, control)


def test_bf16_control_of_a_float32_unet():
    def run(unet, control):
        made = control(z, t, context, hint, jnp.float32(1))
        return made, unet(z, t, context, made)

    z, t, context, hint = map(jnp.asarray, inputs(DIFFBODY))
    unet = abstract(lambda rngs: UNet2DConditionModel(UNET, rngs=rngs))
    control = abstract(lambda rngs: ControlNet(DIFFBODY, dtype=jnp.bfloat16, rngs=rngs))
    made, eps = jax.eval_shape(run, unet, control)
    assert {x.dtype for x in made} == {jnp.dtype(jnp.bfloat16)} and eps.dtype == jnp.float32


@pytest.mark.parametrize(
    ("config", "channels", "parameters"),
    [
        (ControlNetConfig.sd21(), 13, 363_167_680),
        (ControlNetConfig.diffbir(), 8, 363_167_680 - 5 * 9 * 320),
    ],
)
def test_published_sizes(config, channels, parameters):
    made = abstract(lambda rngs: ControlNet(config, rngs=rngs))
    assert made.conv_in.kernel.shape == (3, 3, channels, 320) and count(made) == parameters
    widths = [conv.kernel.shape[-1] for conv in made.controlnet_down_blocks]
    assert widths == [320] * 4 + [640] * 3 + [1280] * 5
    with torch.device("meta"):
        theirs = references.controlnet(asdict(config.unet), channels)
    assert parameters == sum(v.numel() for v in references.controlnet_state(theirs).values())
