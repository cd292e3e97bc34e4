"""DISTS against PyTorch on random weights, and its properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convert import call, filled, from_torch, nchw, normal, randomise
from torch import nn

from benchmarks.references import LPIPS as Reference
from osdhuman_jax.networks.configs import DISTSConfig, LPIPSConfig
from osdhuman_jax.networks.dists import DISTS
from osdhuman_jax.networks.lpips import LPIPS

SMALL = LPIPSConfig.vgg16(16)  # the depth of VGG16, a sixteenth as wide
CHANNELS = DISTSConfig.of(SMALL)


def test_channels_of_vgg16():
    assert DISTSConfig.of(LPIPSConfig.vgg16()).channels == (3, 64, 128, 256, 512, 512)
    assert sum(DISTSConfig.of(LPIPSConfig.vgg16()).channels) == 1475


@pytest.fixture(scope="module")
def networks():
    """PyTorch's VGG, ours with its weights, and weights of channels."""
    theirs = randomise(Reference(16))
    vgg = from_torch(lambda rngs: LPIPS(SMALL, rngs=rngs), theirs)
    dists = filled(lambda rngs: DISTS(CHANNELS, rngs=rngs), 4)
    for weights in (dists.alpha, dists.beta):
        weights.set_value(abs(weights[...]) + 0.1)
    return theirs, vgg, dists


@pytest.fixture(scope="module")
def images():
    return normal(2, 37, 50, 3).clip(-1, 1), normal(2, 37, 50, 3, seed=1).clip(-1, 1)


def maps_of_torch(vgg: Reference, image: torch.Tensor) -> list[torch.Tensor]:
    """The published forward pass: L2 poolings, the picture itself as the first map."""
    x = (image + 1) / 2
    found = [x]
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    h = (x - mean) / std
    for layer in vgg.features:
        if isinstance(layer, nn.MaxPool2d):
            found.append(h)
            window = torch.tensor(np.hanning(5)[1:-1], dtype=torch.float32)
            kernel = torch.outer(window, window)
            kernel = (kernel / kernel.sum()).repeat(h.shape[1], 1, 1, 1)
            h = (F.conv2d(h**2, kernel, stride=2, padding=1, groups=h.shape[1]) + 1e-12).sqrt()
        else:
            h = layer(h)
    return found  # the last pooling comes after all of them


def distance_of_torch(vgg, dists, x, y) -> np.ndarray:
    alpha, beta = (torch.tensor(np.asarray(w[...])) for w in (dists.alpha, dists.beta))
    total, found, start = alpha.sum() + beta.sum(), 0.0, 0
    for f, g in zip(maps_of_torch(vgg, x), maps_of_torch(vgg, y), strict=True):
        stop = start + f.shape[1]
        a, b = alpha[start:stop] / total, beta[start:stop] / total
        fm, gm = f.mean((2, 3), keepdim=True), g.mean((2, 3), keepdim=True)
        fv, gv = ((f - fm) ** 2).mean((2, 3)), ((g - gm) ** 2).mean((2, 3))
        both = (f * g).mean((2, 3)) - (fm * gm)[:, :, 0, 0]
        fm, gm = fm[:, :, 0, 0], gm[:, :, 0, 0]
        found = found + (a * (2 * fm * gm + 1e-6) / (fm**2 + gm**2 + 1e-6)).sum(1)
        found = found + (b * (2 * both + 1e-6) / (fv + gv + 1e-6)).sum(1)
        start = stop
    return (1 - found).numpy()


def test_distances(networks, images):
    theirs, vgg, dists = networks
    want = distance_of_torch(theirs, dists, *map(nchw, images))
    found = call(dists, vgg, *images)
    assert found.shape == (2,) and (want > 0.05).all()
    np.testing.assert_allclose(found, want, atol=1e-5)
