"""What is minimised in DiffBody's two trainings after its cleaner's: ControlNet's and the parser's.

ControlNet learns to predict the noise in latents of HQ pictures, told of what a cleaner left of
their degraded twins, of poses, of where people are and of a text (Eq. 4, see diffbody.py):

    L = mean of ((1 + w I_attn) (eps - n))^2,   t uniform in [0, 1000)

Everything else is frozen. Joints, poses, attention and texts are left out at random, so that it
works without what an estimator does not find. In the weight attention stays: where people are
matters whether or not the network is told. The parser of parts, by which sampling may be guided
(Eq. 6), learns labels that are drawn around joints, see body_parts.py.

What is random is drawn by `draw_control` for a whole batch; the rest are pure functions of it.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree

from osdhuman_jax.config import Config, ControlConfig
from osdhuman_jax.methods import sampler
from osdhuman_jax.methods.body_parts import parsing_loss, part_labels
from osdhuman_jax.methods.diffbody import DiffBody, Given, reduced
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.part_parser import STRIDE, PartParser
from osdhuman_jax.networks.skeleton import COLOURS, JOINTS, draw_skeleton
from osdhuman_jax.networks.types import Image, Scalar

Fields = Mapping[str, Array]  # of a batch: pictures in [-1, 1], people, attention, prompts, draws
Scalars = dict[str, Scalar]
LEVELS = 8  # timesteps at which a validation measures the loss


# ControlNet --------------------------------------------------------------------------------------


def draw_control(
    config: ControlConfig, latent: tuple[int, ...], people: int, key: Array
) -> dict[str, Array]:
    """Noise, timesteps and what is left out, for a batch whose latents have the shape `latent`."""
    count = latent[0]
    # One key for each draw in a fixed order, so that a seed means the same steps in every version.
    keys = jax.random.split(key, 7)
    drop = jax.random.bernoulli
    return {
        "posterior": jax.random.normal(keys[0], latent),
        "t": jax.random.randint(keys[1], (count,), 0, Schedule.num_train_timesteps),
        "noise": jax.random.normal(keys[2], latent),
        "drop_joints": drop(keys[3], config.drop_joints, (count, people, len(JOINTS))),
        "drop_pose": drop(keys[4], config.drop_pose, (count,)),
        "drop_attention": drop(keys[5], config.drop_attention, (count,)),
        "drop_text": drop(keys[6], config.drop_text, (count,)),
    }


def left_out(batch: Fields, blank: PyTree) -> dict[str, Array]:
    """The batch without the conditions that its draws leave out; `blank` are tokens of no text."""
    kept = dict(batch)
    if "people" in batch:
        # A joint of score 0 is not drawn.
        gone = batch["drop_joints"] | batch["drop_pose"][:, None, None]  # [B, P, 18]
        seen = jnp.where(gone, 0.0, batch["people"][..., 2])
        kept["people"] = batch["people"].at[..., 2].set(seen)
        kept["attention"] = jnp.where(
            batch["drop_attention"][:, None, None, None], 0.0, batch["attention"]
        )
    if "prompt" in batch:
        kept["prompt"] = jnp.where(batch["drop_text"][:, None, None], blank, batch["prompt"])
    return kept


def told(model: DiffBody, config: ControlConfig, batch: Fields, blank: PyTree) -> Given:
    """What the networks are told of a batch: the hint of Eq. 3, and a prompt.

    The prompt is the batch's own, else `blank`, the tokens of no text, else the model's prompter's
    of I_reg: of what there will be in use, too, where the original is not at hand.
    """
    reg = model.clean(batch["lq"])
    skeleton = draw_skeleton(batch["people"], reg.shape[1:3]) if config.pose else None
    hint = model.conditions(reg, skeleton, batch["attention"] if config.attention else None)
    prompt = batch.get("prompt", blank)
    if prompt is None:
        return Given(hint, model.tokens(reg))
    return Given(hint, jnp.broadcast_to(prompt, (len(reg), *prompt.shape[1:])))


def control_terms(model: DiffBody, config: Config, batch: Fields, blank: PyTree) -> Scalars:
    """Eq. 4 of a batch with its draws."""
    given = told(model, config.control, left_out(batch, blank), blank)
    z0 = model.encode(batch["hq"], batch["posterior"] if config.run.latent == "sample" else None)
    weights = _weights(config, batch)
    return {"diffusion": model.loss(z0, batch["t"], batch["noise"], given, weights)}


def _weights(config: Config, batch: Fields) -> Array | None:
    """w I_attn, of the whole picture; None where all of it counts alike."""
    return config.loss.attention * batch["attention"] if config.loss.attention else None


def control_loss(model: DiffBody, config: Config, batch: Fields, blank: PyTree) -> Scalar:
    """Eq. 4 with nothing left out, at `LEVELS` timesteps and with the noise of the run's seed."""
    given, weights = told(model, config.control, batch, blank), _weights(config, batch)
    z0 = model.encode(batch["hq"])
    step = Schedule.num_train_timesteps // LEVELS
    levels = jnp.arange(step // 2, Schedule.num_train_timesteps, step, dtype=jnp.int32)

    def loss(drawn: tuple[Array, Array]) -> Scalar:
        level, key = drawn
        t, noise = jnp.full(len(z0), level), jax.random.normal(key, z0.shape)
        return model.loss(z0, t, noise, given, weights)

    # One after the other: validation needs no more memory than a picture.
    keys = jax.random.split(jax.random.key(config.run.seed), len(levels))
    return jnp.mean(jax.lax.map(loss, (levels, keys)))


def sampled(model: DiffBody, config: Config, batch: Fields, blank: PyTree) -> Image:
    """Pictures restored in `run.eval_steps` steps of DDIM, from I_reg's latent under noise."""
    given = told(model, config.control, batch, blank)
    steps = sampler.make_steps(config.run.eval_steps, "ddim")
    keys = jax.random.split(jax.random.key(config.run.seed), len(given.hint))
    return model.decode(model.sample(given, steps, keys, begin="cond"))


# The parser of parts -----------------------------------------------------------------------------


def parts_terms(parser: PartParser, batch: Fields) -> Scalars:
    """Cross-entropy with the labels drawn around a batch's joints, and the share that is right."""
    labels = part_labels(batch["people"], reduced(batch["attention"], STRIDE))
    logits = parser(batch["hq"])
    right = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
    return {"parts": parsing_loss(logits, labels), "right": right}


def parts_shown(parser: PartParser, images: Image) -> Float[Array, "b h w 3"]:
    """What the parser sees in images: each part in a colour of its own over the gray picture."""
    found = jnp.argmax(parser(images), axis=-1)  # [B, H/4, W/4]
    # Colours apart from each other in the skeleton's turn of the hue; the background has none.
    turn = np.array(COLOURS, np.float32)[[0, 3, 6, 9, 13]] / 127.5 - 1
    colours = jnp.asarray(np.concatenate([np.zeros((1, 3), np.float32), turn]))
    large = jnp.repeat(jnp.repeat(colours[found], STRIDE, axis=1), STRIDE, axis=2)
    gray = jnp.broadcast_to(images.mean(-1, keepdims=True), images.shape)
    return jnp.where((large == 0).all(-1, keepdims=True), gray, (large + gray) / 2)
