"""How dense a picture is printed: found in every format, kept in every format."""

import io

import numpy as np
import pytest
from picture_files import encoded, exif, noise
from PIL import Image

from osdhuman_jax.images.codec import Picture, decode, encode, from_pillow, to_pillow
from osdhuman_jax.images.sizes import enlarge

PHOTO = noise()
UNIT = 0x0128


def written(kind: str, **options) -> bytes:
    return encoded(PHOTO, kind, **options)


def block(across: float, down: float, unit: int = 2, turn: int = 1) -> bytes:
    made = exif(turn, "Maker")
    made[0x011A], made[0x011B], made[UNIT] = across, down, unit
    return made.tobytes()


@pytest.mark.parametrize(
    ("data", "density"),
    [
        (written("JPEG", dpi=(300, 200)), (300, 200)),
        (written("PNG", dpi=(300, 200)), (300, 200)),
        (written("JPEG", exif=block(240, 120)), (240, 120)),
        (written("WEBP", exif=block(240, 120)), (240, 120)),
        (written("PNG", exif=block(240, 120)), (240, 120)),
        (written("WEBP", exif=block(100, 50, unit=3)), (254, 127)),
        (written("WEBP", exif=block(240, 120, unit=1)), None),
        (written("WEBP", exif=block(240, 120, turn=6)), (120, 240)),
        (written("JPEG", dpi=(300, 200), exif=block(72, 72, turn=8)), (200, 300)),
        (written("JPEG"), None),
        (written("JPEG", exif=b"Exif\0\0garbage"), None),
        (written("WEBP", exif=block(0, 0)), None),
        (written("PNG"), None),
    ],
)
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_density_is_found_and_kept(data, density, kind):
    picture = decode(data)
    if density is None:
        assert picture.density is None
    else:
        assert picture.density == pytest.approx(density, abs=0.02)
    found = decode(encode(picture, kind, quality=100)).density
    assert found == (density and pytest.approx(density, abs=0.02))


def test_deep_pictures_keep_it_and_a_jpeg_of_centimetres():
    deep = Picture(PHOTO.astype(np.uint16) * 257, density=(300.0, 200.0))
    assert decode(encode(deep), deep=True).density == pytest.approx((300, 200), abs=0.02)
    data = bytearray(written("JPEG", dpi=(100, 50)))
    data[data.index(b"JFIF\0") + 7] = 2  # dots per centimetre
    assert decode(bytes(data)).density == pytest.approx((254, 127))
    data[data.index(b"JFIF\0") + 7] = 0  # no unit: a ratio of sides
    assert decode(bytes(data)).density is None


def test_a_print_stays_as_large_when_a_picture_is_enlarged(tmp_path):
    large = enlarge(decode(written("JPEG", dpi=(300, 200), exif=block(72, 72))), 2.0)
    for kind in ("png", "jpeg", "webp"):
        data = encode(large, kind)
        assert decode(data).density == pytest.approx((600, 400), abs=0.02)
        with Image.open(io.BytesIO(data)) as image:  # one word in all places
            kept = image.getexif()
        assert (kept[0x011A], kept[0x011B], kept[UNIT]) == (600, 400, 2)
        assert kept[0x010F] == "Maker"


def test_a_density_that_a_jpeg_cannot_hold_is_no_obstacle():
    picture = Picture(PHOTO, density=(100_000.0, 50.0))
    assert decode(encode(picture, "jpeg")).density is None
    assert decode(encode(picture)).density == pytest.approx((100_000, 50), abs=0.02)


def test_pillows_images_keep_it():
    with Image.open(io.BytesIO(written("PNG", dpi=(300, 200)))) as image:
        picture = from_pillow(image)
    assert picture.density == pytest.approx((300, 200), abs=0.02)
    assert to_pillow(picture).info["dpi"] == picture.density
    odd = Image.fromarray(PHOTO)
    for dpi in ((0, 0), (float("nan"), 72), (1e9, 1e9), "300", None, (300,)):
        odd.info["dpi"] = dpi
        assert from_pillow(odd).density is None
