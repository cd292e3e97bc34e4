"""DiffBody in use: one picture after the other, in many steps.

    made = ManySteps(model, programs, clean).run(plan, pixels, Request("a"), sampling, "wavelet")

I_reg comes first: in it people are found, texts are made of it, and colours taken from it. Then
noise becomes a latent step by step, and the latent a picture. What is too large for one program
goes in tiles: the VAE sees windows of it, and the noise that is seen in windows of the latent is
blended at every step (MultiDiffusion, Bar-Tal et al. 2023). I_reg, people and text are those of the
whole picture. Guidance by parts needs the whole picture, and is off in tiles.

A picture is computed by itself, from a key of its own, so that what is made of it does not depend
on others, and is the same whenever it is made.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float32, UInt32

from osdhuman_jax.config import Json
from osdhuman_jax.data.structures import MOST, Structure, cut_structure, nobody, padded
from osdhuman_jax.images.codec import ImageError, to_uint8, to_uint16
from osdhuman_jax.images.sizes import Floats, Pixels, Size, pad_reflect, squash
from osdhuman_jax.inference import colour, step_programs
from osdhuman_jax.inference.finishing import RestoreError
from osdhuman_jax.inference.notes import Request
from osdhuman_jax.inference.plans import Plan, Progress
from osdhuman_jax.inference.poses import BlazePose, Pose, load_blazepose, structure
from osdhuman_jax.inference.programs import Programs, footprint
from osdhuman_jax.inference.settings import BLAZEPOSE, Sampling
from osdhuman_jax.inference.step_programs import MEASURED, SHARED, WHOLE, Half
from osdhuman_jax.inference.tiling import Canvas, Corner, corners, groups_of, spread
from osdhuman_jax.methods import sampler
from osdhuman_jax.methods.diffbody import Given
from osdhuman_jax.methods.sampler import Steps
from osdhuman_jax.networks.controlnet import Hint
from osdhuman_jax.networks.skeleton import draw_skeleton
from osdhuman_jax.networks.types import Tokens
from osdhuman_jax.weights import DiffBodyModel

Clean = Callable[[Pixels], Floats]  # a padded picture -> I_reg
Map = Float32[np.ndarray, "_ _ _"]  # a picture, or a latent
Keys = UInt32[Array, "1 _"]
Advance = Callable[[np.int32, Array], Array]  # number and latent of a step -> the next latent

log = logging.getLogger(__name__)


class Sampled(NamedTuple):
    """A picture, and what is to be remembered of how it was made."""

    output: Floats  # in [-1, 1], its colours corrected
    facts: Json


class Seen(NamedTuple):
    """I_reg, and what was found in it."""

    reg: Floats  # padded
    inside: Pixels  # of 8 bits and without the padding
    people: Structure
    poses: list[Pose]  # that were found here, and not given
    text: str | None  # None where HFIE describes pictures


class ManySteps:
    """A DiffBody made ready; a `Pipeline` has one, plans for it, and makes pictures of pixels."""

    def __init__(self, model: DiffBodyModel, programs: Programs, clean: Clean) -> None:
        self.model, self.programs, self._clean = model, programs, clean
        self._own, self._down = model.restorer.multiple, model.restorer.vae.downscale
        self._channels = model.config.unet.in_channels
        # Loaded and made when they are first asked for.
        self._blazepose: BlazePose | None = None
        self._judging: Callable[..., Array] | None = None

    # Memory --------------------------------------------------------------------------------------

    def footprint(self, plan: Plan, request: Request, wish: Sampling) -> int:
        """Bytes of a plan's programs, which are compiled, for a picture of which this is asked."""
        count, can = plan.batch if plan.tile else 1, self.model.abilities
        height, width = self._latent(plan.tile or plan.padded)
        hint = self._channels * (1 + can.skeleton) + can.attention
        shape = (count, height, width)
        # Whether there are two prompts follows the text; tags are taken for one.
        text = wish.prompt if wish.prompt is not None else request.caption
        text = ("tags" if self.model.tagger else "") if text is None else text
        tokens = jnp.zeros((count, *self._tokens_shape()))
        negative = tokens if self._scale(text, wish) != 1.0 else None
        one = jnp.float32(1)
        given = Given(jnp.zeros((*shape, hint)), tokens, negative, one, one)
        z = jnp.zeros((*shape, self._channels))
        arguments: tuple[object, ...] = (z, np.zeros(count, np.int32), given)
        function: Callable[..., object] = step_programs.noise
        pixels = jnp.zeros((count, *(plan.tile or plan.padded), 3))
        if not plan.tile:
            steps = step_programs.long(sampler.make_steps(1))
            arguments = (steps, np.int32(0), z, key_data(0, ""), given)
            function = step_programs.step
        if wish.part_guidance and not plan.tile:
            function, judged_by = self._judge([])
            arguments = (*arguments, np.float32(0), judged_by, pixels)
        # The programs of a step and of the autoencoder's halves.
        made = [self.programs.other(_step_title(plan), function, *arguments)]
        for half, x in zip(step_programs.HALVES, (pixels, z), strict=True):
            known = (self.programs.outputs(MEASURED[half], x),) if plan.tile else ()
            whole = SHARED[half] if plan.tile else WHOLE[half]
            made.append(self.programs.other(_title(half, plan), whole, *known, x))
        return max(map(footprint, made))

    def _tokens_shape(self) -> tuple[int, ...]:
        """Shape of one picture's tokens."""
        if self.model.encode is not None:
            return self.model.encode([""]).shape[1:]
        return self.model.config.hfie.num_queries, self.model.config.unet.cross_attention_dim

    # What is seen --------------------------------------------------------------------------------

    def _see(self, plan: Plan, pixels: Pixels, request: Request, wish: Sampling) -> Seen:
        """I_reg and all that is found in it, by what is asked for."""
        size = (pixels.shape[0], pixels.shape[1])
        reg = self._clean(pad_reflect(pixels, plan.padded))
        try:
            inside = to_uint8(reg[: size[0], : size[1]])
        except ImageError as error:
            raise RestoreError("the cleaner's output is not finite") from error
        # Nobody is beyond the picture, where it is padded.
        poses: list[Pose] = []
        people = nobody(size)
        if request.structure is not None:
            high, wide = request.structure.attention.shape
            window = slice(0, high), slice(0, wide)
            people = cut_structure(request.structure, window, size, mirrored=False)
        elif wish.pose == BLAZEPOSE:
            poses = self._finder()(inside)
            people = structure(poses, size)
        return Seen(reg, inside, people, poses, self._text(inside, request, wish))

    def _finder(self) -> BlazePose:
        # Its two networks are compiled for the first picture of all.
        if self._blazepose is None:
            self._blazepose = load_blazepose(self.model.poses)
        return self._blazepose

    def _text(self, picture: Pixels, request: Request, wish: Sampling) -> str | None:
        """The text of a picture: that of all, its own, its tags, or the empty one."""
        if self.model.encode is None:
            return None
        for text in (wish.prompt, request.caption):
            if text is not None:
                return text
        return "" if self.model.tagger is None else self.model.tagger.caption(picture)

    def _scale(self, text: str | None, wish: Sampling) -> float:
        """The scale by which a text is followed; 1 is without another to lead away from."""
        if self.model.encode is None:
            return 1.0
        told = bool(text) or wish.negative is not None
        return (self.model.abilities.sample.cfg if told else 1.0) if wish.cfg is None else wish.cfg

    def _given(self, plan: Plan, seen: Seen, wish: Sampling) -> Given:
        """What the networks are told at every step."""
        encode, scale = self.model.encode, self._scale(seen.text, wish)
        negative = None
        if encode is None:
            assert self.model.prompter is not None  # as of every model without texts
            view = squash(seen.inside, self.model.prompter.input_size)[None]
            prompt = _tokens(*nnx.split(self.model.prompter), view)
        else:
            prompt = encode([seen.text or ""])
            if scale != 1.0:
                best = self.model.abilities.sample.negative
                negative = encode([best if wish.negative is None else wish.negative])
        first = prompt.astype(jnp.float32)
        second = None if negative is None else negative.astype(jnp.float32)
        strength = jnp.float32(wish.control_scale)
        return Given(self._hint(plan, seen), first, second, jnp.float32(scale), strength)

    def _hint(self, plan: Plan, seen: Seen) -> Hint:
        """The conditions, (1, h, w, C) at the latent's size."""
        can, (height, width) = self.model.abilities, seen.people.attention.shape
        parts = [self._half("encode", plan, seen.reg)]
        if can.skeleton:
            skeleton = draw_skeleton(padded(seen.people.people)[None], plan.padded)
            parts.append(self._half("encode", plan, np.asarray(skeleton)[0]))
        if can.attention:
            attention = np.zeros((1, *plan.padded, 1), np.float32)
            attention[0, :height, :width, 0] = seen.people.attention
            # Nobody is where a picture is padded.
            parts.append(np.asarray(self.model.restorer.at_latent(jnp.asarray(attention)))[0])
        return jnp.asarray(np.concatenate(parts, axis=-1)[None])

    # Steps ---------------------------------------------------------------------------------------

    def run(
        self,
        plan: Plan,
        pixels: Pixels,
        request: Request,
        wish: Sampling,
        color_fix: str = "none",
        progress: Progress | None = None,
    ) -> Sampled:
        """A picture restored by a plan; `wish` says all but what follows the text.

        Its colours are those of I_reg by `color_fix`. Raises RestoreError.
        """
        assert wish.steps is not None and wish.seed is not None  # as `settings.sampled` makes it
        seen = self._see(plan, pixels, request, wish)
        given = self._given(plan, seen, wish)
        guided = bool(wish.part_guidance) and plan.tile is None
        if wish.part_guidance and not guided:
            log.warning("%s is restored in tiles, without guidance by parts", request.name or "it")
        steps = sampler.make_steps(wish.steps, "ddim" if wish.sampler == "ddim" else "ddpm")
        keys = key_data(wish.seed, request.name)
        if guided:
            advance = self._guided(plan, steps, keys, given, seen, wish.part_guidance or 0.0)
        else:
            advance = self._step(plan, steps, keys, given)
        # DDIM must not begin with mere noise: DiffBIR says so of its own.
        reg = jnp.asarray(given.hint[..., : self._channels])
        start = reg if wish.sampler == "ddim" else None
        z = sampler.start_latent(steps, jax.random.wrap_key_data(keys), reg.shape, start)
        for i in range(wish.steps):
            # Steps would be queued, and a person told of all of them at once.
            z = jax.block_until_ready(advance(np.int32(i), z))
            if progress:
                progress(i + 1, wish.steps)
        height, width = pixels.shape[:2]
        output = self._half("decode", plan, np.asarray(z)[0])[:height, :width]
        facts = {"text": seen.text, "text_scale": self._scale(seen.text, wish), "guided": guided}
        facts["people"] = len(seen.people.people)
        return Sampled(_coloured(output, seen.reg[:height, :width], color_fix), facts)

    def _step(self, plan: Plan, steps: Steps, keys: Keys, given: Given) -> Advance:
        """A step, whole or in tiles."""
        if plan.tile:

            def in_tiles(i: np.int32, z: Array) -> Array:
                eps = self._noise(plan, steps.t[i], np.asarray(z)[0], given)
                return step_programs.move(steps, i, z, jnp.asarray(eps), keys)

            return in_tiles
        title, padded_steps = _step_title(plan), step_programs.long(steps)

        def whole(i: np.int32, z: Array) -> Array:
            arguments = (padded_steps, i, z, keys, given)
            return self.programs.call(title, step_programs.step, *arguments)

        return whole

    def _noise(self, plan: Plan, t: Array, latent: Map, given: Given) -> np.ndarray:
        """The noise that is seen in a large latent (1, h, w, C), blended from windows of it."""
        assert plan.tile is not None
        tile, count = self._latent(plan.tile), plan.batch
        canvas, hint = Canvas(latent.shape[:2], tile, self._channels), np.asarray(given.hint)[0]
        # Half of each window lies in the next, as in DiffBIR.
        unit = self._own // self._down
        places = corners(latent.shape[:2], tile, unit, reach=max(tile))
        times, told = np.full(count, t, np.int32), _repeated(given, count)
        for group, filled in _filled(places, count):
            z, conditions = (_windows(x, filled, tile) for x in (latent, hint))
            arguments = (z, times, told._replace(hint=jnp.asarray(conditions)))
            seen = self.programs.call(_step_title(plan), step_programs.noise, *arguments)
            for corner, values in zip(group, np.asarray(seen), strict=False):
                canvas.add(corner, values)
        return canvas.picture()[None]

    def _guided(
        self, plan: Plan, steps: Steps, keys: Keys, given: Given, seen: Seen, scale: float
    ) -> Advance:
        """A step that is led by parts of the body, at timesteps where these can be seen."""
        function, judged_by = self._judge(seen.poses)
        reg, strength = seen.reg[None], np.float32(scale)
        title, padded_steps = _step_title(plan), step_programs.long(steps)
        times, plain = np.asarray(steps.t).tolist(), self._step(plan, steps, keys, given)

        def advance(i: np.int32, z: Array) -> Array:
            if not sampler.in_window(times[i]):
                return plain(i, z)
            arguments = (padded_steps, i, z, keys, given, strength, judged_by, reg)
            return self.programs.call(title, function, *arguments)

        return advance

    def _judge(self, poses: list[Pose]) -> tuple[Callable[..., Array], object]:
        """The function of a guided step, and what it judges by: the parser, or people's joints."""
        if self.model.parser is not None:
            graph, judged_by = nnx.split(self.model.parser)
            judge = partial(step_programs.by_parser, graph)
        else:
            landmarks = self._finder().landmarks
            assert landmarks is not None  # as those have that were read of files
            judge = partial(step_programs.by_heatmaps, landmarks[0])
            judged_by = (landmarks[1], *_squares(poses))
        # One function for all pictures, by which the program is found again.
        self._judging = self._judging or partial(step_programs.guided_step, judge)
        return self._judging, judged_by

    # VAE -----------------------------------------------------------------------------------------

    def _half(self, half: Half, plan: Plan, x: Map) -> Map:
        """A picture's latent ("encode") or a latent's picture ("decode"), whole or in tiles."""
        if plan.tile is None:
            return np.asarray(self.programs.call(_title(half, plan), WHOLE[half], x[None]))[0]
        # Norms are measured over some tiles, and see the same in all.
        inner, outer = plan.tile, self._latent(plan.tile)
        whole, unit = self._latent(plan.padded), self._own
        if half == "decode":
            inner, outer, whole, unit = outer, inner, plan.padded, self._own // self._down
        count, size = plan.batch, x.shape[:2]
        known = self._measure(half, plan, _windows(x, spread(size, inner, unit, count), inner))
        canvas = Canvas(whole, outer, self._channels if half == "encode" else 3)
        for group, filled in _filled(corners(size, inner, unit), count):
            arguments = (known, _windows(x, filled, inner))
            made = self.programs.call(_title(half, plan), SHARED[half], *arguments)
            for corner, values in zip(group, np.asarray(made), strict=False):
                row, left = (at * outer[0] // inner[0] for at in corner)
                canvas.add((row, left), values)
        return canvas.picture()

    def _measure(self, half: Half, plan: Plan, tiles: Array | np.ndarray) -> nnx.State:
        """Statistics of the norms over tiles."""
        return self.programs.call(f"{_title(half, plan)}'s norms", MEASURED[half], tiles)

    def _latent(self, size: Size) -> Size:
        return size[0] // self._down, size[1] // self._down


def key_data(seed: int, name: str) -> Keys:
    """The key of a picture: the seed's, folded with the hash of its name."""
    number = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:4])
    key = jax.random.fold_in(jax.random.key(seed), number)
    return jax.random.key_data(key)[None]


