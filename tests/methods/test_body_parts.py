"""Part losses are least where pictures are equal; labels of a person of known joints."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert import call, close, count, filled, normal

from osdhuman_jax.methods import body_parts
from osdhuman_jax.networks.configs import PartParserConfig
from osdhuman_jax.networks.part_parser import PartParser


@pytest.fixture(scope="module")
def parser():
    return filled(lambda rngs: PartParser(PartParserConfig.five(), rngs=rngs))


def picture(seed: int, *size: int) -> jax.Array:
    return jnp.asarray(np.tanh(0.5 * normal(*size, 3, seed=seed)))


def test_parser_has_its_size_and_gives_logits_at_a_quarter(parser):
    assert count(parser) == 88_518
    logits = call(parser, picture(0, 2, 20, 36))
    assert logits.shape == (2, 5, 9, 6)
    assert float(logits.std()) > 0.1


def heatmaps(squares: jax.Array) -> jax.Array:
    """Stands for BlazePose: 39 maps of each square."""
    return jnp.tanh(squares) @ jnp.asarray(normal(3, 39, seed=5))


ROI = [[1.5, 0.2, -2.0], [-0.2, 1.5, 3.0]]


@pytest.mark.parametrize("kind", ["parser", "heatmaps"])
def test_a_part_loss_is_least_at_the_reference(parser, kind):
    reference, other = picture(1, 2, 16, 24), picture(2, 2, 16, 24)
    if kind == "parser":
        loss = body_parts.parser_loss(jax.jit(lambda image: parser(image)), reference)
    else:
        rois = jnp.broadcast_to(jnp.asarray(ROI), (2, 2, 2, 3))
        loss = body_parts.heatmap_loss(
            heatmaps, reference, rois, jnp.asarray([[1.0, 0], [1, 1]]), 8
        )
    gradient = jax.jit(jax.grad(lambda x: loss(x).sum()))
    assert float(abs(gradient(reference)).max()) < 1e-6 < float(abs(gradient(other)).max())
    least = loss(reference)
    assert least.shape == (2,)
    for share in (0.1, 0.5, 1.0):
        assert (loss(reference + share * (other - reference)) > least).all()
    if kind == "heatmaps":  # two people of one square count twice, and one who is not there never
        np.testing.assert_allclose(
            body_parts.heatmap_loss(heatmaps, reference, rois, jnp.asarray([[1.0, 1], [0, 0]]), 8)(
                other
            ),
            [2 * loss(other)[0], 0.0],
            rtol=1e-6,
        )


def test_parts_are_summed_and_joints_within_them_averaged():
    """By heatmaps of constant logits, where each joint's cross-entropy is known."""
    assert sorted(sum(body_parts.GROUPS, ())) == list(range(33))
    image, rois = picture(0, 1, 8, 8), jnp.zeros((1, 1, 2, 3))

    def constant(squares: jax.Array) -> jax.Array:
        logits = 3.0 * jax.nn.one_hot(11, 39)
        return jnp.broadcast_to(logits, (1, 2, 2, 39))

    got = body_parts.heatmap_loss(constant, image, rois, jnp.ones((1, 1)), 4)(image)
    p = 1 / (1 + np.exp(-3.0))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(got, [4 * np.log(2) + (3 * np.log(2) + entropy) / 4], rtol=1e-5)


def test_squares_are_cut_as_opencv_does():
    image = np.abs(normal(1, 40, 60, 3))
    image = np.array(cv2.GaussianBlur(image[0], (0, 0), 3))[None]
    roi = np.array([[0.7, 0.2, 5.0], [-0.2, 0.7, 25.0]], np.float32)  # reaches beyond the picture
    got = body_parts.cut_squares(jnp.asarray(image), jnp.asarray(roi)[None, None], 32)[0, 0]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    want = cv2.warpAffine(image[0], roi, (32, 32), flags=flags)
    inside = cv2.warpAffine(np.ones((40, 60), np.float32), roi, (32, 32), flags=flags)
    inside = cv2.erode(inside, np.ones((3, 3))) > 0.99
    assert 0.3 < inside.mean() < 0.9
    # Theirs looks at a pixel's middle, ours at sixteen places in it.
    close(got[inside], want[inside], 0.03)
    assert not np.asarray(got)[cv2.dilate(want, np.ones((5, 5))).max(-1) == 0].any()


def test_labels_are_capsules_around_limbs_where_attention_is():
    joints = np.zeros((18, 3), np.float32)
    places = {1: (60, 40), 0: (60, 20), 8: (50, 90), 9: (50, 130), 10: (50, 170)}
    for number, place in places.items():
        joints[number] = *place, 0.9
    joints[2], joints[3] = (20, 40, 0.9), (20, 80, 0.2)  # an elbow that is not seen
    people = np.stack([joints, np.zeros_like(joints)])[None]  # and nobody
    attention = np.ones((1, 50, 30, 1), np.float32)
    attention[:, 30:36] = 0.4
    draw = jax.jit(body_parts.part_labels)
    labels = np.asarray(draw(jnp.asarray(people), jnp.asarray(attention)))[0]
    spots = (("head", 60, 22), ("torso", 55, 65), ("legs", 50, 105), ("feet", 50, 178))
    for name, x, y in spots:
        assert body_parts.PARTS[labels[y // 4, x // 4] - 1] == name
    assert not labels[30:36].any() and labels[37].any()
    assert labels[60 // 4, 20 // 4] == labels[0, 0] == labels[25, 27] == 0
    assert not draw(jnp.zeros((1, 0, 18, 3)), jnp.ones((1, 3, 3, 1))).any()


def test_parsing_loss_is_least_at_the_smoothed_labels():
    labels = jnp.asarray([[[0, 5]]])
    smooth = jnp.log(0.9 * jax.nn.one_hot(labels, 6) + 0.1 / 6)
    least = body_parts.parsing_loss(smooth, labels)
    p = np.array([0.9 + 0.1 / 6, *[0.1 / 6] * 5])
    np.testing.assert_allclose(least, -(p * np.log(p)).sum(), rtol=1e-5)
    assert (
        body_parts.parsing_loss(1.5 * smooth, labels)
        > least
        < body_parts.parsing_loss(0.7 * smooth, labels)
    )
