"""The Python class: `from osdhuman_jax import Restorer`.

    restorer = Restorer.load()
    better = restorer(Image.open("photo.jpg"), upscale=2)
    several = restorer([np_array, another])

It is infer.py's pipeline and gives infer.py's pixels, but that 16 bits of a Pillow image become 8:
Pillow holds no more of colour. Arrays keep theirs. The network itself, an nnx
module, is `osdhuman_jax.methods.osdhuman.OneStepRestorer`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack, overload

import numpy as np
from PIL import Image

from osdhuman_jax.data.picture_lines import stem
from osdhuman_jax.disk import file_digest
from osdhuman_jax.images.codec import Picture, from_pillow, to_pillow
from osdhuman_jax.inference.memory import parse_bytes
from osdhuman_jax.inference.notes import Notes, Request, poses_digest, poses_file
from osdhuman_jax.inference.pipeline import Pipeline, want_of_memory_said
from osdhuman_jax.inference.plans import Progress
from osdhuman_jax.inference.restraint import RestraintOptions
from osdhuman_jax.inference.settings import BLAZEPOSE, NOBODY, Sampling
from osdhuman_jax.models import BUNDLED

AnyStill = Image.Image | np.ndarray
Still = TypeVar("Still", Image.Image, np.ndarray)


class SamplingOptions(TypedDict, total=False):
    """What a model of many steps takes; `names` are the pictures' paths below their folder."""

    steps: int
    sampler: str
    cfg: float
    control_scale: float
    prompt: str
    negative: str
    seed: int
    pose: str | Path
    captions: str | Path
    names: Sequence[str]


class MoreOptions(SamplingOptions, total=False):
    """How much of a picture is changed, and where."""

    strength: float
    mask: str | Path | Image.Image | np.ndarray
    people_only: bool | str
    keep_faces: float
    face_detector: str
    face_embedding: str | Path


class Restorer:
    """A loaded model. Threads may share it; it changes nothing that it is given.

    Restorers of one architecture share their compiled programs, which the process keeps.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def load(
        cls,
        model: str | Path = BUNDLED,
        *,
        precision: str = "fp32",
        batch_size: int = 1,
        max_memory: int | str | None = None,
    ) -> "Restorer":
        """The model of a folder, by default the bundled one.

        The rest is as infer.py's flags; `max_memory` is 2**32 or "4GiB".
        Raises ValueError or FileNotFoundError on a folder that is no whole model.
        """
        # As on the command line, or a number.
        limit = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
        pipeline = Pipeline.from_folder(model, precision, batch_size=batch_size, max_memory=limit)
        return cls(pipeline)

    @overload
    def __call__(
        self,
        images: Still,
        *,
        upscale: float = ...,
        color_fix: str | None = ...,
        blend: float | None = ...,
        guidance: float | None = ...,
        progress: Progress | None = ...,
        **more: Unpack[MoreOptions],
    ) -> Still: ...

    @overload
    def __call__(
        self,
        images: Sequence[Still],
        *,
        upscale: float = ...,
        color_fix: str | None = ...,
        blend: float | None = ...,
        guidance: float | None = ...,
        progress: Progress | None = ...,
        **more: Unpack[MoreOptions],
    ) -> list[Still]: ...

    def __call__(
        self,
        images: AnyStill | Sequence[AnyStill],
        *,
        upscale: float = 1.0,
        color_fix: str | None = None,
        blend: float | None = None,
        guidance: float | None = None,
        progress: Progress | None = None,
        **more: Unpack[MoreOptions],
    ) -> AnyStill | list[AnyStill]:
        """Restored: one for one, a list for a list; Pillow's for Pillow's, arrays for arrays.

        Arrays are uint8 or uint16, (height, width) gray or (height, width, 3 or 4) RGB(A), and come
        back with three or four channels of their dtype. Pillow's images come back upright as RGB or
        RGBA of 8 bits, profile and EXIF in `info`. `MoreOptions` are as infer.py's flags; `mask`
        may also be an image or an array (height, width) of uint8 or bool. A DiffBody also takes
        `SamplingOptions`; `progress` is that of a picture's steps then. Raises TypeError on what is
        neither, ValueError on other arrays, factors and names, and RestoreError (of
        osdhuman_jax.inference.finishing) where memory does not suffice.
        """
        # An array is no sequence by this test, nor is a Pillow image.
        several = isinstance(images, Sequence)
        # What comes in is proved, one by one, before the first is computed.
        given = list(images) if several else [images]
        with want_of_memory_said():
            pictures = [_picture(image) for image in given]
            strength, restraint, sampling = _parted(more)
            asked, requests = _sampling(sampling, pictures)
            # Together, so that pictures of one size share a batch.
            restored = self.pipeline.restore(
                pictures,
                upscale,
                color_fix,
                blend,
                progress,
                guidance,
                asked,
                requests,
                strength,
                **restraint,
            )
            results = [_like(image, p) for image, p in zip(given, restored, strict=True)]
        return results if several else results[0]


def _parted(
    options: MoreOptions,
) -> tuple[float | None, RestraintOptions, SamplingOptions]:
    """Strength, what is to stay, and the rest, which is a sampler's. Raises TypeError."""
    known = set(MoreOptions.__annotations__) | set(SamplingOptions.__annotations__)
    if strange := sorted(set(options) - known):
        raise TypeError(f"{strange[0]} is no option; options are {', '.join(sorted(known))}")
    strength = options.get("strength")
    restraint: dict[str, object] = {
        name: options[name] for name in RestraintOptions.__annotations__ if name in options
    }
    for name in ("mask", "face_embedding"):
        if isinstance(restraint.get(name), str):
            restraint[name] = Path(str(restraint[name]))
    if isinstance(restraint.get("people_only"), bool):
        restraint["people_only"] = BLAZEPOSE if restraint["people_only"] else None
    rest = {k: v for k, v in options.items() if k in SamplingOptions.__annotations__}
    return strength, restraint, rest  # type: ignore[return-value]


