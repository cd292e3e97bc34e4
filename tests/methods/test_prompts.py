"""HFIE against PyTorch's multi-head attention; prompts from tags, from a space, from a file."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import call, close, filled, from_torch, normal, randomise
from flax import nnx

from benchmarks.references import mha_state
from osdhuman_jax.images.codec import to_uint8
from osdhuman_jax.images.sizes import squash
from osdhuman_jax.methods.prompts import (
    HFIE,
    FixedPrompter,
    ImageTagger,
    TagPrompter,
    TextEncoder,
    bare_text,
    load_prompt,
    null_prompter,
    tag_text,
)
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.configs import CLIPConfig, HFIEConfig, TaggerConfig
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.tagger import Tagger


def hfie(rngs, queries=5, dim=32, kv_dim=24, heads=4, **kw) -> HFIE:
    config = HFIEConfig(queries, heads, kw.pop("query_init_std", 1.0))
    return HFIE(config, dim=dim, kv_dim=kv_dim, rngs=rngs, **kw)


@pytest.mark.parametrize(("dim", "heads"), [(32, 1), (32, 4), (64, 16)])
def test_tokens(dim, heads):
    mha = torch.nn.MultiheadAttention(dim, heads, kdim=24, vdim=24, batch_first=True)
    query = torch.from_numpy(normal(5, dim, seed=1))
    state = {**mha_state(randomise(mha)), "query": query}
    ours = from_torch(lambda rngs: hfie(rngs, dim=dim, heads=heads), state)
    e = normal(3, 10, 24)
    want, _ = mha(query.expand(3, -1, -1), *[torch.from_numpy(e)] * 2)
    close(call(ours, e), want, 1e-5)


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_initial_weights_are_pytorchs(std):
    net = hfie(nnx.Rngs(3), 64, 64, 32, 4, query_init_std=std)
    assert abs(float(net.query[...].std()) / std - 1) < 0.05
    for layer in (net.q_proj, net.k_proj, net.v_proj, net.out_proj):
        bound = (6 / sum(layer.kernel.shape)) ** 0.5  # xavier_uniform
        assert 0.97 * bound < float(jnp.abs(layer.kernel[...]).max()) <= bound
        assert not layer.bias[...].any()


def test_bfloat16_tokens_are_near_float32_ones():
    exact, half = filled(hfie), filled(lambda rngs: hfie(rngs, dtype=jnp.bfloat16))
    assert half.query.dtype == half.q_proj.kernel.dtype == jnp.float32  # trained
    e = normal(2, 9, 24)
    want, got = call(exact, e), call(half, e)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)


NAMES = ["man", "dog", "hat", "sea", "sky"]


def tokenize(texts) -> np.ndarray:
    """A word an id, its letters' sum, up to eight."""
    words = [text.split(" ")[:8] for text in texts]
    rows = [[sum(map(ord, word)) % 50 for word in row] + [0] * (8 - len(row)) for row in words]
    return np.asarray(rows, np.int32)


@pytest.fixture(scope="module")
def clip() -> CLIPTextModel:
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    size |= {"vocab_size": 50, "max_position_embeddings": 8, "num_hidden_layers": 1}
    return filled(lambda rngs: CLIPTextModel(CLIPConfig(**size), rngs=rngs))


class Pixels(RAMEncoder):
    """In the place of RAM's encoder: the picture's numbers, 24 to a token."""

    input_size = 12

    def __init__(self):
        pass

    def __call__(self, image):
        return image.reshape(image.shape[0], -1, 24)


