"""PNG files, chunk by chunk: what a decoder needs, and what says how the pixels are meant.

Pillow refuses a whole picture for the sake of one large text or profile, and makes nothing of some
chunks. Here the chunks are told apart first: a decoder gets those that make the pixels, and the
rest is read under bounds of its own. See the PNG specification, third edition.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

Source = io.BytesIO | io.BufferedReader

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 64 * 2**20  # bytes of profile, EXIF or one text once inflated: against bombs
METRE = 0.0254  # of an inch

# Chunks by what becomes of them (PNG, third edition, section 11); all others are dropped.
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"IEND"}
_KEPT = {b"iCCP", b"cICP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"eXIf"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_HEADER = 33  # bytes of the signature and the header's chunk
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_TURNED = re.compile(rb'tiff:Orientation(="|>)([1-8])')
_EXIF_PREFIX = b"Exif\0\0"


@dataclass
class Parts:
    """A PNG file taken apart."""

    bare: bytes  # the same pixels in a file without anything else
    depth: int = 8  # bits of a sample
    colour: int = 2  # 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGBA
    palette: bool = False  # whether there is one
    info: dict[str, object] = field(default_factory=dict)  # under Pillow's names


def take_apart(file: Source, header_only: bool = False) -> Parts:
    """The parts of a file that begins with SIGNATURE; without its pixels if `header_only`.

    Raises nothing on damage: a damaged chunk that makes pixels is left for the decoder to refuse,
    one that does not is as good as not there.
    """
    # One walk over the file: chunks of pixels are copied, those of meaning read under bounds.
    file.seek(len(SIGNATURE))
    pieces, found, texts = [SIGNATURE], {}, {}
    for name, size in _chunks(file):
        if name in _PIXELS and not (header_only and name == b"IDAT"):
            # With its length, name and checksum, which the decoder looks at.
            file.seek(-8, 1)
            pieces.append(file.read(size + 12))
        elif name in _KEPT and size <= LARGEST:
            # Each may be there once (5.6): of several the first one counts.
            found.setdefault(name, _body(file, name, size))
        elif name in _TEXTS and size <= LARGEST:
            keyword, text = _text(name, _body(file, name, size) or b"")
            texts.setdefault(keyword, text)
    # Pillow needs one chunk of pixels before it believes the header.
    if header_only:
        pieces.insert(-1 if pieces[-1][4:8] == b"IEND" else len(pieces), chunk(b"IDAT", b""))
    bare = b"".join(pieces)
    parts = Parts(bare, palette=any(piece[4:8] == b"PLTE" for piece in pieces))
    # Byte 24 and 25 of a file: depth and kind of colour (11.2.1).
    if len(bare) >= _HEADER:
        parts.depth, parts.colour = bare[24], bare[25]
    parts.info = _info({name: body for name, body in found.items() if body is not None}, texts)
    return parts


def _chunks(file: Source) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk, the file standing at its body."""
    while len(head := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        after = file.tell() + size + 4
        yield name, size
        # What follows the end, a second picture or a letter, is no part of the file.
        if name == b"IEND":
            return
        file.seek(after)


def _body(file: Source, name: bytes, size: int) -> bytes | None:
    """A chunk's body; None where its checksum says that it is damaged."""
    data = file.read(size + 4)
    body, check = data[:size], data[size:]
    return body if check == struct.pack(">I", zlib.crc32(name + body)) else None


def _text(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Keyword and text of one of the two kinds that matter here; else two empty ones."""
    # Of thousands of words that programs write, two say which way up the picture is.
    keyword, _, rest = body.partition(b"\0")
    if keyword not in (_XMP, _RAW_EXIF):
        return b"", b""
    # iTXt has a flag and three more fields before its text (11.3.3.4), zTXt one byte of method.
    packed = name == b"zTXt"
    if name == b"iTXt":
        packed, rest = rest[:1] == b"\1", (rest[2:].split(b"\0", 2) + [b"", b""])[2]
    elif packed:
        rest = rest[1:]
    return keyword, (inflate(rest) or b"") if packed else rest


def inflate(packed: bytes) -> bytes | None:
    """What a zlib stream holds; None where it is damaged or holds more than LARGEST."""
    stream = zlib.decompressobj()
    try:
        # A megabyte may inflate to a gigabyte: no more is asked of zlib than is taken.
        data = stream.decompress(packed, LARGEST)
    except zlib.error:
        return None
    return data if stream.eof else None


def _info(found: dict[bytes, bytes], texts: dict[bytes, bytes]) -> dict[str, object]:
    """What the chunks say, under the names by which Pillow has it; cICP as "cicp"."""
    info: dict[str, object] = {}
    # A name, a method and the profile (11.3.2.3).
    profile = found.get(b"iCCP", b"").partition(b"\0")[2]
    if icc := inflate(profile[1:]):
        info["icc_profile"] = icc
    if len(body := found.get(b"cICP", b"")) == 4:
        info["cicp"] = tuple(body)
    if b"sRGB" in found:
        info["srgb"] = found[b"sRGB"][:1]
    # Numbers with a fraction are whole ones of 100,000ths (11.3.2.1, 11.3.2.2).
    if len(body := found.get(b"gAMA", b"")) == 4:
        info["gamma"] = struct.unpack(">I", body)[0] / 100_000
    if len(body := found.get(b"cHRM", b"")) == 32:
        info["chromaticity"] = tuple(value / 100_000 for value in struct.unpack(">8I", body))
    if len(body := found.get(b"pHYs", b"")) == 9 and body[8] == 1:  # a unit other than 1 is none
        info["dpi"] = tuple(value * METRE for value in struct.unpack(">2I", body[:8]))
    # The chunk of its own is newer than many programs, which hide EXIF in a text.
    exif = found.get(b"eXIf") or _raw_exif(texts.get(_RAW_EXIF, b""))
    if exif:
        info["exif"] = _EXIF_PREFIX + exif.removeprefix(_EXIF_PREFIX)
    # Of XMP the orientation alone: Pillow reads it there where EXIF has none.
    if turned := _TURNED.search(texts.get(_XMP, b"")):
        info["xmp"] = turned[0]
    return info


def _raw_exif(text: bytes) -> bytes:
    """EXIF in hexadecimal digits behind three lines, as ImageMagick writes it."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def deep_samples(parts: Parts) -> list[np.ndarray] | None:
    """Planes R, G, B and, if there is transparency, alpha of a 16-bit file; None if unreadable.

    OpenCV reads colour, of which Pillow keeps eight bits.
    """
    # Unchanged: neither turned by EXIF nor cut to eight bits. Channels come as blue, green, red.
    samples = cv2.imdecode(np.frombuffer(parts.bare, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        return None
    return [samples[..., channel] for channel in (2, 1, 0, 3)[: samples.shape[2]]]


def encode_deep(planes: list[np.ndarray]) -> bytes | None:
    """16-bit file of one plane (gray), three (R, G, B) or four (with alpha); None if it fails."""
    # OpenCV's order of channels: blue, green, red, alpha.
    order = (2, 1, 0, 3)[: len(planes)] if planes[1:] else (0,)
    stacked = np.dstack([planes[channel] for channel in order])
    written, data = cv2.imencode(".png", stacked, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    return data.tobytes() if written else None


def with_chunks(
    data: bytes, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None
) -> bytes:
    """The file with profile, EXIF and density behind its header."""
    # Profile and density must stand before the pixels (5.6).
    extra = b""
    if icc:
        extra += chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if dpi:
        extra += chunk(b"pHYs", struct.pack(">2IB", *(round(value / METRE) for value in dpi), 1))
    if exif:
        extra += chunk(b"eXIf", exif.removeprefix(_EXIF_PREFIX))
    return data[:_HEADER] + extra + data[_HEADER:]


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
