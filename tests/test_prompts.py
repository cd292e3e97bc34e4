"""HFIE against PyTorch's multi-head attention."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import abstract, call, close, count, filled, from_torch, normal, randomise
from flax import nnx

from osdhuman_jax.prompts import HFIE, HFIEPrompter
from osdhuman_jax.swin import RAMEncoder


def hfie(rngs, queries=5, dim=32, kv_dim=24, heads=4, **kw) -> HFIE:
    kw = {"query_init_std": 1.0, **kw}
    return HFIE(num_queries=queries, dim=dim, kv_dim=kv_dim, num_heads=heads, rngs=rngs, **kw)


def named(mha: torch.nn.MultiheadAttention, query: torch.Tensor) -> dict[str, torch.Tensor]:
    """PyTorch's weights under our names."""
    state = dict(mha.state_dict())
    biases = dict(zip("qkv", state.pop("in_proj_bias").chunk(3), strict=True))
    for name, bias in biases.items():
        state[f"{name}_proj.weight"] = state.pop(f"{name}_proj_weight")
        state[f"{name}_proj.bias"] = bias
    return {**state, "query": query}


@pytest.mark.parametrize(("dim", "heads"), [(32, 1), (32, 4), (64, 16)])
def test_tokens(dim, heads):
    mha = torch.nn.MultiheadAttention(dim, heads, kdim=24, vdim=24, batch_first=True)
    query = torch.from_numpy(normal(5, dim, seed=1))
    ours = from_torch(lambda rngs: hfie(rngs, dim=dim, heads=heads), named(randomise(mha), query))
    e = normal(3, 10, 24)
    want, _ = mha(query.expand(3, -1, -1), *[torch.from_numpy(e)] * 2)
    close(call(ours, e), want, 1e-5)


def test_order_of_the_embeddings_does_not_matter():
    net, e = filled(hfie), normal(2, 9, 24)
    np.testing.assert_allclose(call(net, e), call(net, e[:, ::-1].copy()), atol=1e-5)


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_initial_weights_are_pytorchs(std):
    net = hfie(nnx.Rngs(3), 64, 64, 32, 4, query_init_std=std)
    assert abs(float(net.query[...].std()) / std - 1) < 0.05
    for layer in (net.q_proj, net.k_proj, net.v_proj, net.out_proj):
        bound = (6 / sum(layer.kernel.shape)) ** 0.5  # xavier_uniform
        assert 0.97 * bound < float(jnp.abs(layer.kernel[...]).max()) <= bound
        assert not layer.bias[...].any()


def test_default_size():
    """3.23 million parameters: 77 queries of 1024, keys and values from 512."""
    assert count(abstract(lambda rngs: hfie(rngs, 77, 1024, 512, 16))) == 3_228_672


def test_bfloat16_tokens_are_near_float32_ones():
    exact, half = filled(hfie), filled(lambda rngs: hfie(rngs, dtype=jnp.bfloat16))
    assert half.query.dtype == half.q_proj.kernel.dtype == jnp.float32  # trained
    e = normal(2, 9, 24)
    want, got = call(exact, e), call(half, e)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)


def test_prompter_is_encoder_then_hfie():
    swin = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}
    prompter = filled(
        lambda rngs: HFIEPrompter(
            RAMEncoder(image_proj_dim=24, window_size=2, mlp_ratio=2.0, **swin, rngs=rngs),
            hfie(rngs),
        )
    )
    image = normal(2, 20, 12, 3).clip(-1, 1)
    embeddings = call(prompter.image_encoder, image)
    assert embeddings.shape == (2, 17, 24)
    got = call(prompter, image)
    assert got.shape == (2, 5, 32)
    np.testing.assert_allclose(got, call(prompter.hfie, embeddings), atol=1e-5)
    assert float(jnp.abs(got[0] - got[1]).max()) > 1e-2  # every image has its own prompt