@pytest.fixture(scope="module")
def image_tagger() -> ImageTagger:
    size = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "label_dim": 6}
    size |= {"num_tags": len(NAMES), "num_hidden_layers": 1}
    return filled(lambda rngs: ImageTagger(Pixels(), Tagger(TaggerConfig(**size), 24, rngs=rngs)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two that differ in more than noise."""
    return (0.3 * normal(2, 20, 12, 3) + np.asarray([-0.5, 0.5])[:, None, None, None]).astype("f4")


def test_tags_become_tokens(clip, image_tagger, images):
    logits = np.asarray(call(image_tagger.tagger, images.reshape(2, -1, 24)))
    between = 1 / (1 + np.exp(-logits.mean(0)))  # one picture has the tag, the other has not
    args = (image_tagger, NAMES, between.astype(np.float32), TextEncoder(tokenize, clip))
    prompter = TagPrompter(*args)
    tags = prompter.tags(images)
    assert tags == [
        [n for n, x, y in zip(NAMES, row, logits.mean(0), strict=True) if x > y] for row in logits
    ]
    assert sorted(tags[0] + tags[1]) == sorted(NAMES) and tags[0] != tags[1]
    want = call(clip, tokenize([f"{', '.join(found)}, ," for found in tags]))
    np.testing.assert_allclose(prompter(images), want, atol=1e-5)
    assert float(jnp.abs(want[0] - want[1]).max()) > 0.1
    want = call(clip, tokenize([f"{', '.join(found)}, sharp photo," for found in tags]))
    asked = TagPrompter(*args, "sharp photo")
    for pixels in to_uint8(images):
        square = squash(pixels, 12)[None]
        assert asked.caption(pixels) == bare_text(prompter.tags(square)[0])
    assert asked.caption(to_uint8(images[0])) != asked.caption(to_uint8(images[1]))
    np.testing.assert_allclose(asked(images), want, atol=1e-5)
    want = call(clip, tokenize([", ".join(found) for found in tags]))  # in training
    np.testing.assert_allclose(asked.bare(images), want, atol=1e-5)


@pytest.mark.parametrize(
    ("tags", "user", "text", "bare"),
    [
        (["man", "red hat"], "", "man, red hat, ,", "man, red hat"),
        (["man"], "4k", "man, 4k,", "man"),
        ([], "", ", ,", ""),
    ],
)
def test_commas(tags, user, text, bare):
    assert (tag_text(tags, user), bare_text(tags)) == (text, bare)


def test_null_prompt_is_a_space(clip, images):
    prompter = null_prompter(TextEncoder(tokenize, clip))
    want = call(clip, tokenize([" "]))
    got = call(prompter, images)
    np.testing.assert_allclose(got, np.concatenate([want, want]), atol=1e-5)
    assert {p: v.shape for p, v in nnx.to_flat_state(nnx.state(prompter, nnx.Param))} == {
        ("tokens",): (8, 16)
    }


def test_file_gives_the_tokens_that_were_saved(tmp_path, images):
    tokens = normal(4, 16)
    np.save(tmp_path / "prompt.npy", tokens)
    prompter = load_prompt(tmp_path / "prompt.npy", 16)
    assert isinstance(prompter, FixedPrompter)
    np.testing.assert_array_equal(prompter(jnp.asarray(images)), [tokens, tokens])


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (normal(4, 15), r"\(N, 16\), these are \(4, 15\)"),
        (normal(1, 4, 16), r"\(1, 4, 16\)"),
        (normal(0, 16), r"\(0, 16\)"),
        (np.full((4, 16), np.nan, np.float32), "finite"),
        (np.zeros((4, 16), np.int32), "floating"),
        (np.asarray([[None] * 16]), "allow_pickle"),
    ],
)
def test_file_of_anything_else_is_refused(tmp_path, tokens, said):
    np.save(tmp_path / "prompt.npy", tokens, allow_pickle=True)
    with pytest.raises(ValueError, match=said):
        load_prompt(tmp_path / "prompt.npy", 16)


def test_file_that_is_no_array_is_refused(tmp_path):
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "many.npz", a=normal(4, 16))
    for name, said in (("empty.npy", "an empty file"), ("many.npz", "an archive, not an array")):
        with pytest.raises(ValueError, match=f"{name}: {said}"):
            load_prompt(tmp_path / name, 16)
