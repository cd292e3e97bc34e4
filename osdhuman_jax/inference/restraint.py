"""What a restoration must leave as it was: outside a mask, beside people, and where faces are lost.

    restrain = open_restrainer(use, mask=Path("mask.png"), people_only="blazepose", keep_faces=0.8)
    restrained = restrain(source, restored)    # Restrained: the picture, facts, remarks

Networks and files are opened first, so that what is wrong with one is said before any picture is
computed. People are looked for in the restored picture, faces in both.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from PIL import Image

from osdhuman_jax.config import Json, UseConfig
from osdhuman_jax.data.sources import DataError
from osdhuman_jax.disk import file_digest
from osdhuman_jax.images.codec import Picture, narrow
from osdhuman_jax.images.sizes import Size
from osdhuman_jax.inference import faces, regions
from osdhuman_jax.inference.poses import FILES, read_files
from osdhuman_jax.inference.regions import Mask
from osdhuman_jax.inference.settings import Restraint

SAME_PERSON = 0.3  # cosine, near to where ArcFace's users draw the line between two people


class RestraintOptions(TypedDict, total=False):
    """What a person can ask for; None as what is left out."""

    mask: Path | Image.Image | np.ndarray | None
    people_only: str | None
    keep_faces: float | None
    face_detector: str | None
    face_embedding: Path | None


class Restrained(NamedTuple):
    """A picture, what is to be remembered of it, and what a person should be told."""

    picture: Picture
    facts: Json = {}
    remarks: Sequence[str] = ()


class Restrainer:
    """Puts back of the source what is not to be changed."""

    def __init__(
        self,
        settings: Restraint,
        mask: Mask | None = None,
        people: regions.People | None = None,
        keep: faces.KeepFaces | None = None,
    ) -> None:
        self.settings, self._mask, self._people, self._keep = settings, mask, people, keep

    def check(self, size: Size) -> None:
        """Raise DataError where a picture of this size, as it is read, has not the mask's."""
        if self._mask is not None and self._mask.shape != size:
            (height, width), (high, wide) = self._mask.shape, size
            text = f"the mask has {width} x {height} pixels, the picture {wide} x {high}"
            raise DataError(text)

    def __call__(self, source: Picture, restored: Picture) -> Restrained:
        """The restored picture of an enlarged source, both of one size."""
        facts: Json = {}
        remarks: list[str] = []
        # First where it is restored at all, for in what is left faces are looked for.
        if self._mask is not None:
            restored = regions.restored_within(source, restored, self._mask)
        if self._people is not None:
            rgb = restored.rgb
            mask = self._people(narrow(rgb) if rgb.dtype == np.uint16 else rgb)
            facts["people_share"] = round(float(mask.mean()), 4)
            if not mask.any():
                remarks.append("nobody was found, so it is as in the input (--people_only)")
            restored = regions.restored_within(source, restored, mask)
        if self._keep is not None:
            restored, told, remark = self._keep(source, restored)
            facts |= told
            remarks += [remark] * bool(remark)
        return Restrained(restored, facts, remarks)


def open_restrainer(
    use: UseConfig,
    *,
    mask: Path | Image.Image | np.ndarray | None = None,
    people_only: str | None = None,
    keep_faces: float | None = None,
    face_detector: str | None = None,
    face_embedding: Path | None = None,
) -> Restrainer | None:
    """What is asked for, or is best for a model; None where nothing is. Raises ValueError, OSError.

    With an embedding a model that keeps faces does so from SAME_PERSON on, its own measure being
    another one.
    """
    if keep_faces is None:
        keep_faces = SAME_PERSON if use.keep_faces and face_embedding else use.keep_faces
    if not 0 <= keep_faces <= 1:
        raise ValueError(f"keep_faces must be between 0 and 1, got {keep_faces}")
    asked = {"face_detector": face_detector, "face_embedding": face_embedding}
    if not keep_faces and (names := [name for name, value in asked.items() if value]):
        raise ValueError(f"{' and '.join(names)}: only for keep_faces above 0, and it is 0")
    if mask is None and people_only is None and not keep_faces:
        return None
    within = None if mask is None else regions.read_mask(mask)
    people = people_digest = None
    if people_only is not None:
        people_digest = _digest(people_only, FILES)
        people = _opened(regions.open_people, people_only, people_digest)
    keep = detected = embedded = None
    if keep_faces:
        detected = None if face_detector is None else _digest(face_detector, (faces.BLAZEFACE,))
        embedded = None if face_embedding is None else _file(face_embedding)
        find = _opened(faces.open_detector, face_detector, detected)
        alike = _opened(faces.Embedding, face_embedding, embedded) if face_embedding else None
        keep = faces.KeepFaces(keep_faces, find, alike)
    seen = None if within is None else hashlib.sha256(within.tobytes()).hexdigest()
    settings = Restraint(seen, people_digest, keep_faces or None, detected, embedded)
    return Restrainer(settings, within, people, keep)


@cache
def _opened(load: Callable, source: object, digest: str | None):  # noqa: ANN202
    """What was loaded of a source with these contents: once, for compiling takes long."""
    return load(source)


def _digest(source: str, names: Sequence[str]) -> str:
    """The kind of a source, and the digest of its networks. Raises ValueError or OSError."""
    kind, _, rest = source.partition(":")
    files = [Path(file) for file in rest.split(",") if file]
    if kind in ("blazepose", "blazeface") and len(files) < 2:
        data = read_files(files[0] if files else None, names, f"{faces.GET}, and {kind}:THE.whl")
        return f"{kind}:{hashlib.sha256(b''.join(data)).hexdigest()}"
    # What no source can be is refused where it is opened.
    return ":".join([kind, *map(_file, files)]) if kind == "onnx" else source


def _file(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return file_digest(path)
