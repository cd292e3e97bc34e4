"""HAODiff's prompts and guidance against PyTorch, and what its training may change."""

from dataclasses import replace
from functools import partial

import haodiff_torch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from convert import abstract, call, close, count, filled, nchw, normal, randomise
from flax import nnx

from osdhuman_jax.config import LoRAConfig
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.dual_prompts import DualPrompter
from osdhuman_jax.methods.haodiff import DualPromptRestorer
from osdhuman_jax.networks.configs import DualPromptConfig
from osdhuman_jax.networks.performer import FixedParam
from osdhuman_jax.networks.swinir import BranchedSwinIR
from osdhuman_jax.weights import add_lora, is_generator
from osdhuman_jax.weights.haodiff import IGNORE, TABLE
from osdhuman_jax.weights.model_folder import fill, shapes
from osdhuman_jax.weights.name_tables import convert
from osdhuman_jax.weights.torch_files import Tensor

DUAL = replace(tiny.DUAL, out_tokens=haodiff_torch.PERFORMER["out_tokens"])
WIDTH = haodiff_torch.PERFORMER["embed_dim"]
MODEL = tiny.DUAL_MODEL


def loaded(make, state: dict[str, torch.Tensor], prefix: str = "prompter.") -> nnx.Module:
    """A module of ours with PyTorch's weights, by the import's own table."""
    module = abstract(make)
    targets = {prefix + name: shape for name, shape in shapes(module).items()}
    tensors = {name: Tensor.of(value.numpy()) for name, value in state.items()}
    found = convert(tensors, TABLE, targets, "torch", ignore=IGNORE)
    values = {name.removeprefix(prefix): tensor.read() for name, tensor in found.items()}
    fill(module, values, set(values), "torch")
    return module


def picture(height: int, width: int) -> np.ndarray:
    return np.clip(0.5 * normal(2, height, width, 3), -1, 1)


@pytest.mark.parametrize("size", [(64, 64), (90, 150)], ids=["fits", "squashed"])
def test_prompts_of_both_kinds(size):
    """A picture of another shape is squashed without antialiasing."""
    theirs = haodiff_torch.generator(img_size=64)
    ours = loaded(lambda rngs: DualPrompter(DUAL, width=WIDTH, rngs=rngs), theirs.state_dict())
    tokens = call(ours, picture(*size))
    assert tokens.shape == (2, 10, WIDTH)
    for found, want in zip(jnp.split(tokens, 2, axis=1), theirs(nchw(picture(*size))), strict=True):
        close(found, want, 1e-4)  # the design's bound on tokens; 1e-5 where features alone compare


def test_features_and_reconstructions():
    image = picture(64, 64)
    theirs = randomise(haodiff_torch.Extractor(haodiff_torch.SWINIR | {"img_size": 64}, True), 2)
    state = {f"feature_extractor.{name}": value for name, value in theirs.state_dict().items()}
    ours = loaded(
        lambda rngs: BranchedSwinIR(replace(DUAL, upsamplers=True), rngs=rngs),
        state,
        "prompter.feature_extractor.",
    )
    for found, want in zip(call(ours, image), theirs(nchw(image)), strict=True):
        close(found, want.permute(0, 3, 1, 2), 1e-5)
    for found, want in zip(
        call(ours, image, method="reconstruct"), theirs.reconstruct(nchw(image)), strict=True
    ):
        close(found, want, 2e-5)


@pytest.mark.parametrize(
    ("width", "depths", "heads", "total", "extractor", "main", "aux"),
    [
        (150, (6, 6, 3, 3), (6, 6, 3, 3), 48_530_672, 10_169_400, 19_169_386, 19_191_886),
        (180, (6, 6, 3, 3), (6, 6, 3, 3), 58_707_722, 14_028_210, 22_323_556, 22_355_956),
        (180, (6,) * 6, (6,) * 6, 70_913_252, 26_233_740, 22_323_556, 22_355_956),
    ],
)
def test_parameters_of_the_published_sizes(width, depths, heads, total, extractor, main, aux):
    config = replace(DualPromptConfig.haodiff(), embed_dim=width, depths=depths, num_heads=heads)
    made = abstract(lambda rngs: DualPrompter(config, width=1024, rngs=rngs))
    projections = count(made, FixedParam)
    assert projections == 8 * 621 * 128
    assert count(made) - projections == total
    assert count(made.feature_extractor) == extractor
    assert count(made.main_performer) - projections // 2 == main
    assert count(made.aux_performer) - projections // 2 == aux


@pytest.fixture(scope="module")
def restorer():
    return filled(lambda rngs: build_restorer(MODEL, rngs=rngs), 1)


@pytest.fixture(scope="module")
def lq():
    return jnp.asarray(np.clip(0.5 * normal(1, 16, 16, 3, seed=3), -1, 1))


@nnx.jit
def plain(restorer: DualPromptRestorer, lq: jax.Array, prompt: jax.Array) -> jax.Array:
    """By OSDHuman's step of one prompt."""
    return restorer.decode(super(DualPromptRestorer, restorer).denoise(restorer.encode(lq), prompt))


def test_guidance_goes_from_the_negative_prompt_to_the_positive(restorer, lq):
    tokens = call(restorer, lq, method="tokens")
    negative, positive = jnp.split(tokens, 2, axis=1)
    for scale, prompt in ((0.0, negative), (1.0, positive)):
        found = call(restorer, lq, None, jnp.float32(scale))
        np.testing.assert_allclose(found, plain(restorer, lq, prompt), atol=1e-5)
    # Latents differ by as many times the step from one prompt to the other.
    z = call(restorer, lq, method="encode")
    none, one, own = (
        np.asarray(call(restorer, z, tokens, jnp.float32(scale), method="denoise"))
        for scale in (0.0, 1.0, 3.5)
    )
    np.testing.assert_allclose(own - none, 3.5 * (one - none), atol=1e-4)
    np.testing.assert_allclose(call(restorer, z, tokens, method="denoise"), own, atol=1e-5)


def test_training_changes_lora_and_embedders_but_no_projection(restorer):
    graph, state = nnx.split(restorer)
    model = nnx.merge(graph, state)
    config = LoRAConfig(rank=2, vae_encoder=False)
    add_lora(model, config, np.random.default_rng(0))
    names = {
        ".".join(map(str, path))
        for path, _ in nnx.to_flat_state(nnx.state(model, partial(is_generator, config)))
    }
    assert {name.split(".")[0] for name in names} == {"unet", "prompter"}
    assert all(".lora_" in n for n in names if n.startswith("unet."))
    prompts = {n for n in names if n.startswith("prompter.")}
    assert {n.split(".")[1] for n in prompts} == {"main_performer", "aux_performer"}
    assert not any(n.endswith("projection_matrix") for n in names)
    embedders = [*shapes(model.prompter.main_performer), *shapes(model.prompter.aux_performer)]
    fixed = [name for name in embedders if name.endswith("projection_matrix")]
    assert len(prompts) == len(embedders) - len(fixed)


def test_sizes_that_fit_no_network_are_refused():
    with pytest.raises(ValueError, match="patches of 5"):
        abstract(lambda rngs: DualPrompter(replace(DUAL, patch_size=5), width=8, rngs=rngs))
    with pytest.raises(ValueError, match="as many groups"):
        abstract(lambda rngs: BranchedSwinIR(replace(DUAL, depths=(2, 1, 1)), rngs=rngs))
