"""The Swin encoder against transformers' on random weights, its tables against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import (
    abstract,
    call,
    close,
    filled,
    from_torch,
    nchw,
    norm_epsilons,
    normal,
    randomise,
)
from flax import nnx
from transformers import SwinConfig, SwinModel

from benchmarks.references import swin_state
from osdhuman_jax.networks.configs import SwinConfig as SwinSizes
from osdhuman_jax.networks.swin import RAMEncoder, SwinTransformer

PLANS = {
    # maps of 16, 8, 4: the last equals the window
    "three_stages": dict(
        image_size=64, embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=4
    ),
    # maps of 12 and 6, odd half window, two shifted blocks in one stage, another patch
    "odd_shift": dict(
        image_size=24, patch_size=2, embed_dim=24, depths=(4, 1), num_heads=(3, 6), window_size=6
    ),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plan(name: str) -> dict:
    return {"patch_size": 4, "mlp_ratio": 4.0, **PLANS[name]}


def sizes(image_proj_dim: int = 3, **kw) -> SwinSizes:
    return SwinSizes(**kw, image_proj_dim=image_proj_dim)


def reference(name: str) -> SwinModel:
    kw = plan(name)
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in kw.items()}
    return randomise(SwinModel(SwinConfig(**lists)))


@pytest.fixture(scope="module")
def pair():
    """(plan, transformers' network, ours with its weights)."""
    kw, theirs = plan("three_stages"), reference("three_stages")
    mine = from_torch(lambda rngs: SwinTransformer(sizes(**kw), rngs=rngs), swin_state(theirs))
    return kw, theirs, mine


def test_features(pair):
    kw, theirs, mine = pair
    assert set(norm_epsilons(mine).values()) == {1e-5}
    x = normal(2, kw["image_size"], kw["image_size"], 3)
    want = theirs(nchw(x)).last_hidden_state
    tokens = (kw["image_size"] // kw["patch_size"] // 2 ** (len(kw["depths"]) - 1)) ** 2
    assert want.shape == (2, tokens, kw["embed_dim"] * 2 ** (len(kw["depths"]) - 1))
    close(call(mine, x), want, 1e-4)


@pytest.mark.parametrize("index", [0, 1])
def test_blocks_plain_and_shifted(pair, index):
    kw, theirs, mine = pair
    side = kw["image_size"] // kw["patch_size"]
    block = mine.layers[0].blocks[index]
    assert block.shift == (kw["window_size"] // 2 if index else 0)
    x = normal(2, side, side, kw["embed_dim"])
    flat = torch.from_numpy(x.reshape(2, side * side, -1))
    want = theirs.encoder.layers[0].blocks[index](flat, (side, side))
    want = want[0] if isinstance(want, tuple) else want
    close(call(block, x).reshape(flat.shape), want, 1e-5)


def test_patch_merging(pair):
    kw, theirs, mine = pair
    side = kw["image_size"] // kw["patch_size"]
    x = normal(2, side, side, kw["embed_dim"])
    want = theirs.encoder.layers[0].downsample(
        torch.from_numpy(x.reshape(2, side * side, -1)), (side, side)
    )
    close(call(mine.layers[0].downsample, x).reshape(want.shape), want, 1e-5)


def resized(image: np.ndarray, side: int) -> torch.Tensor:
    """What RAM sees: [0, 1], antialiased bilinear, ImageNet statistics; NCHW."""
    x = torch.nn.functional.interpolate(
        (nchw(image) + 1) / 2, (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Pixels(nnx.Module):
    """In the place of the Swin transformer: the picture's own pixels as tokens."""

    image_size = 32

    def __call__(self, x):
        return x.reshape(x.shape[0], -1, 3)


@pytest.mark.parametrize("size", [(32, 32), (75, 48), (20, 24), (64, 17)])
def test_preprocessing(size):
    encoder = abstract(lambda rngs: RAMEncoder(sizes(**plan("odd_shift")), rngs=rngs))
    encoder.visual_encoder, encoder.image_proj = Pixels(), lambda x: x
    image = normal(2, *size, 3).clip(-1, 1)
    want = resized(image, 32).permute(0, 2, 3, 1).reshape(2, -1, 3)
    got = nnx.jit(lambda image: encoder(image))(image)
    close(got[:, 1:], want, 1e-5)
    close(got[:, 0], want.mean(1), 1e-5)  # the pooled token comes first


def test_ram_encoder():
    theirs = reference("odd_shift")
    state = {f"visual_encoder.{key}": value for key, value in swin_state(theirs).items()}
    project = randomise(torch.nn.Linear(48, 20), seed=1)
    state |= {f"image_proj.{key}": value for key, value in project.state_dict().items()}
    kw = plan("odd_shift")
    mine = from_torch(lambda rngs: RAMEncoder(sizes(20, **kw), rngs=rngs), state)
    image = normal(2, 40, 30, 3).clip(-1, 1)
    out = theirs(resized(image, kw["image_size"]))
    want = project(torch.cat([out.pooler_output[:, None], out.last_hidden_state], 1))
    assert want.shape == (2, 1 + 36, 20)
    close(call(mine, image), want, 1e-4)


def test_bfloat16_tokens_are_near_float32_ones():
    kw = {**plan("odd_shift"), "depths": (2,), "num_heads": (3,)}
    low = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    exact = filled(lambda rngs: RAMEncoder(sizes(20, **kw), rngs=rngs))
    half = filled(lambda rngs: RAMEncoder(sizes(20, **kw), **low, rngs=rngs))
    image = normal(1, 24, 24, 3).clip(-1, 1)
    want, got = call(exact, image), call(half, image)
    assert got.dtype == jnp.bfloat16
    error = np.asarray(got.astype(jnp.float32) - want)
    assert error.std() < 0.02 * np.asarray(want).std()


def test_rams_encoder_gives_145_tokens(sd21):
    encoder = sd21.prompter.image_encoder
    tokens = jax.eval_shape(lambda e: e(jnp.zeros((1, 512, 512, 3))), encoder)
    assert tokens.shape == (1, 145, 512)
    layers = encoder.visual_encoder.layers
    shifts = [[block.shift for block in layer.blocks][:2] for layer in layers]
    assert shifts == [[0, 6], [0, 6], [0, 6], [0, 0]]
