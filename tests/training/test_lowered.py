"""Which types a bfloat16 run computes in, read off the programs that compilers are given.

A program is lowered for a TPU and for an NVIDIA GPU, of which neither is here: StableHLO, which
says the type of every operation. cuDNN's attention is not lowered where there is no cuDNN: the
GPU's program has XLA's instead.
"""

import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx

from benchmarks import absent
from benchmarks.train_step import shapes_of
from osdhuman_jax.networks.target import traced_for
from osdhuman_jax.training.flops import batch_shapes
from osdhuman_jax.weights.model_folder import abstract_restorer

TARGETS = [("tpu", "tpu"), ("gpu", "cuda")]  # traced for, lowered for
BATCH, SIDE = 2, 16
PRODUCTS = ("convolution", "dot_general")
Types = list[tuple[list[int], str]]  # shape and element type, of operands and then of the result


def operations(text: str) -> Iterator[tuple[str, Types, str]]:
    """Name, types and line of each operation of a StableHLO program."""
    for line in text.splitlines():
        found = re.search(r'= "?stablehlo\.(\w+)', line)
        if found and " : " in line:
            types = re.findall(r"tensor<((?:\d+x)*)(\w+)>", line.rpartition(" : ")[2])
            shapes = [([int(n) for n in axes.split("x") if n], kind) for axes, kind in types]
            yield found[1], shapes, line


def lowered(function, target: tuple[str, str], *arguments) -> list[tuple[str, Types, str]]:
    # As a run is: what JAX makes of some operations mixes types, which the tests' default refuses.
    with traced_for(target[0]), jax.numpy_dtype_promotion("standard"):
        traced = jax.jit(lambda *x: function(*x)).trace(*arguments)
        return list(operations(traced.lower(lowering_platforms=target[1:]).as_text()))


def kinds(found: list[tuple[str, Types, str]], *names: str) -> list[str]:
    """Types of what operations of these names compute."""
    return [types[-1][1] for name, types, _ in found if name in names]


def sums(found: list[tuple[str, Types, str]], kind: str) -> list[int]:
    """Of how many terms each sum is that is taken in a type."""
    reductions = [
        (types[0], types[-1][0])
        for name, types, line in found
        if name == "reduce" and "applies stablehlo.add" in line
    ]
    return [
        math.prod(shape) // math.prod(result) for (shape, own), result in reductions if own == kind
    ]


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target[1])
def target(request):
    return request.param


@pytest.fixture(scope="module")
def step(target):
    config = tiny.config("restorer")
    config.loss.lpips, config.loss.vsd = 2.0, 1.0
    config.run.precision = "bf16"
    config.data.batch_size, config.data.crop = BATCH, SIDE
    trainer, state, frozen = shapes_of(config, narrow=16)
    return lowered(trainer.step, target, state, frozen, batch_shapes(config.data))


@pytest.fixture(scope="module")
def restorer():
    return abstract_restorer(tiny.MODEL, None, "bf16")[0]


@pytest.fixture(scope="module")
def restoration(target, restorer):
    graphdef, weights = nnx.split(restorer)
    picture = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.float32)
    return lowered(lambda w, x: nnx.merge(graphdef, w)(x), target, weights, picture)


def test_norms_and_their_means_are_float32(restoration):
    assert set(kinds(restoration, "rsqrt", "sqrt")) == {"f32"}
    assert len(sums(restoration, "f32")) > 50
    assert not sums(restoration, "bf16")


def test_softmax_is_float32(restoration):
    """Weights of attention have five axes, which no other exponential has."""
    exponentials = [types[-1] for name, types, _ in restoration if name == "exponential"]
    weights = [kind for shape, kind in exponentials if len(shape) == 5]
    assert len(weights) > 5
    assert set(weights) == {"f32"}
    # Logits are products of bfloat16 that were not rounded to it.
    products = [types for name, types, _ in restoration if name == "dot_general"]
    logits = [types for types in products if types[-1][1] == "f32" and types[0][1] == "bf16"]
    assert len(logits) == len(weights)


@pytest.mark.slow
def test_sums_of_a_step_are_float32(step):
    """Means of norms and losses, and every gradient that is a sum: of a bias, over a batch."""
    assert set(kinds(step, "rsqrt", "sqrt", "log", "power")) == {"f32"}
    assert len(sums(step, "f32")) > 100
    assert not sums(step, "bf16")


def test_only_the_ends_of_the_latent_are_float32_convolutions(restoration):
    """Encoder's last two, the U-Net's first and last: none else left bfloat16 by accident."""
    found = [types for name, types, _ in restoration if name == "convolution"]
    exact = [types[1][0] for types in found if types[0][1] != "bf16"]
    assert sorted(exact) == [[1, 1, 8, 8], [3, 3, 4, 8], [3, 3, 8, 4], [3, 3, 8, 8]]
    assert len(found) > 2 * len(exact)


def test_products_of_weights_are_bfloat16(restoration):
    """But for RAM's squashing of the picture, which is a product of matrices to XLA."""
    found = [types for name, types, _ in restoration if name == "dot_general"]
    others = [types for types in found if {kind for _, kind in types[:-1]} != {"bf16"}]
    assert all(3 in types[-1][0] or types[-1][0][-1] == SIDE for types in others)
    assert len(found) > 10 * len(others)


def test_the_one_step_is_float32(target, restorer):
    """Eq. 2: from the encoder to the decoder no array of the latent's shape is bfloat16."""
    graphdef, weights = nnx.split(restorer)
    latent = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 4), jnp.float32)
    tokens = jax.ShapeDtypeStruct((BATCH, 3, 8), jnp.float32)

    def denoise(weights: nnx.State, latent: jax.Array, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, weights).denoise(latent, tokens)

    found = lowered(denoise, target, weights, latent, tokens)
    own = [kind for _, types, _ in found for shape, kind in types if shape == [*latent.shape]]
    assert set(own) == {"f32"}
    # z - sigma eps, divided by the signal.
    assert "divide" in {name for name, types, _ in found if types[-1][0] == [*latent.shape]}


@pytest.mark.slow
def test_a_tpus_compiler_keeps_these_types(restorer):
    """What XLA made of it for a TPU, read off the compiled program; needs libtpu and no TPU."""
    pytest.importorskip("libtpu")
    graphdef, weights = nnx.split(restorer)
    picture = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.float32)
    with absent.devices("v5e:2x2") as ((device, *_), options):
        placed = jax.sharding.SingleDeviceSharding(device)
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), (weights, picture)
        )
        program = jax.jit(lambda w, x: nnx.merge(graphdef, w)(x))
        text = program.lower(*arguments).compile(options).as_text()
    for name in ("rsqrt", "exponential", "reduce"):
        results = re.findall(rf"= (\w+)\[[^=]* {name}\(", text)
        assert results
        assert set(results) == {"f32"}
    # The convolutions of the networks came out as bfloat16's.
    results = re.findall(r"= (\w+)\[[^=]* convolution\(", text)
    assert results.count("bf16") > results.count("f32")
