"""The U-Net against diffusers' on random weights, block by block and whole."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import abstract, call, close, from_torch, nchw, normal, randomise
from dtypes import convolutions

from benchmarks import references
from osdhuman_jax.methods import lora
from osdhuman_jax.networks.configs import UNetConfig
from osdhuman_jax.networks.unet import UNet2DConditionModel, up_resnet_inputs

CONTEXT = 40
REST = {"cross_attention_dim": CONTEXT, "norm_num_groups": 8}
SD = {  # Stable Diffusion's plan, a tenth as wide
    "in_channels": 4,
    "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "layers_per_block": 2,
    "num_attention_heads": (1, 2, 4, 4),
}
PLAIN_FIRST = {  # no attention at the finest level
    "in_channels": 8,
    "block_out_channels": (32, 48, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
    "num_attention_heads": (1, 3, 2),
}
PLANS = {"sd": SD, "plain_first": PLAIN_FIRST}


def ours(plan: dict, rngs, **kw) -> UNet2DConditionModel:
    return UNet2DConditionModel(UNetConfig(**plan, **REST), rngs=rngs, **kw)


@lru_cache
def make_pair(name: str):
    plan = PLANS[name]
    theirs = randomise(references.unet({**plan, **REST}))
    return plan, theirs, from_torch(lambda rngs: ours(plan, rngs), theirs)


@pytest.fixture(params=list(PLANS))
def pair(request):
    """(plan, diffusers' network, ours with its weights)."""
    return make_pair(request.param)


@pytest.fixture
def inputs(pair):
    """Time embedding and context of a batch of two."""
    return normal(2, 4 * pair[0]["block_out_channels"][0], seed=8), normal(2, 5, CONTEXT, seed=9)


@pytest.mark.parametrize("level", [0, -1])
def test_down_block(pair, inputs, level):
    plan, theirs, mine = pair
    widths = plan["block_out_channels"]
    x = normal(2, 6, 5, widths[0] if level == 0 else widths[-2])
    temb, context = map(torch.from_numpy, inputs)
    kw = (
        {"encoder_hidden_states": context}
        if hasattr(theirs.down_blocks[level], "attentions")
        else {}
    )
    want, skips = theirs.down_blocks[level](nchw(x), temb, **kw)
    got, made = call(mine.down_blocks[level], x, *inputs)
    close(got, want, 1e-5)
    assert len(made) == len(skips)
    for a, b in zip(made, skips, strict=True):
        close(a, b, 1e-5)


def test_mid_block(pair, inputs):
    plan, theirs, mine = pair
    x = normal(2, 4, 3, plan["block_out_channels"][-1])
    temb, context = map(torch.from_numpy, inputs)
    want = theirs.mid_block(nchw(x), temb, encoder_hidden_states=context)
    close(call(mine.mid_block, x, *inputs), want, 1e-5)


@pytest.mark.parametrize("index", [0, -1])
def test_up_block(pair, inputs, index):
    plan, theirs, mine = pair
    widths, layers = plan["block_out_channels"], plan["layers_per_block"]
    level = -1 - index if index else len(widths) - 1
    fan_in = up_resnet_inputs(widths, level, layers)
    below = widths[min(level + 1, len(widths) - 1)]
    hidden = [below] + [widths[level]] * layers
    x = normal(2, 5, 4, below)
    rest = [total - own for total, own in zip(fan_in, hidden, strict=True)]
    skips = [normal(2, 5, 4, width, seed=width) for width in rest][::-1]
    size = None if level == 0 else (9, 7)
    next_skip = [] if size is None else [normal(2, *size, 3)]
    temb, context = map(torch.from_numpy, inputs)
    block = theirs.up_blocks[index]
    kw = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
    want = block(nchw(x), tuple(map(nchw, skips)), temb, upsample_size=size, **kw)
    close(call(mine.up_blocks[index], x, next_skip + skips, *inputs), want, 1e-5)


@pytest.mark.parametrize(
    ("pair", "size"),
    [
        ("sd", (16, 8)),
        ("sd", (9, 13)),  # not multiples of 8: the way up resizes to the skips
        ("plain_first", (8, 12)),
        ("plain_first", (10, 6)),
    ],
    indirect=["pair"],
)
def test_whole_network(pair, size):
    plan, theirs, mine = pair
    z, context = normal(2, *size, plan["in_channels"]), normal(2, 7, CONTEXT, seed=1)
    t = np.asarray([999, 20], np.int32)
    want = theirs(nchw(z), torch.from_numpy(t), torch.from_numpy(context)).sample
    got = call(mine, z, t, context)
    assert got.shape == z.shape and got.dtype == jnp.float32
    close(got, want, 1e-4)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_eps_is_float32_in_bfloat16_networks(param_dtype):
    net = abstract(
        lambda rngs: ours(PLAIN_FIRST, rngs, dtype=jnp.bfloat16, param_dtype=param_dtype)
    )
    z, context = jax.ShapeDtypeStruct((2, 7, 5, 8), jnp.float32), jnp.zeros((2, 3, CONTEXT))
    eps = jax.eval_shape(lambda n, z: n(z, jnp.zeros(2, jnp.int32), context), net, z)
    assert (eps.shape, eps.dtype) == ((2, 7, 5, 8), jnp.float32)
    assert net.conv_in.kernel.dtype == param_dtype


@pytest.mark.parametrize("rank", [0, 2])
def test_latent_and_eps_are_not_rounded_in_bfloat16_networks(rank):
    def make(rngs):
        unet = ours(PLAIN_FIRST, rngs, dtype=jnp.bfloat16)
        if rank:
            targets = lora.unet_targets(unet)
            lora.inject(unet, targets, rank=rank, alpha=4.0, rng=np.random.default_rng(0))
        return unet

    z, context = jnp.zeros((1, 8, 8, 8)), jnp.zeros((1, 3, CONTEXT))
    found = convolutions(lambda n, z: n(z, jnp.zeros(1, jnp.int32), context), abstract(make), z)
    ends = 2 if rank else 1  # an adapter brings a convolution of its own
    assert found[:ends] == found[-ends:] == [("float32", True)] * ends
    assert {kind for kind, _ in found[ends:-ends]} == {"bfloat16"}


def test_up_path_of_stable_diffusion():
    widths = (320, 640, 1280, 1280)
    assert [up_resnet_inputs(widths, level, 2) for level in (3, 2, 1, 0)] == [
        [2560, 2560, 2560],
        [2560, 2560, 1920],
        [1920, 1280, 960],
        [960, 640, 640],
    ]
