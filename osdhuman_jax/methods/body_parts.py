"""Parts of the body: L_part of DiffBody's Eq. 6, and the labels that a part parser is trained on.

    L_part(x, I_reg) = sum_i CE(H_i(x), H_i(I_reg)),    i in head, torso, hands, legs, feet

The paper prints a cross-entropy of a difference, which is none; we read it as the cross-entropy of
what H sees in x with what it sees in I_reg as the target. H is BPBreID in the paper. Here it is
either of

    heatmap_loss    BlazePose's maps of the joints, grouped by part; nothing is to be trained
    parser_loss     PartParser's probabilities of the parts (networks/part_parser.py)

Each makes, of the restored picture I_reg, a loss of pictures, one number for each. It is least
where both pictures show the same, with a gradient of zero there.

The parser learns from labels that are drawn around joints: a capsule for each limb, cut to where
the picture shows a person at all (`part_labels`), as BPBreID's were made of poses and masks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float, Int

from osdhuman_jax.networks.part_parser import STRIDE, PartLogits
from osdhuman_jax.networks.skeleton import VISIBLE
from osdhuman_jax.networks.types import Image, Scalar

PartLoss = Callable[[Image], Float[Array, " b"]]
Rois = Float[Array, "b p 2 3"]  # from a square's pixels (x, y, 1) to the picture's; centres
People = Float[Array, "b p 18 3"]  # OpenPose's joints: x, y in pixels, and a score in [0, 1]
Squares = Float[Array, "n s s 3"]
Heatmaps = Float[Array, "n mh mw j"]  # a logit for each place and joint

PARTS = ("head", "torso", "hands", "legs", "feet")
# BlazePose's joints of each; the arm from the elbow on is the hand's.
GROUPS = (
    tuple(range(11)),
    (11, 12, 23, 24),
    tuple(range(13, 23)),
    tuple(range(25, 29)),
    tuple(range(29, 33)),
)
SAMPLES = 4  # bilinear samples a side of each pixel that is cut out, as people are large


# By BlazePose's heatmaps -------------------------------------------------------------------------


def heatmap_loss(
    heatmaps: Callable[[Squares], Heatmaps],
    reference: Image,
    rois: Rois,
    present: Float[Array, "b p"],
    side: int = 256,
) -> PartLoss:
    """L_part by the joints of people in the squares `rois` of the picture `reference` (I_reg).

    `heatmaps` makes of squares in [0, 1] logits for each joint. `present` is 1 where there is a
    person and 0 where the square is to be left out. The squares are those found in the reference,
    and do not move with what is compared with it.
    """
    people = present.shape[1]

    def seen(image: Image) -> Heatmaps:
        squares = cut_squares((image.astype(jnp.float32) + 1.0) / 2.0, rois, side)
        return heatmaps(squares.reshape(-1, side, side, 3))  # [B P, mh, mw, J]

    target = jax.lax.stop_gradient(jax.nn.sigmoid(seen(reference)))

    def loss(image: Image) -> Float[Array, " b"]:
        error = optax.losses.sigmoid_binary_cross_entropy(seen(image), target)
        joints = error.mean((1, 2))  # [B P, J]
        parts = sum((joints[:, np.array(g)].mean(-1) for g in GROUPS), jnp.zeros(len(joints)))
        return jnp.sum(parts.reshape(-1, people) * present, axis=1)

    return loss


def cut_squares(image: Image, rois: Rois, side: int) -> Float[Array, "b p s s 3"]:
    """Squares of `side` pixels out of images, turned and scaled by `rois`; 0 beyond an image.

    Each pixel is the mean of bilinear samples, and so a differentiable function of the image.
    """
    fine = side * SAMPLES
    axis = (jnp.arange(fine, dtype=jnp.float32) + 0.5) / SAMPLES - 0.5
    y, x = jnp.meshgrid(axis, axis, indexing="ij")
    places = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)  # [F, F, 3]

    def one(image: Array, roi: Array) -> Array:
        x, y = jnp.moveaxis(places @ roi.T, -1, 0)  # [F, F] each
        channels = [map_coordinates(image[..., c], [y, x], order=1) for c in range(3)]
        values = jnp.stack(channels, axis=-1)  # [F, F, 3]
        return values.reshape(side, SAMPLES, side, SAMPLES, 3).mean((1, 3))

    of_people = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(of_people)(image.astype(jnp.float32), rois.astype(jnp.float32))


# By a part parser --------------------------------------------------------------------------------


def parser_loss(parser: Callable[[Image], PartLogits], reference: Image) -> PartLoss:
    """L_part by the parts that `parser` finds in the picture `reference` (I_reg).

    The mean over places of - sum_k p_k log q_k, where p is of the reference and q of the image.
    """
    target = jax.lax.stop_gradient(jax.nn.softmax(parser(reference)))

    def loss(image: Image) -> Float[Array, " b"]:
        return optax.losses.softmax_cross_entropy(parser(image), target).mean((1, 2))

    return loss


def parsing_loss(
    logits: PartLogits, labels: Int[Array, "b ph pw"], smoothing: float = 0.1
) -> Scalar:
    """What a parser is trained by: cross-entropy with labels, smoothed as in BPBreID."""
    target = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return jnp.mean(optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), target))


class _Limb(NamedTuple):
    """A capsule on the line from joint a to joint b: where it begins and ends, from 0 to 1."""

    part: str
    a: int
    b: int
    begin: float
    end: float
    radius: float  # in lengths of the person, see `_sizes`


# Joints are OpenPose's: 0 nose, 1 neck, 2-4 right arm, 5-7 left arm, 8-10 right leg, 11-13 left
# leg, 14-17 eyes and ears. Hands and feet lie beyond the last joint of their limb.
_LIMBS = (
    *(_Limb("head", a, b, 0, 1, 0.05) for a, b in ((1, 0), (0, 14), (0, 15), (14, 16), (15, 17))),
    *(_Limb("torso", a, b, 0, 1, 0.06) for a, b in ((2, 5), (8, 11), (2, 8), (5, 11))),
    *(_Limb("torso", 1, b, 0, 1, 0.06) for b in (8, 11)),
    *(_Limb("hands", a, b, 0, 1, 0.035) for a, b in ((2, 3), (5, 6))),
    *(_Limb("hands", a, b, 0, 1.4, 0.035) for a, b in ((3, 4), (6, 7))),
    *(_Limb("legs", a, b, 0, 1, 0.05) for a, b in ((8, 9), (11, 12), (9, 10), (12, 13))),
    *(_Limb("feet", a, b, 1.1, 1.25, 0.05) for a, b in ((9, 10), (12, 13))),
)
INSIDE = 0.5  # attention above which a place shows a person


def part_labels(people: People, attention: Float[Array, "b ph pw 1"]) -> Int[Array, "b ph pw"]:
    """0 for the background and 1 to 5 for `PARTS`, at a quarter of the picture's side.

    Joints are in pixels of the picture, `attention` in [0, 1] is at the labels' size. A place has
    the part of the limb that it is nearest to, in the limb's own radii.
    """
    points, seen = people[..., :2].astype(jnp.float32), people[..., 2] > VISIBLE
    a, b = (np.array([getattr(limb, name) for limb in _LIMBS]) for name in "ab")
    begin, end, radius = (
        np.array([getattr(limb, name) for limb in _LIMBS], np.float32)
        for name in ("begin", "end", "radius")
    )
    # Capsules (B, P, N): both ends, and the radius in pixels.
    start, along = points[:, :, a], points[:, :, b] - points[:, :, a]
    first = start + begin[None, None, :, None] * along
    last = start + end[None, None, :, None] * along
    radii = jnp.maximum(radius[None, None] * _sizes(points, seen)[..., None], STRIDE / 2)
    there = seen[:, :, a] & seen[:, :, b]

    # The nearest one to each place; the background is as near everywhere as the capsules' rims.
    near = _distances(first, last, attention.shape[1:3]) / radii[..., None, None]
    near = jnp.where(there[..., None, None], near, jnp.inf)
    near = near.reshape(near.shape[0], -1, *near.shape[3:])  # [B, P N, h, w]
    near = jnp.pad(near, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=1.0)
    numbers = [1 + PARTS.index(limb.part) for limb in _LIMBS]
    labels = jnp.asarray([0, *numbers * people.shape[1]], jnp.int32)[jnp.argmin(near, axis=1)]
    return jnp.where(attention[..., 0] > INSIDE, labels, 0)


def _sizes(points: Float[Array, "b p 18 2"], seen: Array) -> Float[Array, "b p"]:
    """Length of each person: the diagonal of the box around the joints that are seen."""
    low = jnp.where(seen[..., None], points, jnp.inf).min(2)
    high = jnp.where(seen[..., None], points, -jnp.inf).max(2)
    sides = jnp.where(seen.any(2)[..., None], high - low, 0.0)
    return jnp.hypot(sides[..., 0], sides[..., 1])


def _distances(
    first: Float[Array, "b p n 2"], last: Float[Array, "b p n 2"], size: tuple[int, ...]
) -> Float[Array, "b p n ph pw"]:
    """Pixels from each place to each line between two points."""
    # Middles of the squares of pixels that places stand for.
    y, x = jnp.mgrid[: size[0], : size[1]].astype(jnp.float32) * STRIDE + (STRIDE - 1) / 2
    line = last - first
    dx = x[None, None, None] - first[..., 0, None, None]  # [B, P, N, h, w]
    dy = y[None, None, None] - first[..., 1, None, None]
    lx, ly = line[..., 0, None, None], line[..., 1, None, None]
    share = (dx * lx + dy * ly) / jnp.maximum(lx**2 + ly**2, 1e-6)
    share = jnp.clip(share, 0.0, 1.0)
    return jnp.hypot(dx - share * lx, dy - share * ly)
