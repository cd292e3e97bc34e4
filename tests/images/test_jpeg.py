"""JPEG files without an end marker are taken if nothing else is missing, and only then."""

import cv2
import numpy as np
import pytest
from picture_files import encoded
from skimage.data import astronaut

from osdhuman_jax.images.codec import ImageError, decode
from osdhuman_jax.images.jpeg import mended

PHOTO = astronaut()[20:116, 150:250]


def written(**options) -> bytes:
    return encoded(PHOTO, "JPEG", **options)


def with_restarts(interval: int, progressive: int = 0) -> bytes:
    flags = [cv2.IMWRITE_JPEG_RST_INTERVAL, interval, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    return cv2.imencode(".jpg", PHOTO, flags)[1].tobytes()


FILES = {
    "baseline": written(quality=92),
    "coarse": written(quality=5),
    "fine": written(quality=100, subsampling=0),
    "gray": cv2.imencode(".jpg", PHOTO[..., 0])[1].tobytes(),
    "optimized": written(quality=80, optimize=True),
    "progressive": written(quality=92, progressive=True),
    "restarts": with_restarts(7),
    "a restart each block": with_restarts(1),
    "restarts, progressive": with_restarts(5, 1),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("tail", [b"", b"\xff", b"\xff\xff", b"\0" * 3, b"\0" * 5000])
def test_a_missing_end_marker_is_no_loss(kind, tail):
    whole = FILES[kind]
    assert whole[-2:] == b"\xff\xd9" and mended(whole) is whole
    picture = decode(whole[:-2] + tail)
    np.testing.assert_array_equal(picture.rgb, decode(whole).rgb)


@pytest.mark.parametrize("kind", FILES)
def test_missing_pixels_are(kind):
    whole = FILES[kind]
    scan = whole.rindex(b"\xff\xda") if "progressive" in kind else whole.index(b"\xff\xda")
    cuts = {len(whole) - 2 - n for n in (1, 2, 3, 5, 8, 13, 40, 200)}
    cuts |= {*np.linspace(scan + 20, len(whole) - 3, 25).astype(int)}
    for cut in sorted(cut for cut in cuts if cut > scan + 14):
        # a byte of the last one's padding alone decides nothing
        if mended(whole[:cut]) is not None:
            np.testing.assert_array_equal(decode(whole[:cut]).rgb, decode(whole).rgb)
            assert cut >= len(whole) - 3
            continue
        with pytest.raises(ImageError, match="truncated|damaged"):
            decode(whole[:cut])
        with pytest.raises(ImageError):
            decode(whole[:cut] + b"\0" * 300)


@pytest.mark.parametrize("kind", ["restarts", "a restart each block", "restarts, progressive"])
def test_a_cut_at_a_restart_marker_is_a_loss(kind):
    whole = FILES[kind]
    scan = whole.rindex(b"\xff\xda")
    cuts = [
        at
        for at in range(scan, len(whole) - 2)
        if 0xFFD0 <= int.from_bytes(whole[at : at + 2], "big") < 0xFFD8
    ]
    assert len(cuts) >= 5
    for cut in cuts[-9:]:
        for end in (cut, cut + 1, cut + 2):
            with pytest.raises(ImageError):
                decode(whole[:end])


def test_a_cut_between_scans_is_a_loss():
    whole = FILES["progressive"]
    starts = [at for at in range(len(whole)) if whole[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    for cut in starts[1:]:
        with pytest.raises(ImageError):
            decode(whole[:cut])
