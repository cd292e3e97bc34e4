"""Photographs in, photographs out: what infer.py, the web page and the Python class share.

    pipeline = Pipeline.from_folder("models/nano")
    restored = pipeline.restore([read_image("photo.jpg")], upscale=2)

Each picture is enlarged if asked, padded by reflection to one of few sizes, restored in batches,
cropped back, and colour-corrected. One of more than WHOLE pixels, or than memory allows, is
restored in tiles. How a plan is followed stands in one_step.py, and in many_steps.py of models that
sample. Arrays are uint8 or uint16 (height, width, 3) at the edges.

A network that itself enlarges (its `scale`, of Real-ESRGAN 4) is given a smaller picture, so that
its output is of the size that was asked for. It has no prompt.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TypedDict, TypeVar, Unpack

import jax
import numpy as np

from osdhuman_jax.images import sizes
from osdhuman_jax.images.codec import Picture
from osdhuman_jax.images.sizes import (
    Floats,
    Pixels,
    Size,
    covering,
    enlarge,
    resized,
    scaled_size,
)
from osdhuman_jax.inference.finishing import RestoreError, check_options, finish, fitted
from osdhuman_jax.inference.many_steps import Clean, ManySteps, Sampled
from osdhuman_jax.inference.memory import EXHAUSTED, budget, is_exhausted
from osdhuman_jax.inference.notes import Request
from osdhuman_jax.inference.one_step import OneStep, Prompting
from osdhuman_jax.inference.plans import Plan, Planner, Progress
from osdhuman_jax.inference.programs import Programs
from osdhuman_jax.inference.restraint import (
    Restrained,
    RestraintOptions,
    open_restrainer,
)
from osdhuman_jax.inference.settings import (
    PRECISIONS,
    Sampling,
    chosen,
    sampled,
    without_strength,
)
from osdhuman_jax.methods.prompts import FixedPrompter, TagPrompter
from osdhuman_jax.weights import (
    CLEANER,
    DIFFBODY,
    Cleaner,
    DiffBodyModel,
    Model,
    kind_of,
    load_cleaner,
    load_diffbody,
    load_model,
    load_prompter,
)
from osdhuman_jax.weights.abilities import Abilities

T = TypeVar("T")

# Beyond this there is nothing of a person left that more pixels could show.
MOST_ENLARGED = 4.0  # times, of a picture smaller than the model works at

log = logging.getLogger(__name__)


class PipelineOptions(TypedDict, total=False):
    """What a pipeline takes besides its model; see `Pipeline.__init__`."""

    batch_size: int
    bucket: int
    max_memory: int | None


@contextmanager
def want_of_memory_said() -> Iterator[None]:
    """A RestoreError in the place of what the host or a device says when memory runs out."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise RestoreError(EXHAUSTED) from error


