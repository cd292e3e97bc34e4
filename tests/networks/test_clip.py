"""CLIP's text encoder against transformers' on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import abstract, call, close, count, filled, from_torch, norm_epsilons, randomise

from benchmarks import references
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.configs import CLIPConfig

PLAN = {
    "vocab_size": 60,
    "max_position_embeddings": 9,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CONFIG = CLIPConfig(**PLAN)


@pytest.fixture(scope="module")
def pair():
    """(transformers' network, ours with its weights)."""
    theirs = randomise(references.clip(PLAN))
    state = references.clip_state(theirs)
    return theirs, from_torch(lambda rngs: CLIPTextModel(CONFIG, rngs=rngs), state)


@pytest.fixture
def ids() -> np.ndarray:
    """Two prompts of different lengths, padded with 0."""
    drawn = np.random.default_rng(0).integers(1, 58, (2, 9))
    drawn[0, 4:], drawn[:, 0] = [59, 0, 0, 0, 0], 58
    return drawn.astype(np.int32)


@pytest.mark.parametrize("length", [9, 5])
def test_hidden_states(pair, ids, length):
    theirs, mine = pair
    assert set(norm_epsilons(mine).values()) == {1e-5}
    ids = ids[:, :length]
    want = theirs(torch.from_numpy(ids).long()).last_hidden_state
    close(call(mine, ids), want, 1e-4)


def test_size_of_stable_diffusion_2_1():
    net = abstract(lambda rngs: CLIPTextModel(CLIPConfig.sd21(), rngs=rngs))
    assert count(net) == 340_387_840  # the size of its text_encoder
    out = jax.eval_shape(lambda net: net(jnp.zeros((2, 77), jnp.int32)), net)
    assert (out.shape, out.dtype) == ((2, 77, 1024), jnp.float32)


def test_bfloat16_tokens_are_near_float32_ones(ids):
    low = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    exact = filled(lambda rngs: CLIPTextModel(CONFIG, rngs=rngs))
    half = filled(lambda rngs: CLIPTextModel(CONFIG, **low, rngs=rngs))
    want, got = call(exact, ids), call(half, ids)
    assert got.dtype == jnp.bfloat16
    error = np.asarray(got.astype(jnp.float32) - want)
    assert error.std() < 0.02 * np.asarray(want).std()
