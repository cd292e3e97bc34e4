"""HEIC and AVIF files: which of them one is, and what it says of its colours.

Both are pictures in boxes (ISO/IEC 14496-12 and 23008-12). HEIC is decoded by pillow-heif, which is
an extra, AVIF by Pillow itself; both give the picture as it is to be seen.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, ImageFile

from osdhuman_jax.images.listing import HINT
from osdhuman_jax.images.png import Source

# Brands of the first box: of files by HEVC, and by AV1.
_HEVC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_AV1 = {b"avif", b"avis"}
BRANDS = 256  # bytes in which a file's brands are looked for


def kind(prefix: bytes) -> str:
    """HEIF or AVIF by a file's first bytes (BRANDS of them suffice); else empty."""
    size, name = struct.unpack(">I4s", prefix[:8]) if len(prefix) >= 8 else (0, b"")
    if name != b"ftyp":
        return ""
    body = prefix[8 : min(size, BRANDS)]
    brands = {body[at : at + 4] for at in range(0, len(body), 4)}
    return "AVIF" if brands & _AV1 else "HEIF" if brands & _HEVC else ""


def avif_file(source: Source) -> ImageFile.ImageFile:
    """Pillow's image of an AVIF file. Raises ImportError where Pillow was built without."""
    if not AvifImagePlugin.SUPPORTED:
        raise ImportError("AVIF is read by Pillow as it is published: pip install 'pillow>=11.3'")
    return AvifImagePlugin.AvifImageFile(source, "")


def image_file(source: Source) -> Any:
    """Pillow's image of a HEIC file. Raises ImportError without the extra."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"HEIC is read by an extra: {HINT}") from error
    return pillow_heif.HeifImageFile(source, "")


def deep_samples(source: Source) -> list[np.ndarray] | None:
    """Planes of a HEIC file of more than eight bits, spread over 16."""
    import pillow_heif  # pyright: ignore[reportMissingImports]

    source.seek(0)
    found = np.asarray(pillow_heif.open_heif(source, convert_hdr_to_8bit=False, hdr_to_16bit=True))
    if found.dtype != np.uint16 or found.ndim != 3:
        return None
    return [found[..., channel] for channel in range(found.shape[2])]


def cicp(data: bytes) -> tuple[int, int, int, bool] | None:
    """Primaries and transfer of ITU-T H.273, as a PNG's cICP chunk has them; None if not said.

    Matrix and range are those of RGB, which a decoder has made of the pixels by then.
    """
    for body in _found(data, (b"meta", b"iprp", b"ipco", b"colr")):
        if body[:4] == b"nclx" and len(body) >= 10:
            primaries, transfer = struct.unpack(">2H", body[4:8])
            return primaries, transfer, 0, True
    return None


def _found(data: bytes, path: tuple[bytes, ...]) -> Iterator[bytes]:
    """Bodies of the boxes that lie in boxes of these names."""
    for name, body in _boxes(data):
        if name != path[0]:
            continue
        # The one of metadata begins with a version and flags.
        inside = body[4:] if name == b"meta" else body
        if path[1:]:
            yield from _found(inside, path[1:])
        else:
            yield inside


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each box, as far as their sizes make sense."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        # A size of 1 stands for one of eight bytes behind the name, 0 for the rest of the file.
        if size == 1 and at + 16 <= len(data):
            head, size = 16, struct.unpack_from(">Q", data, at + 8)[0]
        size = len(data) - at if size == 0 else size
        if size < head:
            return
        yield name, data[at + head : at + size]
        at += size