class Pipeline:
    """A model made ready to restore pictures; compiled once for each padded size.

    Threads may share it; they take turns. Pipelines of one architecture share their programs, which
    the process keeps (`programs.compiled`); nothing else is kept outside the object.
    """

    def __init__(
        self,
        model: Model | Cleaner | DiffBodyModel,
        precision: str = "fp32",
        batch_size: int = 1,
        bucket: int = 128,
        prompter: Prompting | None = None,
        max_memory: int | None = None,
    ) -> None:
        """Keep `model`, which was loaded in `precision`.

        Sides are padded to few steps of at least `bucket` pixels (see `padded_size`). Batches have
        always `batch_size` pictures, rounded up to whole devices, the last one filled up by
        repetition. A `prompter` (tags, for one) gets a batch of pictures in [-1, 1], squashed to
        squares of its `input_size` (pixels; VIEW if it names none), and gives their tokens; without
        it the model has its own. `max_memory` bounds the bytes that one program takes on a device,
        weights included; by default the device's share.
        """
        if batch_size < 1 or bucket < 1:
            raise ValueError("batch_size and bucket must be at least 1")
        # The network, on every device.
        self.model, self.precision = model, precision
        self.programs = Programs(model.restorer)
        self.batch_size = -(-batch_size // self.programs.devices) * self.programs.devices
        self.max_memory = budget() if max_memory is None else max_memory
        self.scale = model.restorer.scale
        # Sizes: what the network divides by, in steps that are the same for every scale.
        own = model.restorer.multiple
        unit = -(-bucket // (self.scale * own)) * own
        self.planner = Planner(own, unit, self.scale, self.batch_size, self.programs.devices)
        # One of two ways to compute. Of many steps the cleaner is a pipeline of its own.
        self.abilities: Abilities | None = None
        self.many_steps: ManySteps | None = None
        self.one_step: OneStep | None = None
        if isinstance(model, DiffBodyModel):
            self.abilities = model.abilities
            self.many_steps = ManySteps(model, self.programs, self._cleaner(model))
        else:
            self.one_step = OneStep(model.restorer, self.programs, prompter)
        # What is known of memory, plans and shapes so far.
        self._footprints: list[tuple[int, int]] = []  # pixels and bytes of what was compiled
        self._plans: dict[Size, Plan] = {}
        self._lock = Lock()

    @classmethod
    def from_folder(
        cls, folder: str | Path, precision: str = "fp32", **options: Unpack[PipelineOptions]
    ) -> "Pipeline":
        """Pipeline of a model folder. Raises ValueError or FileNotFoundError on a bad one."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        kind = kind_of(Path(folder))
        if kind == DIFFBODY:
            return cls(load_diffbody(folder, precision), precision, **options)
        # A cleaner is its own network, with neither prompts nor adapters.
        if kind == CLEANER:
            return cls(load_cleaner(folder, precision=precision), precision, **options)
        model = load_model(folder, precision=precision)
        return cls._with(load_prompter(folder, precision=precision), model, precision, options)

    @classmethod
    def _with(
        cls,
        prompter: FixedPrompter | TagPrompter | None,
        model: Model,
        precision: str,
        options: PipelineOptions,
    ) -> "Pipeline":
        # Fixed tokens are a weight of the restorer; prompts of tags are made outside of it.
        if isinstance(prompter, FixedPrompter):
            model.restorer.prompter, prompter = prompter, None
        return cls(model, precision, prompter=prompter, **options)

    @classmethod
    def from_run(
        cls,
        workdir: str | Path,
        step: int | None = None,
        precision: str = "fp32",
        **options: Unpack[PipelineOptions],
    ) -> "Pipeline":
        """Pipeline of a training run's checkpoint, the latest by default. Raises as above."""
        # Orbax takes long to load, and only checkpoints need it.
        from osdhuman_jax.training import checkpoint

        if checkpoint.read_config(Path(workdir)).run.kind == "control":
            body = checkpoint.load_control_run(workdir, step, precision=precision)
            return cls(body, precision, **options)
        model = checkpoint.load_run(workdir, step, precision=precision)
        return cls._with(
            checkpoint.load_run_prompter(workdir, precision), model, precision, options
        )

    def padded_size(self, size: Size) -> Size:
        """Size to which what the network sees is padded; see `Planner`."""
        return self.planner.padded_size(size)

    def plans(self, padded: Size) -> list[Plan]:
        """What can be tried for a padded size, the largest first; see `Planner`."""
        return self.planner.plans(padded)

    def restore(
        self,
        pictures: Sequence[Picture],
        upscale: float = 1.0,
        color_fix: str | None = None,
        blend: float | None = None,
        progress: Progress | None = None,
        guidance: float | None = None,
        sampling: Sampling | None = None,
        requests: Sequence[Request] | None = None,
        strength: float | None = None,
        **restraint: Unpack[RestraintOptions],
    ) -> list[Picture]:
        """The pictures of `restored`, which takes the same."""
        made = self.restored(
            pictures,
            upscale,
            color_fix,
            blend,
            progress,
            guidance,
            sampling,
            requests,
            strength,
            **restraint,
        )
        return [one.picture for one in made]

    def restored(
        self,
        pictures: Sequence[Picture],
        upscale: float = 1.0,
        color_fix: str | None = None,
        blend: float | None = None,
        progress: Progress | None = None,
        guidance: float | None = None,
        sampling: Sampling | None = None,
        requests: Sequence[Request] | None = None,
        strength: float | None = None,
        **restraint: Unpack[RestraintOptions],
    ) -> list[Restrained]:
        """Restored pictures in the order given, each `scaled_size(size, upscale)` large.

        With each is what was found of faces and people. `strength` is what `settings.strong` makes
        of it; see `finish` for `color_fix` and `blend`, haodiff.py for `guidance` (1 to 10, of
        models with two prompts; of one with many steps by parts, from 0), `open_restrainer` for the
        rest; None is what the model is best used with. A model of many steps takes `sampling`, and
        `requests`, one a picture; its `progress` is that of a picture's steps. Transparency is
        resized with its picture; profile, EXIF and the size of a print are kept. Raises
        RestoreError if the model's output is not finite or memory does not suffice, ValueError on
        a bad option.
        """
        # Options are refused before anything is computed.
        sampling = sampling or Sampling()
        blend, guidance, sampling = self.strong(strength, blend, guidance, sampling)
        color_fix, blend = self.chosen(color_fix, blend)
        check_options(color_fix, blend)
        own = self.model.restorer.guidance
        guidance, wish = sampled(own, self.abilities, guidance, sampling)
        restrain = open_restrainer(self.model.use, **restraint)
        for picture in pictures:
            if restrain:
                restrain.check(picture.size)
        requests = [Request()] * len(pictures) if requests is None else requests
        restored: dict[int, Restrained] = {}
        with want_of_memory_said():
            # Batches of one padded size, whose outputs go back to where their pictures stood.
            inputs = [enlarge(picture, upscale) for picture in pictures]
            for indices in self.batches([picture.size for picture in inputs]):
                # What the network is given of each, and what it makes of them together.
                batch = [self.seen(pictures[i], inputs[i]) for i in indices]
                if wish is None:
                    outputs = self.compute(batch, progress, guidance)
                else:
                    asked = [requests[i] for i in indices]
                    drawn = self.sample(batch, asked, wish, color_fix, progress)
                    outputs = [one.output for one in drawn]
                for i, output in zip(indices, outputs, strict=True):
                    output = self.fitted(output, inputs[i].size)
                    made = finish(output, inputs[i], self.late_fix(color_fix), blend)
                    restored[i] = restrain(inputs[i], made) if restrain else Restrained(made)
        return [restored[i] for i in range(len(inputs))]

    def strong(
        self,
        strength: float | None,
        blend: float | None,
        guidance: float | None,
        sampling: Sampling,
    ) -> tuple[float | None, float | None, Sampling]:
        """Blend, guidance and sampling, one of which the strength is, where it is asked for."""
        asked = {"blend": blend, "guidance": guidance, "control_scale": sampling.control_scale}
        own = self.model.restorer.guidance
        made = without_strength(self.model.use, own, self.abilities, strength, asked)
        sampling = replace(sampling, control_scale=made["control_scale"])
        return made["blend"], made["guidance"], sampling

    def chosen(self, color_fix: str | None, blend: float | None) -> tuple[str, float]:
        """Colour fix and blend that are asked for, or (None) with which the model is best used."""
        return chosen(self.model.use, color_fix, blend)

    def working_size(self, size: Size) -> Size:
        """Size at which an output of `size` is computed: small pictures are enlarged for it."""
        # In both directions alike, as an upscale that a person asks for.
        factor = self.model.use.work_side / min(size)
        return scaled_size(size, min(factor, MOST_ENLARGED)) if factor > 1 else size

    def seen(self, picture: Picture, enlarged: Picture) -> Pixels:
        """What the network is given of a picture, to restore it at the size of `enlarged`."""
        working = self.working_size(enlarged.size)
        if self.scale == 1 and working == enlarged.size:
            return enlarged.rgb
        # By way of `enlarge`, which decides what colours are seen of a picture.
        if self.scale == 1:
            return resized(enlarge(picture, 1.0).rgb, working)
        return sizes.seen(enlarge(picture, 1.0).rgb, working, self.scale)

    def fitted(self, output: Floats, size: Size) -> Floats:
        """A model's output at the size that was asked for."""
        return fitted(output, self.working_size(size), size)

    def batches(self, sizes: Sequence[Size]) -> Iterator[list[int]]:
        """Indices of outputs that have one padded size, at most `batch_size` together."""
        groups: dict[Size, list[int]] = {}
        for i, size in enumerate(sizes):
            # One program serves a group; the smallest sizes come first, which show soonest.
            padded = self.padded_size(covering(self.working_size(size), self.scale))
            groups.setdefault(padded, []).append(i)
        for padded in sorted(groups):
            n = self.batch_size if self.planner.is_whole(padded) else 1
            yield from (groups[padded][k : k + n] for k in range(0, len(groups[padded]), n))

    def compute(
        self,
        batch: Sequence[Pixels],
        progress: Progress | None = None,
        guidance: float | None = None,
    ) -> list[Floats]:
        """Model outputs in [-1, 1], `scale` times as large; one padded size in the batch.

        Where memory runs out, the next smaller plan is tried, once; RestoreError follows.
        """
        # A scalar more for every program of a model that has one.
        own, step = self.model.restorer.guidance, self.one_step
        scale = () if own is None else (np.float32(own if guidance is None else guidance),)
        assert step is not None  # a model of many steps is asked by `sample`

        def follow(plan: Plan) -> list[Floats]:
            return step.run(plan, batch, scale, progress)

        return self._planned(self.padded_size(batch[0].shape[:2]), follow, self._footprint)

    def sample(
        self,
        batch: Sequence[Pixels],
        requests: Sequence[Request],
        sampling: Sampling,
        color_fix: str,
        progress: Progress | None = None,
    ) -> list[Sampled]:
        """As `compute`, of a model of many steps: one picture after the other.

        `sampling` is as `settings.sampled` makes it; see `ManySteps.run`.
        """
        steps = self.many_steps
        assert steps is not None  # of other models nothing is sampled

        def follow(plan: Plan) -> list[Sampled]:
            asked = zip(batch, requests, strict=True)
            return [steps.run(plan, p, r, sampling, color_fix, progress) for p, r in asked]

        def footprint(plan: Plan) -> int:
            needed = steps.footprint(plan, requests[0], sampling)
            self._footprints.append((plan.pixels, needed))
            return needed

        return self._planned(self.padded_size(batch[0].shape[:2]), follow, footprint)

    def late_fix(self, color_fix: str) -> str:
        """The colour fix that is left to `finish`: a model of many steps has done it by then."""
        return color_fix if self.many_steps is None else "none"

    def _cleaner(self, model: DiffBodyModel) -> Clean:
        """Padded pictures -> I_reg of the same size, by a pipeline of the cleaner."""
        left = max(self.max_memory - self.programs.weight_bytes, 1)
        cleaner = Pipeline(model.cleaner, self.precision, max_memory=left)

        def clean(picture: Pixels) -> Floats:
            height, width = picture.shape[:2]
            seen = sizes.seen(picture, (height, width), cleaner.scale)
            return cleaner.compute([seen])[0][:height, :width]

        return clean

    def _planned(
        self, padded: Size, follow: Callable[[Plan], T], footprint: Callable[[Plan], int]
    ) -> T:
        """What `follow` makes by the first plan that fits, or by the next one."""
        # Threads take turns: two programs at once would take twice the memory that was planned.
        with want_of_memory_said(), self._lock:
            plan = self._plans.get(padded) or self._first_fit(padded, footprint)
            outputs = self._attempt(plan, follow)
            if outputs is None:
                plan = self._first_fit(padded, footprint, after=plan)
                log.warning("out of memory: going on with %s", plan)
                outputs = follow(plan)
        return outputs

    def tiling(self, size: Size) -> str | None:
        """`Plan.tiling` of the plan by which outputs of a size were computed last."""
        return self._plans[self.padded_size(covering(self.working_size(size), self.scale))].tiling

    def _attempt(self, plan: Plan, follow: Callable[[Plan], T]) -> T | None:
        """Outputs by a plan; None where memory ran out, with nothing of the attempt kept."""
        try:
            return follow(plan)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            return None

    def _first_fit(
        self, padded: Size, footprint: Callable[[Plan], int], after: Plan | None = None
    ) -> Plan:
        """The largest plan whose programs fit into memory; `after` one that did not in practice."""
        # Plans come from the largest to the smallest.
        plans = self.plans(padded)
        left = plans if after is None else plans[plans.index(after) + 1 :]
        if not left:
            raise RestoreError(f"{EXHAUSTED} (no plan is smaller than {after})")
        # Compiling tells how much a plan takes; what cannot fit by what others took is passed over.
        needed = 0
        for plan in left:
            needed = self._guess(plan) or footprint(plan)
            if needed <= self.max_memory:
                self._plans[padded] = plan
                return plan
        least = f"about {needed / 2**20:,.0f} MiB of {self.max_memory / 2**20:,.0f} MiB"
        raise RestoreError(f"out of memory: the smallest plan takes {least} (see --max_memory)")

    def _footprint(self, plan: Plan) -> int:
        """Bytes of the plan's programs, which are compiled."""
        step = self.one_step
        assert step is not None
        needed = step.footprint(plan)
        self._footprints.append((plan.pixels, needed))
        # The same for pictures of any size, so no footprint to guess larger ones by.
        return max(needed, step.prompter_footprint(plan))

    def _guess(self, plan: Plan) -> int:
        """Bytes that a plan takes at least, if too many by what others took; else 0.

        Beyond the weights, memory grows with the pixels or faster: what is far from fitting need
        not be compiled.
        """
        # 0.7 leaves room for what does not grow with the pixels.
        weights = self.programs.weight_bytes
        least = [
            weights + int(0.7 * (taken - weights) * plan.pixels / pixels)
            for pixels, taken in self._footprints
            if pixels < plan.pixels
        ]
        return max([guess for guess in least if guess > self.max_memory], default=0)