@partial(jax.jit, static_argnums=0)
def _tokens(graphdef: nnx.GraphDef, weights: nnx.State, view: Array | np.ndarray) -> Tokens:
    return nnx.merge(graphdef, weights)(view)


def _coloured(output: Floats, reg: Floats, color_fix: str) -> Floats:
    """The output with I_reg's colours, where that is wanted."""
    # What is not finite is told of when the picture is finished.
    if color_fix == "none" or not np.isfinite(output).all():
        return output
    corrected = colour.corrected(color_fix, output, to_uint16(reg))
    return np.concatenate([corrected(rows) for rows in colour.bands(output.shape)])


def _squares(poses: list[Pose]) -> tuple[np.ndarray, np.ndarray]:
    """Squares of people as `heatmap_loss` takes them, (1, MOST, 2, 3), and which are there."""
    squares = np.zeros((1, MOST, 2, 3), np.float32)
    for i, pose in enumerate(poses):
        squares[0, i] = pose.square
    return squares, (np.arange(MOST) < len(poses)).astype(np.float32)[None]


def _windows(x: Map, places: Sequence[Corner], tile: Size) -> Float32[np.ndarray, "_ _ _ _"]:
    return np.stack([x[row : row + tile[0], left : left + tile[1]] for row, left in places])


def _filled(places: list[Corner], count: int) -> list[tuple[list[Corner], list[Corner]]]:
    """`count` places at a time, and the same filled up by repetition where they are fewer."""
    return [(g, g + [g[-1]] * (count - len(g))) for g in groups_of(places, count)]


def _repeated(given: Given, count: int) -> Given:
    """Prompts for `count` windows."""
    prompt, negative = (
        None if tokens is None else jnp.repeat(tokens, count, axis=0)
        for tokens in (given.prompt, given.negative)
    )
    assert prompt is not None
    return given._replace(prompt=prompt, negative=negative)


def _size(size: Size) -> str:
    return f"step of {size[1]} x {size[0]}"


def _step_title(plan: Plan) -> str:
    """What a step's program is, in words for the person who waits for it."""
    return f"a {_size(plan.tile or plan.padded)}"


def _title(half: Half, plan: Plan) -> str:
    height, width = plan.tile or plan.padded
    return f"the autoencoder for {width} x {height} ({half})"
