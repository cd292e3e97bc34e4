"""Part maps: which part of a person each pixel of a picture shows, as a PNG file beside it.

Needed where training blurs by human motion: `data.parts` of a configuration names a folder of maps
for each of `data.sources`, which `osdhuman parts` makes. A map has its picture's name with .png and
its upright size, and is gray, a pixel's value being its label: the index in `degrade.motion.LABELS`
(0 background, 1 head, 2 and 3 left and right arm, 4 and 5 left and right leg, 6 the rest).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.sources import ChainSource, DataError, check_count
from osdhuman_jax.degrade.motion import LABELS, PartMap
from osdhuman_jax.disk import write_bytes
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import ImageError, Picture, encode, read_image


def read_part_map(path: Path, size: tuple[int, int]) -> PartMap:
    """The labels of a picture of `size`, height and width. Raises DataError, in one line."""
    labels = read_map(path, size, "a part map")
    # Palettes and pictures of maps have other values.
    if (most := int(labels.max())) >= len(LABELS):
        raise DataError(f"{spelled(path)}: no part map: it has a {most}, labels are 0 to 6")
    return labels


def read_map(path: Path, size: tuple[int, int], kind: str) -> UInt8[np.ndarray, "h w"]:
    """The gray levels of a map of a picture of `size`, height and width. Raises DataError.

    `kind` is what the map is called, with its article.
    """
    try:
        gray = np.ascontiguousarray(read_image(path).rgb[..., 0])
    except (ImageError, OSError) as error:
        raise DataError(f"{spelled(path)}: no {kind.partition(' ')[2]}: {error}") from error
    # A map of another picture, or of this one before it was scaled or turned, would go unseen.
    if gray.shape != size:
        (height, width), (high, wide) = gray.shape, size
        text = f"{kind} of {width} x {height}, its picture has {wide} x {high}"
        raise DataError(f"{spelled(path)}: {text}")
    return gray


def write_part_map(path: Path, labels: PartMap) -> None:
    """Write a map whole or not at all. Raises OSError."""
    write_bytes(path, encode(Picture(np.repeat(labels[..., None], 3, axis=-1), gray=True)))


class PartMaps:
    """The maps of `data.sources`, by the index of a picture in them."""

    def __init__(self, source: ChainSource, folders: Sequence[str]) -> None:
        """`folders`: one for each source, empty where a source has no maps. Raises DataError."""
        check_count("parts", "folders", len(folders), source)
        # Found out now, not at the first picture in some worker.
        for folder in filter(None, folders):
            if not Path(folder).is_dir():
                raise DataError(f"parts: {spelled(folder)}: no such folder")
        self._folders = tuple(folders)
        self._source = source

    def read(self, index: int, size: tuple[int, int]) -> PartMap | None:
        """The map of a picture of `size`, None where it has none. Raises DataError."""
        number, source, local = self._source.locate(index)
        if not self._folders[number]:
            return None
        path = Path(self._folders[number], f"{source.stem(local)}.png")
        return read_part_map(path, size) if path.is_file() else None


def open_part_maps(config: DataConfig, source: ChainSource) -> PartMaps | None:
    """The maps of a configuration's opened sources, None where it names no folders of them.

    Raises DataError where a folder is missing, or motion blur is asked for without any.
    """
    if any(config.parts):
        return PartMaps(source, config.parts)
    if config.degradation.first_order[1]:
        raise DataError("degradation.first_order: motion blur needs part maps: name data.parts")
    return None
