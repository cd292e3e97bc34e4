"""Every picture is decoded with its boxes where they belong, or refused for a stated reason."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from picture_files import SRGB, bomb, encoded, exif
from PIL import Image, ImageCms
from skimage import data

from curate.config import DecodeConfig
from curate.cropping.decode import DecodedPicture, Refused, decode_source
from curate.schema import Box, Pixels, SourceImage

PHOTO = data.astronaut()[:120, 100:260]  # 160 wide, 120 high
MARK = (30, 20, 50, 50)  # a red patch in the upright picture, and its box
TURNED_BACK = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}  # upright to what a camera of that EXIF orientation stores
# A profile in which red and blue primaries have changed places.
SWAPPED = SRGB.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
SWAPPED = SWAPPED.replace(b"s\0R\0G\0B", b"o\0d\0d\0!").replace(b"sRGB", b"odd!")


def marked() -> Pixels:
    photo = PHOTO.copy()
    x0, y0, x1, y1 = MARK
    photo[y0:y1, x0:x1] = (255, 0, 0)
    return photo


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def decode(path: Path, boxes=(), **fields) -> DecodedPicture:
    fields = {"policy": "labels", **fields}
    image = SourceImage("s/all/1", "s", str(path), boxes=tuple(map(Box, boxes)), **fields)
    return decode_source(image, DecodeConfig())


def refusal(path: Path, **fields) -> str:
    with pytest.raises(Refused) as caught:
        decode(path, **fields)
    return caught.value.reason


def red(rgb: Pixels) -> tuple[int, int, int, int]:
    """Box of the red patch."""
    rows, columns = np.nonzero((rgb[..., 0] > 200) & (rgb[..., 1] < 60) & (rgb[..., 2] < 60))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def with_exif(path: Path, orientation: int) -> Path:
    return save(path, TURNED_BACK[orientation](marked()), exif=exif(orientation))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])  # there sizes tell
def test_labels_of_the_upright_picture(tmp_path, orientation):
    path = with_exif(tmp_path / "a.png", orientation)
    picture = decode(path, [MARK], label_w=160, label_h=120)
    np.testing.assert_array_equal(picture.rgb, marked())
    assert picture.orientation == orientation and "exif" in picture.flags
    assert red(picture.rgb) == picture.boxes[0].xyxy


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_of_the_stored_picture(tmp_path, orientation):
    path = with_exif(tmp_path / "a.png", orientation)
    stored = TURNED_BACK[orientation](marked())
    height, width = stored.shape[:2]
    picture = decode(path, [red(stored)], label_w=width, label_h=height)
    np.testing.assert_array_equal(picture.rgb, marked())  # the crop is upright all the same
    assert picture.orientation == orientation
    assert red(picture.rgb) == picture.boxes[0].xyxy


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("said", ["stored", "upright", "ignore"])
@pytest.mark.parametrize("shares", [False, True])
def test_a_source_says_what_its_labels_were_drawn_on(tmp_path, orientation, said, shares):
    """Also where sizes cannot tell: after half a turn, and where labels state none."""
    path = with_exif(tmp_path / "a.png", orientation)
    drawn = marked() if said == "upright" else TURNED_BACK[orientation](marked())
    box, (height, width) = red(drawn), drawn.shape[:2]
    box = tuple(np.divide(box, (width, height) * 2)) if shares else box
    picture = decode(path, [box], exif=said, normalized=shares)
    np.testing.assert_array_equal(picture.rgb, drawn if said == "ignore" else marked())
    assert picture.orientation == (1 if said == "ignore" else orientation)
    assert picture.boxes[0].xyxy == pytest.approx(red(picture.rgb))


def test_what_a_source_says_is_held_against_its_sizes(tmp_path):
    path = with_exif(tmp_path / "a.png", 6)  # stored 120 wide, 160 high
    assert refusal(path, exif="upright", label_w=120, label_h=160) == "size_mismatch"
    assert refusal(path, exif="stored", label_w=160, label_h=120) == "size_mismatch"


def test_open_images_rotation_is_instead_of_exif(tmp_path):
    path = save(tmp_path / "a.png", np.rot90(marked(), 1), exif=exif(6))  # both undo the turn
    box = red(np.rot90(marked(), 1))
    shares = tuple(np.divide(box, (120, 160) * 2))
    picture = decode(path, [shares], normalized=True, rotation=270)
    np.testing.assert_array_equal(picture.rgb, marked())
    assert picture.boxes[0].xyxy == pytest.approx(red(picture.rgb))


def test_a_folder_can_say_that_exif_is_wrong(tmp_path):
    path = with_exif(tmp_path / "a.png", 6)
    stored = TURNED_BACK[6](marked())
    np.testing.assert_array_equal(decode(path, policy="detect", exif="ignore").rgb, stored)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_without_labels_are_turned_upright(tmp_path, orientation):
    path = with_exif(tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(decode(path, policy="detect").rgb, marked())


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_turns_pixels_and_shares_counterclockwise(tmp_path, degrees):
    path = save(tmp_path / "a.png", marked())
    x0, y0, x1, y1 = MARK
    shares = (x0 / 160, y0 / 120, x1 / 160, y1 / 120)
    picture = decode(path, [shares], normalized=True, rotation=degrees)
    np.testing.assert_array_equal(picture.rgb, np.rot90(marked(), degrees // 90))
    assert picture.boxes[0].xyxy == pytest.approx(red(picture.rgb))
    assert ("rotated" in picture.flags) == (degrees != 0)


def test_labels_of_a_scaled_copy_are_scaled_and_flagged(tmp_path):
    path = save(tmp_path / "a.png", marked())
    picture = decode(path, [tuple(2 * v for v in MARK)], label_w=320, label_h=240)
    assert picture.boxes[0].xyxy == MARK
    assert picture.flags == ("scaled_boxes",)


def test_labels_of_another_picture_are_refused(tmp_path):
    path = save(tmp_path / "a.png", marked())
    assert refusal(path, label_w=160, label_h=140) == "size_mismatch"
    assert refusal(path, label_w=120, label_h=160) == "size_mismatch"  # no EXIF turns it
    assert refusal(path, rotation=45) == "size_mismatch"


def opaque(alpha: int = 255, bands: int = 3) -> np.ndarray:
    pixels = PHOTO if bands == 3 else PHOTO[..., :1]
    return np.concatenate([pixels, np.full((120, 160, 1), alpha, np.uint8)], axis=2)


@pytest.mark.parametrize("mode", ["P", "CMYK"])
def test_palettes_and_inks_become_rgb(tmp_path, mode):
    image = Image.fromarray(PHOTO)
    path = tmp_path / {"P": "a.png", "CMYK": "a.jpg"}[mode]
    (image.quantize() if mode == "P" else image.convert(mode)).save(path)
    picture = decode(path)
    assert picture.flags == ({"P": "palette", "CMYK": "cmyk"}[mode],)
    assert np.abs(picture.rgb.astype(int) - PHOTO).mean() < 12


def test_other_profiles_become_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert decode(save(tmp_path / "lab.png", PHOTO, icc_profile=lab)).flags == ()  # of no use
    picture = decode(save(tmp_path / "srgb.png", PHOTO, icc_profile=SRGB))
    np.testing.assert_array_equal(picture.rgb, PHOTO)
    assert picture.flags == ()
    picture = decode(save(tmp_path / "odd.png", PHOTO, icc_profile=SWAPPED))
    assert picture.flags == ("icc",)
    assert np.abs(picture.rgb.astype(int) - PHOTO[..., ::-1]).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_profiles_count_in_every_mode(tmp_path, mode):
    """Opaque alpha, and a palette, mean the same colours as plain RGB."""
    image = Image.fromarray(opaque() if mode == "RGBA" else PHOTO)
    image = image.quantize() if mode == "P" else image
    image.save(tmp_path / "a.png", icc_profile=SWAPPED)
    image.convert("RGB").save(tmp_path / "plain.png", icc_profile=SWAPPED)
    picture, plain = decode(tmp_path / "a.png"), decode(tmp_path / "plain.png")
    assert picture.flags == (("palette", "icc") if mode == "P" else ("icc",))
    np.testing.assert_array_equal(picture.rgb, plain.rgb)


def test_opaque_alpha_is_dropped(tmp_path):
    np.testing.assert_array_equal(decode(save(tmp_path / "a.png", opaque())).rgb, PHOTO)


@pytest.mark.parametrize(
    ("name", "pixels", "mode", "reason"),
    [
        ("a.png", PHOTO, "L", "grayscale"),
        ("a.jpg", PHOTO, "L", "grayscale"),
        ("a.png", opaque(bands=1), None, "grayscale"),
        ("a.png", np.repeat(PHOTO[..., :1], 3, axis=2), None, "grayscale"),
        ("a.png", PHOTO, "1", "grayscale"),
        ("a.png", opaque(254), None, "alpha"),
        ("a.webp", opaque(0), None, "alpha"),
        ("a.png", PHOTO[..., 0].astype(np.uint16) * 257, None, "corrupt"),
        ("a.tif", PHOTO[..., 0].astype(np.float32), None, "corrupt"),
    ],
    ids=["L", "L jpeg", "LA", "gray RGB", "1 bit", "alpha", "clear", "16 bit", "float"],
)
def test_modes_that_are_no_photographs_have_a_reason(tmp_path, name, pixels, mode, reason):
    assert refusal(save(tmp_path / name, pixels, mode)) == reason


def test_a_faint_tint_is_gray_and_a_red_flower_is_not(tmp_path):
    gray = np.repeat(PHOTO[..., :1], 3, axis=2)
    tinted = np.clip(gray.astype(int) + (3, 0, 0), 0, 255).astype(np.uint8)
    assert refusal(save(tmp_path / "tint.png", tinted)) == "grayscale"
    gray[20:50, 30:60] = (200, 20, 20)
    assert decode(save(tmp_path / "flower.png", gray)).rgb.shape == (120, 160, 3)


def opencv(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


WHOLE = {kind: encoded(PHOTO, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")}
MOVING = {"save_all": True, "append_images": [Image.fromarray(PHOTO[::-1])]}
NO_PICTURES = {
    "cut JPEG": (WHOLE["JPEG"][:-900], "corrupt"),
    "cut PNG": (WHOLE["PNG"][:900], "corrupt"),
    "cut WebP": (WHOLE["WEBP"][:90], "corrupt"),
    "page": (b"<html><body>This photo is no longer available</body></html>", "corrupt"),
    "moving WebP": (encoded(PHOTO, "WEBP", **MOVING), "corrupt"),
    "moving PNG": (encoded(PHOTO, "PNG", **MOVING), "corrupt"),
    "GIF": (WHOLE["GIF"], "corrupt"),
    "cut BMP": (WHOLE["BMP"][:900], "corrupt"),
    "cut TIFF": (WHOLE["TIFF"][:900], "corrupt"),
    "16 bit colour": (opencv(".png", PHOTO.astype(np.uint16) * 257), "corrupt"),
    "above this project's limit": (bomb(8001, 8001), "too_large"),
    "above Pillow's own limit": (bomb(40_000, 40_000), "too_large"),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_cannot_be_used_has_a_reason(tmp_path, kind):
    """Whatever its name says; what is cut or hostile how, the codec's tests tell."""
    data, reason = NO_PICTURES[kind]
    (tmp_path / "a.jpg").write_bytes(data)
    assert refusal(tmp_path / "a.jpg") == reason


def test_placeholders_named_by_digest_are_corrupt(tmp_path):
    path = save(tmp_path / "a.png", PHOTO)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = SourceImage("s/all/1", "s", str(path))
    with pytest.raises(Refused) as caught:
        decode_source(image, DecodeConfig(blocked=("00", digest)))
    assert caught.value.reason == "corrupt"
    assert decode_source(image, DecodeConfig(blocked=("00",))).file_sha256 == digest


def test_missing_files_and_folders(tmp_path):
    assert refusal(tmp_path / "none.jpg") == "missing_file"
    assert refusal(tmp_path) == "missing_file"
    file = save(tmp_path / "a.png", PHOTO)
    assert refusal(file / "b.png") == "missing_file"


def test_one_pixel_is_a_picture_too(tmp_path):
    path = save(tmp_path / "a.png", np.array([[[200, 10, 30]]], np.uint8))
    assert decode(path).rgb.tolist() == [[[200, 10, 30]]]
