"""JPEG files that lack their end marker: whole but for these two bytes, or cut off.

libjpeg fills what is missing with gray and says nothing that Pillow passes on. What tells is that a
decoder makes nothing of bytes after the last block of a whole picture, whatever they are, and puts
them into the picture where blocks are missing.
"""

import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import JpegImagePlugin

END = b"\xff\xd9"
ALL = 2**64 - 1  # the 64 coefficients of a block, one bit each
# ITU-T T.81, annex B: 00 after FF is a coded FF, D0 to D7 are restart markers.
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # what ends a scan's coded data
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, sequential, progressive; with their codes
_PROGRESSIVE = {0xC2, 0xCA}
_SCAN, _ENDED = 0xDA, 0xD9
# Further blocks, before and after each of the eight restart markers. A decoder passes over one that
# is due soon, so the second run of markers begins in the middle.
_FURTHER = tuple(
    block * 64 + b"".join(b"\xff" + bytes([0xD0 + (n + start) % 8]) + block * 64 for n in range(8))
    for start, block in ((0, b"\xa5\x5a"), (4, b"\x7e\x15"))
)


def mended(data: bytes) -> bytes | None:
    """The file with the end marker that it may lack; None if it lacks pixels too.

    Of what a decoder would read until then the caller has judged the header: the file is decoded
    here, three times, where the marker is missing.
    """
    # Nothing to mend: no JPEG that can be read, or one with its end.
    segments = list(_segments(data))
    if not segments or segments[-1][0] != _SCAN:
        return data
    # A progressive file may lack whole scans, which would only blur the picture.
    if not _is_final(segments):
        return None
    body = data.rstrip(b"\0")  # as a file system fills up what was not written
    # A last FF is half a marker, unless the zeros cut off were the second half of a coded FF.
    body = body + b"\0" if body[-1:] == b"\xff" and body != data else body.rstrip(b"\xff")
    first, *others = (_pixels(body + end + END) for end in (b"", *_FURTHER))
    # The same picture, whatever follows: then nothing was missing.
    sound = first is not None and all(
        other is not None and np.array_equal(first, other) for other in others
    )
    return body + END if sound else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and parameters of each segment up to the end marker, or where the file ends."""
    # Behind the first marker, SOI.
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        # Any number of FF may fill up before a marker (B.1.1.2).
        if marker == 0xFF:
            at += 1
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _ENDED or at + 2 + size > len(data):
            yield _ENDED, b""
            return
        yield marker, data[at + 4 : at + 2 + size]
        at += 2 + size
        # Coded data have no length: the next marker ends them.
        if marker == _SCAN:
            found = _MARKER.search(data, at)
            if not found:
                return
            at = found.end() - 2
    yield _ENDED, b""


def _is_final(segments: list[tuple[int, bytes]]) -> bool:
    """Whether the scans bring each coefficient of each component to its last bit."""
    frame = next(((kind, body) for kind, body in segments if kind in _FRAMES), None)
    if frame is None or len(frame[1]) < 6:
        return False
    # Components by their numbers, at every third byte behind six of the frame (B.2.2).
    kind, body = frame
    left = {body[at]: ALL for at in range(6, len(body), 3)}  # coefficients by component
    for scan in (body for marker, body in segments if marker == _SCAN and body):
        count = scan[0]
        if len(scan) < 2 * count + 4:
            return False
        # Which coefficients the scan brings, and to which bit (B.2.3).
        first, last, precision = scan[2 * count + 1 : 2 * count + 4]
        if kind not in _PROGRESSIVE:
            first, last, precision = 0, 63, 0
        # The lower four bits count the bits that are still to come.
        if precision & 15 == 0:
            done = (2 ** (last - first + 1) - 1) << first if first <= last < 64 else 0
            for component in scan[1 : 2 * count : 2]:
                left[component] = left.get(component, 0) & ~done
    return not any(left.values())


def _pixels(data: bytes) -> np.ndarray | None:
    """Decoded samples of a file; None where Pillow refuses it."""
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            return np.asarray(image)
    except Exception:  # on hostile bytes Pillow's parsers raise nearly anything
        return None
