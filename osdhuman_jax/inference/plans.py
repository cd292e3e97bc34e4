"""The sizes at which pictures are computed: few, so that few programs serve any number of pictures.

A `Planner` is given a picture's size and gives plans, the largest first: whole pictures, several at
a time or one, then tiles. Which of them fits into memory is found out by the pipeline.

Sizes here are of what the network sees. All limits are of its output, so that a network that
enlarges (`scale` times) gets as many programs, and tiles of less at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from osdhuman_jax.images.sizes import Size, step

WHOLE = 1024 * 1024  # pixels; above, tiles cost less than the attention of a whole picture
LONGEST = 2048  # side of a whole picture
TILES = ((512, 4), (384, 4), (256, 4), (256, 1))  # side and tiles at a time, the best first

Progress = Callable[[int, int], None]  # done and in all: tiles of a plan, or steps


@dataclass(frozen=True)
class Plan:
    """How pictures of one padded size are computed."""

    padded: Size
    batch: int  # pictures, or tiles of one picture, together
    tile: Size | None = None  # None: whole

    @property
    def pixels(self) -> int:
        """How many the plan's programs see at once."""
        return self.batch * math.prod(self.tile or self.padded)

    @property
    def tiling(self) -> str | None:
        """Width, height and number of tiles at a time, as "512x512x4"; None: whole."""
        return f"{self.tile[1]}x{self.tile[0]}x{self.batch}" if self.tile else None

    def __str__(self) -> str:
        height, width = self.tile or self.padded
        what = "tiles" if self.tile else "whole pictures"
        return f"{what} of {width} x {height} pixels, {self.batch} at a time"


@dataclass(frozen=True)
class Planner:
    """What a network and its user allow."""

    own: int  # what the network's sides are multiples of
    unit: int  # of the steps of sides, a multiple of `own`
    scale: int  # of the network
    batch: int  # whole pictures together
    devices: int

    def padded_size(self, size: Size) -> Size:
        """The (height, width) at which a picture of `size` is computed.

        A whole picture's sides have two steps an octave, so that any number of sizes needs few
        programs. In tiles, long sides go up to a multiple of the network's own alone.
        """
        height, width = (step(side, self.unit) for side in size)
        if self.is_whole((height, width)):
            return height, width
        # A tile is never larger than the largest: beyond it steps would only add pixels to compute.
        own, largest = self.own, TILES[0][0]
        height, width = (
            step(side, self.unit) if side <= largest else -(-side // own) * own for side in size
        )
        return height, width

    def is_whole(self, padded: Size) -> bool:
        """Whether a padded size is one of the few that are computed whole."""
        # Sizes of tiled pictures are any multiple of the network's own, for which no program is
        # kept.
        few = all(step(side, self.unit) == side for side in padded)
        small = math.prod(padded) <= WHOLE // self.scale
        return few and small and max(padded) <= LONGEST // self.scale

    def plans(self, padded: Size) -> list[Plan]:
        """What can be tried for a padded size, from the largest to the smallest."""
        # Whole pictures, fewer and fewer at a time.
        found = []
        batch = self.batch if self.is_whole(padded) else 0
        while batch and batch % self.devices == 0:
            found.append(Plan(padded, batch))
            batch //= 2
        # Then tiles, each plan smaller than the one before it.
        for side, count in TILES:
            side = max(side // self.own, 1) * self.own
            count = max(count // self.scale, 1, self.devices)
            plan = Plan(padded, count, (min(side, padded[0]), min(side, padded[1])))
            smaller = not found or (plan.pixels <= found[-1].pixels and plan != found[-1])
            if plan.tile != padded and smaller:
                found.append(plan)
        return found
