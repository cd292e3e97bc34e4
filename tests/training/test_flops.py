"""Operations counted by hand."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from osdhuman_jax.training import flops


def operations(function, *shapes: tuple[int, ...]) -> int:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.operations(jax.make_jaxpr(function)(*arguments))


def convolution(x, kernel, stride: int = 1):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout
    )


def test_matrix_product():
    assert operations(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert operations(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), (4, 3, 5), (4, 5, 7)) == 840


def test_convolution():
    assert operations(convolution, (2, 8, 8, 3), (3, 3, 3, 16)) == 2 * (2 * 8 * 8 * 16) * 27


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_convolution_cost_as_much_each(stride):
    """By the input and by the kernel; zeros that a stride puts in are not multiplied."""

    def loss(x, kernel):
        return jnp.sum(convolution(x, kernel, stride) ** 2)

    shapes = ((2, 8, 8, 3), (3, 3, 3, 16))
    forward = operations(loss, *shapes)
    for argument in (0, 1):
        both = operations(jax.grad(loss, argument), *shapes)
        assert both == pytest.approx(2 * forward, rel=0.35)


def test_loops_and_branches():
    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, x)

    assert operations(loop, (4, 4)) == 5 * 2 * 64
    assert operations(branch, (4, 4)) == 2 * 2 * 64
    assert operations(jax.jit(jax.checkpoint(jnp.matmul)), (4, 4), (4, 4)) == 2 * 64


def test_a_steps_operations_grow_with_the_batch_alone():
    """Neither with its parts nor with what is computed again."""
    found = []
    for batch, parts, remat in ((2, 2, "blocks"), (4, 1, "none")):
        config = tiny.config("diffusion")
        config.data.crop, config.data.batch_size = 16, batch
        config.optim.accumulate, config.run.remat = parts, remat
        found.append(flops.step_flops(*tiny.start(config)))
    assert found[1] == pytest.approx(2 * found[0], rel=0.02)
