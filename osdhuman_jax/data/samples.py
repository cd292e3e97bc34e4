"""One training sample: a random crop, its degraded twin, and what else is known of the picture.

A sample is a pure function of (seed, epoch, index), so that any of them can be made again: the
loader makes batches of them, validation asks for single ones. Pictures are NHWC uint8 in [0, 255];
this module never imports jax.
"""

from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float32

from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.captions import Captions
from osdhuman_jax.data.crops import Crop, cut, cut_labels, draw_window
from osdhuman_jax.data.part_maps import PartMaps
from osdhuman_jax.data.sources import DataError, LabelledSource, Source, read_pixels
from osdhuman_jax.data.structures import Structures, cut_structure, nobody, padded
from osdhuman_jax.degrade.mixture import grayed, mixed
from osdhuman_jax.degrade.motion import Mask, PartMap
from osdhuman_jax.degrade.operations import from_unit, to_unit, usm_sharpen
from osdhuman_jax.degrade.second_order import degrade, sample_rng


class Pair(TypedDict):
    """A training picture and its degraded twin."""

    hq: Crop
    lq: Crop
    mask: NotRequired[Mask]  # what motion blurred


class Described(TypedDict):
    """What a text-to-image network is told of a picture beside its pixels, as config has it."""

    people: NotRequired[Float32[np.ndarray, "4 18 3"]]  # x, y in pixels of the crop, score
    attention: NotRequired[Float32[np.ndarray, "height width 1"]]  # of people, in [0, 1]
    caption: NotRequired[str]


class Sample(Described):
    """One sample: its pictures, where they come from, and what could not be read for them."""

    hq: Crop
    lq: NotRequired[Crop]
    mask: NotRequired[Mask]  # with `config.mask`
    index: int  # of the picture that was asked for
    failures: tuple[str, ...]  # a line for each unreadable picture that was passed over


def labelled_sample(labelled: LabelledSource, config: DataConfig, rng: np.random.Generator) -> Pair:
    """A window of a labelled picture; its target "hq" leans to the label by `teacher_share`.

    What a teacher makes of a degraded picture is a function of that picture: unlike the original,
    of which much is lost, it can be learned without a blur.
    """
    # One window for both, at a place that both have.
    lq, label = labelled.read(int(rng.integers(len(labelled))))
    size = config.size
    height, width = (there - side for there, side in zip(lq.shape[:2], size, strict=True))
    if min(height, width) < 0:
        crop = f"{size[1]}" if size[0] == size[1] else f"{size[1]} x {size[0]}"
        raise DataError(f"labelled pictures of {lq.shape[1]} x {lq.shape[0]} hold no {crop}")
    top, left = int(rng.integers(height + 1)), int(rng.integers(width + 1))
    window = slice(top, top + size[0]), slice(left, left + size[1])
    lq, label = lq[window], label[window]
    # A label may be followed in part: the rest of the target is the picture as it came.
    share = config.teacher_share
    target = np.rint(share * label.astype(np.float32) + (1 - share) * lq).astype(np.uint8)
    return {"hq": target, "lq": lq}


def make_sample(
    source: Source,
    config: DataConfig,
    epoch: int,
    index: int,
    labelled: LabelledSource | None = None,
    maps: PartMaps | None = None,
    *,
    structures: Structures | None = None,
    captions: Captions | None = None,
) -> Sample:
    """One sample, a pure function of its arguments.

    "lq" is there if `config.degrade`, "mask" if `config.mask`, "people" and "attention" with
    `structures`, "caption" with `captions`. The picture is that of (index + len(failures)) % n. Of
    a labelled picture "index" tells nothing but the place in the order, and nothing else is told.

    Raises IndexError if there is no such index, DataError if nothing is readable from there on or
    a map is not the picture's.
    """
    if not 0 <= index < len(source):
        raise IndexError(f"index {index} of {len(source)} pictures")
    # All that is random below comes from this one generator, in this order.
    rng = sample_rng(config.seed, epoch, index)
    if labelled and rng.random() < config.labelled_share:
        pair = _varied(labelled_sample(labelled, config, rng), config, rng)
        plain = _plain(config, structures is not None, captions is not None)
        return {**pair, **plain, "index": index, "failures": ()}
    # The HQ: a random window, mirrored half of the time.
    image, failures = read_pixels(source, index)
    at = (index + len(failures)) % len(source)
    window = draw_window(image.shape[:2], rng, config.size, config.resize_short)
    hq = cut(image, window, config.size)
    # Drawn even when unused: what follows must not depend on `config.flip`.
    mirrored = rng.random() < 0.5 and config.flip
    hq = np.ascontiguousarray(hq[:, ::-1] if mirrored else hq)
    sample: Sample = {"hq": hq, "index": index, "failures": failures}
    if structures:
        structure = structures.read(at, image.shape[:2])
        structure = cut_structure(structure, window, config.size, mirrored)
        sample["people"] = padded(structure.people)
        sample["attention"] = structure.attention[..., None]
    if captions:
        sample["caption"] = captions.read(at)
    if not config.degrade:
        return sample
    # Which part of a person is where, by the window and the mirror that the picture has.
    parts = maps.read(at, image.shape[:2]) if maps else None
    if parts is not None:
        parts = cut_labels(parts, window, config.size)
        parts = np.ascontiguousarray(parts[:, ::-1] if mirrored else parts)
    pair = _degraded(hq, parts, config, rng)
    sample["hq"], sample["lq"] = pair["hq"], pair["lq"]
    if config.mask and "mask" in pair:
        sample["mask"] = pair["mask"]
    return sample


def _degraded(
    hq: Crop, parts: PartMap | None, config: DataConfig, rng: np.random.Generator
) -> Pair:
    """The target and its LQ: by a mixture of kinds where there is one, else by the paper's way."""
    if any(config.kinds[1:]) or config.gray:
        hq = grayed(hq) if rng.random() < config.gray else hq
        lq, mask = mixed(hq, rng, config.kinds, config.degradation, parts)
    else:
        lq, _, mask = degrade(hq, rng, config.degradation, parts=parts)
        if config.degradation.usm:
            # The target is sharpened like the picture that was degraded.
            hq = from_unit(usm_sharpen(to_unit(hq)))
    return {"hq": hq, "lq": lq, "mask": mask}


def _varied(pair: Pair, config: DataConfig, rng: np.random.Generator) -> Pair:
    """A labelled pair mirrored half of the time and, at the share of these, without colour."""
    flip, gray = rng.random() < 0.5, rng.random() < config.gray

    def varied(picture: Crop) -> Crop:
        picture = grayed(picture) if gray else picture
        return np.ascontiguousarray(picture[:, ::-1] if config.flip and flip else picture)

    made: Pair = {"hq": varied(pair["hq"]), "lq": varied(pair["lq"])}
    if config.mask:
        # A teacher's pictures are degraded as when they were labelled: nothing moved.
        made["mask"] = np.zeros(made["lq"].shape[:2], bool)
    return made


def _plain(config: DataConfig, structures: bool, captions: bool) -> Described:
    """What is told of a labelled picture: that there is nobody, and no caption."""
    plain: Described = {}
    if structures:
        people, attention = nobody(config.size)
        plain |= {"people": padded(people), "attention": attention[..., None]}
    if captions:
        plain["caption"] = ""
    return plain