def _sampling(options: SamplingOptions, pictures: list[Picture]) -> tuple[Sampling, list[Request]]:
    """Settings, and a request for each picture. Raises ValueError or OSError."""
    # Names without suffixes, as files of poses and captions are read.
    names = [stem(name) for name in options.get("names", [""] * len(pictures))]
    if len(names) != len(pictures):
        raise ValueError(f"{len(names)} names for {len(pictures)} pictures")
    pose, captions = options.get("pose"), options.get("captions")
    found = pose if pose in (None, NOBODY) else poses_file(Path(pose))
    notes = Notes(Path(captions) if captions else None, found if isinstance(found, Path) else None)
    notes.check(names, whole=False)
    plain = {k: v for k, v in options.items() if k not in ("pose", "captions", "names")}
    asked = Sampling(
        **plain,  # type: ignore[arg-type]
        pose=poses_digest(found) if isinstance(found, Path) else found,
        captions=file_digest(Path(captions)) if captions else None,
    )
    return asked, [notes.of(n, p.size) for n, p in zip(names, pictures, strict=True)]


def _picture(image: AnyStill) -> Picture:
    """Raises ValueError on an array that is no picture, TypeError on what is no array."""
    if isinstance(image, Image.Image):
        return from_pillow(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"a picture is a NumPy array or a Pillow image, not {type(image).__name__}")
    # Floats are refused: nobody can tell [0, 1] from [-1, 1] or [0, 255] by looking.
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if not fits or not image.size or image.dtype not in (np.uint8, np.uint16):
        want = "uint8 or uint16 of shape (height, width) or (height, width, 3 or 4)"
        raise ValueError(f"an array must be {want}, not {image.dtype} of {image.shape}")
    # The pipeline's pictures have three channels of colour and transparency apart.
    channels = np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image
    alpha = channels[..., 3] if channels.shape[2] == 4 else None
    return Picture(np.ascontiguousarray(channels[..., :3]), alpha)


def _like(image: AnyStill, picture: Picture) -> AnyStill:
    """The picture in the form of what was given."""
    if isinstance(image, Image.Image):
        return to_pillow(picture)
    return picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha])
