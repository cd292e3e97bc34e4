"""RAM's tagging head against layers of transformers' BERT on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import abstract, call, close, count, from_torch, norm_epsilons, normal, randomise

from benchmarks.references import Tagger as Reference
from osdhuman_jax.networks.configs import TaggerConfig
from osdhuman_jax.networks.tagger import Tagger, select_tags

PLAN = {
    "num_tags": 11,
    "label_dim": 20,
    "hidden_size": 24,
    "context_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}


def tagger(rngs, **kw) -> Tagger:
    sizes = {k: v for k, v in PLAN.items() if k != "context_dim"}
    return Tagger(TaggerConfig(**sizes), PLAN["context_dim"], rngs=rngs, **kw)


@pytest.fixture(scope="module")
def pair():
    """(PyTorch's network, ours with its weights)."""
    theirs = randomise(Reference(PLAN))
    theirs.label_embed.data *= 20**0.5  # the queries should matter as much as the image
    return theirs, from_torch(tagger, theirs)


def test_logits(pair):
    theirs, mine = pair
    assert set(norm_epsilons(mine).values()) == {1e-12}
    embeddings = 3 * normal(2, 7, PLAN["context_dim"])
    want = theirs(torch.from_numpy(embeddings))
    assert want.shape == (2, 11) and float((want[0] - want[1]).abs().max()) > 0.01
    close(call(mine, embeddings), want, 1e-4)


def test_layer(pair):
    theirs, mine = pair
    x, context = normal(2, 5, PLAN["hidden_size"]), normal(2, 7, PLAN["context_dim"], seed=1)
    want = theirs.tagging_head.encoder.layer[1](torch.from_numpy(x), torch.from_numpy(context))
    close(call(mine.tagging_head.encoder.layer[1], x, context), want, 1e-5)


def test_size_of_ram():
    """Two layers of 7.5 million, the projection of the labels, 4,585 labels of 512."""
    net = abstract(lambda rngs: Tagger(TaggerConfig.ram(), 512, rngs=rngs))
    attention = 2 * (768 * 768 + 768) + 2 * (512 * 768 + 768) + 2 * 768
    mlp = 2 * 768 * 3072 + 3072 + 768 + 2 * 768
    assert count(net) == 2 * (attention + mlp) + 512 * 768 + 768 + 769 + 4585 * 512
    out = jax.eval_shape(lambda net: net(jnp.zeros((2, 145, 512))), net)
    assert (out.shape, out.dtype) == ((2, 4585), jnp.float32)


def test_logits_are_float32_in_a_bfloat16_network():
    low = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    net = abstract(lambda rngs: tagger(rngs, **low))
    out = jax.eval_shape(lambda net: net(jnp.zeros((1, 7, 16), jnp.bfloat16)), net)
    assert out.dtype == jnp.float32 and net.fc.kernel.dtype == jnp.bfloat16


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_each_tag_has_its_own_threshold_and_the_order_is_the_lists():
    logits = np.asarray([[logit(p) for p in row] for row in ((0.7, 0.7, 0.99), (0.1, 0.81, 0.5))])
    limits = np.asarray([0.65, 0.8, 0.9], np.float32)
    found = select_tags(logits.astype(np.float32), limits, ["man", "dog", "hat"])
    assert found == [["man", "hat"], ["dog"]]


def test_a_probability_at_the_threshold_is_not_enough():
    found = select_tags(
        np.zeros((1, 2), np.float32), np.asarray([0.5, 0.4999], np.float32), ["a", "b"]
    )
    assert found == [["b"]]


@pytest.mark.parametrize(("names", "limits"), [(["a"], 2), (["a", "b"], 3), (["a"] * 3, 3)])
def test_lists_of_other_lengths_are_refused(names, limits):
    with pytest.raises(ValueError, match=f"{len(names)} names, {limits} thresholds, 2 logits"):
        select_tags(np.zeros((1, 2), np.float32), np.zeros(limits, np.float32), names)
