"""Batches restored in one step: whole, or one picture after the other in tiles.

    outputs = OneStep(restorer, programs).run(plan, batch, scale)

`restorer` is OSDHuman's or HAODiff's, or a cleaner, which has neither prompts nor norms; `scale` is
a tuple with the scale of guidance where it has one. A prompt is of the picture alone, never of what
it is padded with (section 3.3 of the paper: I'_L is the resized I_L); one serves all tiles of a
picture, as one measurement of the norms does. Pictures are uint8 or uint16 (height, width, 3),
outputs float32 in [-1, 1], as much larger as the network makes them.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float32

from osdhuman_jax.images.codec import to_float
from osdhuman_jax.images.sizes import Floats, Pixels, Size, cut, pad_reflect, squash
from osdhuman_jax.inference.plans import Plan, Progress
from osdhuman_jax.inference.programs import Programs
from osdhuman_jax.inference.tiling import Canvas, corners, groups_of, spread
from osdhuman_jax.methods.cleaner import CleanerNetwork
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import Images, Prompter
from osdhuman_jax.networks.types import Tokens

Guidance = tuple[np.float32, ...]  # a scalar, of a model that has one
Prompting = Prompter | Callable[[Images], Tokens]

VIEW = 384  # side at which a prompter sees pictures that names none of its own: RAM's


class OneStep:
    """A network made ready to follow plans; a `Pipeline` has one, and makes plans that fit."""

    def __init__(
        self,
        restorer: OneStepRestorer | CleanerNetwork,
        programs: Programs,
        prompter: Prompting | None = None,
    ) -> None:
        """`prompter` is one from outside; without it the restorer has its own, or needs none."""
        self.programs, self._prompter = programs, prompter
        self._own, self._reach, self._scale = restorer.multiple, restorer.reach, restorer.scale
        self._prompted = restorer.reach is None  # and with norms over the whole picture
        looks = prompter or restorer.prompter
        self._view = getattr(looks, "input_size", VIEW)
        self._antialias = getattr(looks, "antialias", True)
        self._outer_shape: tuple[int, ...] = ()  # of a picture's tokens by `prompter`

    # Memory --------------------------------------------------------------------------------------

    def footprint(self, plan: Plan) -> int:
        """Bytes of the programs that see the plan's pixels, which are compiled."""
        # The programs are compiled before anything runs, so that none fails half-way.
        shape = (plan.batch, *(plan.tile or plan.padded), 3)
        return max(self.programs.memory(kind, shape) for kind in self._compile(plan, shape))

    def prompter_footprint(self, plan: Plan) -> int:
        """Bytes of the program of the restorer's own prompter, which is compiled; 0 without."""
        if self._prompter is not None or not self._prompted:
            return 0
        views = self._views_shape(1 if plan.tile else plan.batch)
        self.programs.tokens(views)
        return self.programs.memory("tokens", views)

    def _compile(self, plan: Plan, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Compile the plan's programs; returns their kinds."""
        if not self._prompted:
            self.programs.alone(shape)
            return ("alone",)
        # Tiles need two programs: one measures the norms, one restores.
        prompt = (plan.batch, *self._prompt_shape())
        if plan.tile:
            self.programs.measure(shape, prompt)
            self.programs.tiles(shape, prompt)
            return ("measure", "tiles")
        self.programs.whole(shape, prompt)
        return ("whole",)

    def _views_shape(self, count: int) -> tuple[int, ...]:
        """Shape of what the prompter sees of `count` pictures."""
        return (count, self._view, self._view, 3)

    def _prompt_shape(self) -> tuple[int, ...]:
        """Shape of one picture's tokens."""
        if self._prompter is None:
            return self.programs.tokens_shape(self._views_shape(1))[1:]
        # A prompter from outside tells its shape only by an answer: a gray picture is asked of it,
        # once.
        if not self._outer_shape:
            gray = np.zeros(self._views_shape(1), np.float32)
            self._outer_shape = tuple(self._prompter(gray).shape[1:])
        return self._outer_shape

    # The step ------------------------------------------------------------------------------------

    def run(
        self,
        plan: Plan,
        batch: Sequence[Pixels],
        scale: Guidance = (),
        progress: Progress | None = None,
    ) -> list[Floats]:
        """Outputs of pictures of the plan's padded size; `progress` is told of tiles."""
        if plan.tile:
            return [self._tiled(pixels, plan, plan.tile, scale, progress) for pixels in batch]
        parts = (batch[k : k + plan.batch] for k in range(0, len(batch), plan.batch))
        return [output for part in parts for output in self._whole(part, plan, scale)]

    def _whole(self, batch: Sequence[Pixels], plan: Plan, scale: Guidance) -> list[Floats]:
        """Pictures at once, filled up to the plan's batch by repetition."""
        filled = [*batch] + [batch[-1]] * (plan.batch - len(batch))
        lq = np.stack([to_float(pad_reflect(pixels, plan.padded)) for pixels in filled])
        if self._prompted:
            tokens = self._tokens(filled)
            outputs = np.asarray(self.programs.whole(lq.shape, tokens.shape)(lq, tokens, *scale))
        else:
            outputs = np.asarray(self.programs.alone(lq.shape)(lq))
        # What was padded is cut off again, and repetitions are left out.
        sizes = [self._scaled(pixels.shape[:2]) for pixels in batch]
        return [outputs[i, :height, :width] for i, (height, width) in enumerate(sizes)]

    def _scaled(self, size: Size) -> Size:
        """Size, or place, in the output."""
        return size[0] * self._scale, size[1] * self._scale

    def _tiled(
        self,
        pixels: Pixels,
        plan: Plan,
        tile: Size,
        scale: Guidance,
        progress: Progress | None,
    ) -> Floats:
        """One picture in tiles, all restored by the same program."""
        picture, count = pad_reflect(pixels, plan.padded), plan.batch
        run = self._tile_program(pixels, picture, plan, tile, scale)
        # Places on the picture, and where their outputs lie on the canvas.
        canvas = Canvas(self._scaled(plan.padded), self._scaled(tile))
        places = corners(plan.padded, tile, self._own, self._reach or 0)
        for done, group in enumerate(groups_of(places, count)):
            # A program takes `count` tiles always: the last group is filled up by repetition.
            filled = group + [group[-1]] * (count - len(group))
            restored = np.asarray(run(cut(picture, filled, tile)))
            for corner, values in zip(group, restored, strict=False):
                canvas.add(self._scaled(corner), values)
            if progress:
                progress(min((done + 1) * count, len(places)), len(places))
        height, width = self._scaled(pixels.shape[:2])
        return canvas.picture()[:height, :width]

    def _tile_program(
        self, pixels: Pixels, picture: Pixels, plan: Plan, tile: Size, scale: Guidance
    ) -> Callable[[Float32[np.ndarray, "b h w 3"]], jax.Array]:
        """Tiles -> restored tiles, with tokens and statistics of the picture where there are any.

        `picture` is `pixels`, padded.
        """
        count = plan.batch
        if not self._prompted:
            return self.programs.alone((count, *tile, 3))
        # One prompt and one measurement of the norms serve all tiles, so that they agree.
        tokens = np.repeat(self._tokens([pixels]), count, axis=0)
        shapes = (count, *tile, 3), tokens.shape
        samples = cut(picture, spread(plan.padded, tile, self._own, count), tile)
        statistics = self.programs.measure(*shapes)(samples, tokens, *scale)
        run = self.programs.tiles(*shapes)
        return lambda tiles: run(statistics, tiles, tokens, *scale)

    def _tokens(self, batch: Sequence[Pixels]) -> Float32[np.ndarray, "b n d"]:
        """Tokens of pictures of any sizes, squashed on the host: the prompter's program is one."""
        views = np.stack([squash(pixels, self._view, self._antialias) for pixels in batch])
        prompter = self._prompter or self.programs.tokens(views.shape)
        return np.asarray(prompter(views), np.float32)
