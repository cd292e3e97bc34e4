"""Skeletons of people as pictures: what DiffBody's ControlNet is shown of a pose (Eq. 3).

    picture = draw_skeleton(people, (1024, 512))    # (B, 1024, 512, 3) in [-1, 1], on black

People are joints in OpenPose's order of 18, whose bones and joints each have a colour, so that the
network can tell left from right. The drawing is that of OpenPose's pictures as ControlNets know
them: bones are ellipses at 60 % of their colour, joints are discs above them. It is computed from
inequalities for each pixel, not drawn stroke by stroke, so that it can stand in a compiled step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from osdhuman_jax.networks.types import Image

# x and y in pixels, of which whole numbers are centres, and a score in [0, 1].
People = Float[Array | np.ndarray, "b p 18 3"]
Plane = Float[Array, "1 1 1 h w"]

# OpenPose's joints. Left and right are the person's own.
JOINTS = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear"),
)
# Bones in the order in which they are drawn; each has the colour of its number.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
COLOURS = (  # RGB, a turn of the hue
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
VISIBLE = 0.3  # score above which a joint is drawn
FAINT = 0.6  # brightness of bones beside that of joints
RADIUS, LONG = 4, 1024  # pixels of a joint, and half of a bone's width, at this longer side


def radius(size: tuple[int, int]) -> int:
    """Pixels of a joint in a picture of `size`, one at least: 4 where the longer side is 1024."""
    return max(1, round(RADIUS * max(size) / LONG))


@partial(jax.jit, static_argnums=1)
def draw_skeleton(people: People, size: tuple[int, int]) -> Image:
    """Pictures (B, H, W, 3) in [-1, 1] of `size`, height and width, black but for the skeletons.

    A joint is drawn where its score is above 0.3, and a bone where both its ends are.
    """
    y, x = (axis[None, None, None] for axis in jnp.mgrid[: size[0], : size[1]].astype(jnp.float32))
    given = jnp.asarray(people, jnp.float32)
    points, seen = given[..., :2], given[..., 2] > VISIBLE
    # Of what lies on a pixel the last counts: all bones in their order, then all joints. Each kind
    # is reduced by itself, so that no array of all shapes' pixels is ever held.
    bones = _ranks(_in_bones(points, seen, x, y, radius(size)), first=1)
    joints = _ranks(_in_joints(points, seen, x, y, radius(size)), first=1 + len(LIMBS))
    return jnp.asarray(_palette())[jnp.maximum(bones, joints)]


def _ranks(inside: Bool[Array, "b p n h w"], first: int) -> Int[Array, "b h w"]:
    """The largest number of the shapes on a pixel, which count from `first`; 0 where none is."""
    numbers = first + jnp.arange(inside.shape[2])[None, None, :, None, None]
    return jnp.max(jnp.where(inside, numbers, 0), axis=(1, 2), initial=0)


def _palette() -> np.ndarray:
    """Black, then the colours of bones and of joints, (36, 3) in [-1, 1]."""
    colours = np.array(COLOURS, np.float32)
    faint = np.floor(FAINT * colours[: len(LIMBS)])
    return np.concatenate([np.zeros((1, 3), np.float32), faint, colours]) / np.float32(127.5) - 1


def _in_bones(
    points: Float[Array, "b p 18 2"], seen: Bool[Array, "b p 18"], x: Plane, y: Plane, width: int
) -> Bool[Array, "b p 17 h w"]:
    """Which pixels each bone covers: an ellipse from end to end, `width` its smaller half-axis."""
    starts, ends = np.array(LIMBS).T
    start, end = points[:, :, starts], points[:, :, ends]
    centre, half = (start + end) / 2, (end - start) / 2
    # A bone that points at the camera is a line of one pixel.
    length = jnp.hypot(half[..., 0], half[..., 1])
    cosine, sine = jnp.moveaxis(half / jnp.maximum(length, 1e-6)[..., None], -1, 0)
    dx, dy = (v - centre[..., i, None, None] for i, v in enumerate((x, y)))  # [B, P, 17, H, W]
    cosine, sine, length = (v[..., None, None] for v in (cosine, sine, length))
    along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
    inside = (along / jnp.maximum(length, 0.5)) ** 2 + (across / width) ** 2 <= 1
    return inside & (seen[:, :, starts] & seen[:, :, ends])[..., None, None]


def _in_joints(
    points: Float[Array, "b p 18 2"], seen: Bool[Array, "b p 18"], x: Plane, y: Plane, width: int
) -> Bool[Array, "b p 18 h w"]:
    """Which pixels each joint covers, a disc of the radius `width`."""
    dx, dy = (v - points[..., i, None, None] for i, v in enumerate((x, y)))
    return (dx**2 + dy**2 <= width**2) & seen[..., None, None]
