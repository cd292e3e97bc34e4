"""Copies of a photograph end in one group, groups end in one split, and nothing else moves them."""

import io

import cv2
import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.cropping.fingerprints import Fingerprint, fingerprint
from curate.selection.split import (
    MAX_DISTANCE,
    Member,
    RankedCrop,
    assign,
    close_pairs,
    correlation,
    group_images,
    sample_strata,
)


def photographs() -> dict[str, np.ndarray]:
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    names = ("astronaut", "chelsea", "coffee", "rocket")
    found = {name: getattr(skimage.data, name)() for name in names}
    return found | {"hopper": np.asarray(Image.open(hopper).convert("RGB"))}


PHOTOGRAPHS = photographs()


def jpeg(rgb: np.ndarray, quality: int = 50) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def smaller(rgb: np.ndarray) -> np.ndarray:
    return cv2.resize(rgb, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)


def trimmed(rgb: np.ndarray) -> np.ndarray:
    dy, dx = rgb.shape[0] // 100, rgb.shape[1] // 100
    return rgb[dy : rgb.shape[0] - dy, dx : rgb.shape[1] - dx]


COPIES = {
    "resized": smaller,
    "recompressed": jpeg,
    "trimmed by 2 %": trimmed,
    "mirrored": lambda rgb: rgb[:, ::-1],
    "all at once": lambda rgb: jpeg(smaller(rgb[:, ::-1])),
}


def member(name: str, rgb: np.ndarray, flickr: str = "", sha: str | None = None) -> Member:
    sha = sha or name
    return Member(
        name, sha, f"{name} pixels", flickr, rgb.shape[0] * rgb.shape[1], fingerprint(rgb)
    )


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_grouped_and_different_photographs_are_not(how):
    originals = [member(name, rgb) for name, rgb in PHOTOGRAPHS.items()]
    copies = [member(f"{name} copy", COPIES[how](rgb)) for name, rgb in PHOTOGRAPHS.items()]
    groups = group_images([*originals, *copies])
    count = len(originals)
    assert groups[:count] == groups[count:]
    assert len(set(groups)) == count


def test_thumbnails_break_chains_of_like_hashes():
    a, b = fingerprint(PHOTOGRAPHS["astronaut"]), fingerprint(PHOTOGRAPHS["coffee"])
    forged = Fingerprint(a.phash, a.mirrored, b.thumb)
    pair = [Member("a", "a", "a", "", 1, a), Member("b", "b", "b", "", 1, forged)]
    assert len(set(group_images(pair))) == 2
    assert correlation(a.thumb, a.thumb) == pytest.approx(1.0)


def test_flickr_numbers_and_digests_join_what_looks_different():
    rgb = list(PHOTOGRAPHS.values())
    members = [
        member("coco/a", rgb[0], flickr="77"),
        member("voc/b", rgb[1], flickr="77"),
        member("c", rgb[2], sha="same"),
        member("d", rgb[3], sha="same"),
        member("e", rgb[4]),
    ]
    groups = group_images(members)
    assert groups[0] == groups[1] == "coco/a"  # the least file digest names the group
    assert groups[2] == groups[3] and len(set(groups)) == 3


hashes = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=40)


@settings(deadline=None, max_examples=60)
@given(hashes, st.lists(st.sets(st.integers(0, 63), max_size=10), min_size=1, max_size=20))
def test_every_close_pair_is_found(values, flips):
    values += [values[i % len(values)] ^ sum(1 << b for b in f) for i, f in enumerate(flips)]
    pieces = close_pairs(np.array(values, np.uint64))
    found = {tuple(pair) for piece in pieces for pair in piece.tolist()}
    count = len(values)
    expected = {
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if (values[i] ^ values[j]).bit_count() <= MAX_DISTANCE
    }
    assert found == expected


NO_PRINT = Fingerprint(0, 0, b"")


def pool(groups: dict[str, int]):
    """Crops of groups of one image each: name -> number of crops."""
    images = {g: Member(g, g, g, "", 1, NO_PRINT) for g in groups}
    crops = [RankedCrop(f"{g}-{i}", g, z=-float(i)) for g, n in groups.items() for i in range(n)]
    return crops, images, {g: g for g in groups}


def split(groups: dict[str, int], **changes):
    options = {"seed": 1, "val": 10, "max_per_group": 4} | changes
    return assign(*pool(groups), **options)


MANY = {f"g{i}": 1 + i % 4 for i in range(60)}


def test_val_is_exact_and_no_group_is_on_both_sides():
    verdicts = split(MANY)
    sides = {}
    for crop_id, (side, _) in verdicts.items():
        sides.setdefault(crop_id.split("-")[0], set()).add(side)
    values = [side for side, _ in verdicts.values()]
    assert values.count("val") == 10
    assert not any({"train", "val"} <= found for found in sides.values())
    assert all(reason == "split_conflict" for side, reason in verdicts.values() if not side)
    assert len(verdicts) == sum(MANY.values())


def test_order_does_not_matter_and_the_seed_does():
    crops, images, groups = pool(MANY)
    options = {"seed": 1, "val": 10, "max_per_group": 4}
    again = assign(crops[::-1], dict(reversed(images.items())), groups, **options)
    assert again == split(MANY)
    assert split(MANY, seed=2) != split(MANY)


def test_unrelated_images_move_no_group_but_at_the_border_of_val():
    before = split(MANY)
    after = split(MANY | {f"new{i}": 1 for i in range(30)})
    into_val = [c for c in before if before[c][0] != "val" and after[c][0] == "val"]
    assert into_val == []
    new = sum(side == "val" for crop, (side, _) in after.items() if crop.startswith("new"))
    out_of_val = [c for c in before if before[c][0] == "val" and after[c][0] != "val"]
    assert len(out_of_val) <= new + 3  # one group, of four crops at most, may be cut in two


def test_excluded_groups_are_in_no_split():
    verdicts = split(MANY, excluded=["g1", "g2"])
    assert {verdicts[f"g{g}-{i}"] for g in (1, 2) for i in range(2)} == {("", "split_conflict")}


def test_of_copies_the_largest_image_keeps_its_best_crops():
    images = {
        "small": Member("small", "s", "s", "", 10, NO_PRINT),
        "large": Member("large", "l", "l", "", 20, NO_PRINT),
        "twin": Member("twin", "t", "l", "", 20, NO_PRINT),  # the same pixels
    }
    crops = [RankedCrop("s0", "small", 9.0), RankedCrop("t0", "twin", 8.0)]
    crops += [RankedCrop(f"l{i}", "large", float(i)) for i in range(3)]
    groups = dict.fromkeys(images, "g")
    verdicts = assign(crops, images, groups, seed=0, val=0, max_per_group=2)
    assert {crop: reason for crop, (_, reason) in verdicts.items()} == {
        "s0": "dup_near",
        "t0": "dup_exact",
        "l0": "dup_near",
        "l1": "",
        "l2": "",
    }


def test_strata_get_equal_shares():
    names = [f"n{i}" for i in range(100)]
    values = [float(i) for i in range(100)]
    drawn = sample_strata(values, names, 20, seed=3)
    bins = np.bincount([int(name[1:]) // 20 for name in drawn], minlength=5)
    assert bins.tolist() == [4, 4, 4, 4, 4]
    assert sample_strata(values[::-1], names[::-1], 20, seed=3) == drawn
    assert sample_strata(values, names, 500, seed=3) == set(names)
