"""LPIPS against PyTorch on random weights, its gradient, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import abstract, call, count, filled, from_torch, nchw, normal, params, randomise
from torch import nn

from osdhuman_jax.lpips import LPIPS, TAPS, VGG16, unit

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALL = {  # the depth of VGG16, a sixteenth as wide
    "plan": tuple(width // 16 for width in VGG16),
    "taps": TAPS,
}


class Reference(nn.Module):
    """LPIPS as its paper's code writes it, in PyTorch; VGG16 as torchvision's table writes it."""

    TABLE = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M".split()

    def __init__(self, narrow: int = 1):
        super().__init__()
        layers, width = [], 3
        for step in self.TABLE:
            if step == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                out = int(step) // narrow
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
                width = out
        self.features = nn.Sequential(*layers)
        widths = [n // narrow for n in (64, 128, 256, 512, 512)]
        self.lin = nn.ModuleList(nn.Conv2d(n, 1, 1, bias=False) for n in widths)

    def slices(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = (x - torch.tensor(SHIFT)[None, :, None, None]) / torch.tensor(SCALE)[
            None, :, None, None
        ]
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in (3, 8, 15, 22, 29):
                found.append(x)
        return found

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(a))
        for lin, f, g in zip(self.lin, self.slices(a), self.slices(b), strict=True):
            f, g = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (f, g))
            total = total + lin((f - g) ** 2).mean((1, 2, 3))
        return total


@pytest.fixture(scope="module")
def pair():
    """(PyTorch's network, ours with its weights)."""
    theirs = Reference(16)
    randomise(theirs)
    for lin in theirs.lin.parameters():
        lin.data = lin.data.abs()
    return theirs, from_torch(lambda rngs: LPIPS(**SMALL, rngs=rngs), theirs)


@pytest.fixture(scope="module")
def images():
    """Two batches of pictures in [-1, 1] whose sides are no multiples of 16."""
    return normal(2, 37, 50, 3).clip(-1, 1), normal(2, 37, 50, 3, seed=1).clip(-1, 1)


def test_distances(pair, images):
    theirs, mine = pair
    want = theirs(*map(nchw, images)).numpy()
    assert want.shape == (2,) and (want > 0.05).all() and abs(want[0] - want[1]) > 1e-4
    got = call(mine, *images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_activations(pair, images):
    theirs, mine = pair
    want = theirs.slices(nchw(images[0]))
    got = call(mine, images[0], method="activations")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b.permute(0, 2, 3, 1), rtol=0, atol=1e-4)


def test_gradient(pair, images):
    theirs, mine = pair
    x = nchw(images[0]).requires_grad_()
    theirs(x, nchw(images[1])).sum().backward()
    got = jax.jit(jax.grad(lambda a: mine(a, jnp.asarray(images[1])).sum()))(images[0])
    want = x.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())


def test_equal_images_have_no_distance_and_other_ones_one_that_grows(pair, images):
    _, mine = pair
    a, b = images
    distances = [np.asarray(call(mine, a, a + w * (b - a))) for w in (0.0, 0.1, 1.0)]
    assert not distances[0].any()
    assert (distances[0] < distances[1]).all() and (distances[1] < distances[2]).all()
    np.testing.assert_allclose(call(mine, b, a), distances[2], rtol=1e-5)


def test_gradient_is_finite_where_every_channel_is_dead():
    """The derivative of the norm's root is infinite there: ReLU must select, not multiply."""
    net = filled(lambda rngs: LPIPS(plan=(8, 8, 0, 8), taps=(3, 6), rngs=rngs))
    net.features[2].bias[...] = jnp.full(8, -1e3)
    a, b = normal(2, 1, 8, 8, 3)
    assert not call(net, a, method="activations")[0].any()
    gradient = jax.jit(jax.grad(lambda a: net(a, jnp.asarray(b)).sum()))(a)
    assert np.isfinite(gradient).all()


def test_unit_vectors():
    x = np.asarray([[3.0, 4.0], [0.0, 0.0], [3e-11, 4e-11]], np.float32)[None, None]
    want = [[0.6, 0.8], [0.0, 0.0], [0.2, 4 / 15]]  # ||x|| = 5e-11 is less than epsilon
    np.testing.assert_allclose(unit(jnp.asarray(x))[0, 0], want, rtol=1e-5)


def test_default_is_vgg16():
    """Names, widths and 14,714,688 parameters of torchvision's VGG16 `features`; 1,472 weights."""
    net = abstract(lambda rngs: LPIPS(rngs=rngs))
    theirs = Reference()
    shapes = {p: v.shape for p, v in params(net).items()}
    convs = {name: m for name, m in theirs.features.named_modules() if isinstance(m, nn.Conv2d)}
    assert {p[1] for p in shapes if p[0] == "features"} == {int(name) for name in convs}
    assert count(net.features) == 14_714_688
    assert [shapes["lin", i, "kernel"][2] for i in range(5)] == [64, 128, 256, 512, 512]
    assert count(net.lin) == 1_472


def test_bfloat16_distance_is_near_the_float32_one(pair, images):
    theirs, mine = pair
    half = from_torch(lambda rngs: LPIPS(**SMALL, dtype=jnp.bfloat16, rngs=rngs), theirs)
    want, got = call(mine, *images), call(half, *images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0.03)
