"""Groups of one photograph, so that no copy of it stands on both sides of a split.

Source images are linked by Flickr id, by the digest of the file, by the digest of the decoded
pixels, and by look: 64-bit DCT hashes at most `MAX_DISTANCE` bits apart whose 64 x 64 gray
thumbnails correlate by `MIN_CORRELATION` at least, either way round (a mirrored copy counts).
Connected images are one group. Which split a group goes to depends on its own digest and the
seed, never on the order of rows. Fingerprints and ranked crops go in, a split or a reason for each
crop comes out. The paper has a validation split of 4,216 crops; how it was drawn is not stated.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64
from scipy.cluster.hierarchy import DisjointSet

from curate.cropping.fingerprints import THUMB_SIDE, Fingerprint
from curate.schema import Reason

Hashes = UInt64[np.ndarray, " n"]
Pairs = Int64[np.ndarray, "m 2"]

# Measured on 280 photographs: of copies trimmed by 2 % on one side, 88 % lie within 4 bits, 99 %
# within 8. Among 1,900 street photographs these two numbers find 4 pairs, all of one scene.
MAX_DISTANCE = 8  # bits
MIN_CORRELATION = 0.8
# Hashes that are compared with many others at once.
HASHES_AT_ONCE = 256
# First bit and number of bits of each band. There is one band more than MAX_DISTANCE, so that two
# hashes within that distance agree in one band at least.
BANDS = tuple((7 * band, 7) for band in range(8)) + ((56, 8),)


@dataclass(frozen=True)
class Member:
    """One source image as the split sees it."""

    image_id: str
    file_sha256: str
    pixel_sha256: str
    # Empty where it is unknown.
    flickr_id: str
    # Width times height.
    pixels: int
    fingerprint: Fingerprint


def correlation(a: bytes | memoryview, b: bytes | memoryview, mirror: bool = False) -> float:
    """Normalised cross-correlation of two thumbnails in [-1, 1].

    A thumbnail of one gray has none: then it is 1 for equal thumbnails and 0 for others.

    Args:
        mirror: whether the second one is mirrored first.
    """
    x, y = (
        np.frombuffer(t, np.uint8).reshape(THUMB_SIDE, THUMB_SIDE).astype(np.float64)
        for t in (a, b)
    )
    x, y = x - x.mean(), (y[:, ::-1] if mirror else y) - y.mean()
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else float(a == b)


def close_pairs(hashes: Hashes) -> Iterator[Pairs]:
    """Yields all pairs i < j of hashes within MAX_DISTANCE bits; a pair may come twice."""
    # Only hashes that agree in a band are compared, which is few of all pairs.
    for first, bits in BANDS:
        band = (hashes >> np.uint64(first)) & np.uint64((1 << bits) - 1)
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        for group in np.split(order, ends):
            for start in range(0, len(group), HASHES_AT_ONCE):
                rows, others = group[start : start + HASHES_AT_ONCE], group[start:]
                near = np.bitwise_count(hashes[rows][:, None] ^ hashes[others]) <= MAX_DISTANCE
                i, j = np.nonzero(near)
                yield np.stack([rows[i], others[j]], axis=1)[i < j].astype(np.int64)


def lookalikes(
    fingerprints: Sequence[Fingerprint], known: Callable[[int, int], bool]
) -> Iterator[tuple[int, int]]:
    """Yields pairs of images that look the same, as they are or with one of them mirrored.

    Pairs that are `known` to belong together are left out, which saves comparing them.
    """
    count = len(fingerprints)
    hashes = [p.phash for p in fingerprints] + [p.mirrored for p in fingerprints]
    for pairs in close_pairs(np.array(hashes, np.uint64)):
        # Two mirrored hashes are as far apart as the two that are not.
        for a, b in pairs[pairs[:, 0] < count]:
            i, j, mirror = int(a), int(b) % count, bool(b >= count)
            if known(i, j):
                continue
            if correlation(fingerprints[i].thumb, fingerprints[j].thumb, mirror) >= MIN_CORRELATION:
                yield i, j


def group_images(images: Sequence[Member]) -> list[str]:
    """The group of each image, named by the least file digest in it."""
    connected = DisjointSet(range(len(images)))
    # Equal digests or Flickr numbers: each image is joined with the first that has the same.
    first: dict[Hashable, int] = {}
    for i, image in enumerate(images):
        keys = [("file", image.file_sha256), ("pixels", image.pixel_sha256)]
        keys += [("flickr", image.flickr_id)] if image.flickr_id else []
        for key in keys:
            connected.merge(i, first.setdefault(key, i))
    for i, j in lookalikes([image.fingerprint for image in images], connected.connected):
        connected.merge(i, j)
    # A group's name depends on its content alone, not on the order of rows.
    roots = [connected[i] for i in range(len(images))]
    least: dict[int, str] = {}
    for root, image in zip(roots, images, strict=True):
        least[root] = min(least.get(root, image.file_sha256), image.file_sha256)
    return [least[root] for root in roots]


def seeded_key(seed: int, name: str) -> str:
    """A key to sort names by, for an order that looks random.

    The place of a name relative to another depends on the seed and on these two alone, so that more
    names change nothing between those that were there.
    """
    return hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class RankedCrop:
    """A selected crop as the split sees it."""

    crop_id: str
    image_id: str
    z: float


# The split and the reason of a crop, of which one is empty.
Verdict = tuple[str, str]


def drop_copies(
    crops: Sequence[RankedCrop], images: dict[str, Member], groups: dict[str, str], most: int
) -> dict[str, str]:
    """Reasons of the crops that repeat a photograph.

    In a group only the largest image keeps crops, `most` of them at most, best z first.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for crop in crops:
        members[groups[crop.image_id]].add(crop.image_id)
    ranked = {g: sorted(ids, key=lambda i: (-images[i].pixels, i)) for g, ids in members.items()}
    twins = {name for ids in ranked.values() for name in repeated([images[i] for i in ids])}
    # The best crops of the largest image stay, as many as a group may have. The others' reason says
    # whether their image is the same file, or only looks the same.
    left: dict[str, int] = defaultdict(lambda: most)
    reasons: dict[str, str] = {}
    for crop in sorted(crops, key=lambda c: (-c.z, c.crop_id)):
        group = groups[crop.image_id]
        if crop.image_id != ranked[group][0]:
            reasons[crop.crop_id] = Reason.DUP_EXACT if crop.image_id in twins else Reason.DUP_NEAR
        elif left[group] == 0:
            reasons[crop.crop_id] = Reason.DUP_NEAR
        else:
            left[group] -= 1
    return reasons


def repeated(images: Sequence[Member]) -> list[str]:
    """Names of the images that have the file or the pixels of one before them."""
    seen: set[str] = set()
    found = []
    for image in images:
        digests = {image.file_sha256, image.pixel_sha256}
        if digests & seen:
            found.append(image.image_id)
        seen |= digests
    return found


def assign(
    crops: Sequence[RankedCrop],
    images: dict[str, Member],
    groups: dict[str, str],
    *,
    seed: int,
    val: int,
    max_per_group: int,
    excluded: Iterable[str] = (),
) -> dict[str, Verdict]:
    """The split and the reason of each selected crop, of which one is empty.

    Args:
        groups: group of each image (see `group_images`).
        val: crops of the validation split; whole groups in the order of `seeded_key` fill it, and
            what the last of them has too many is dropped as split_conflict, never trained on.
        excluded: groups that occur in a set to be kept apart; their crops are split_conflict.
    """
    verdicts: dict[str, Verdict] = {}
    # Copies go first, so that a split is counted in photographs and not in repetitions.
    copies = drop_copies(crops, images, groups, max_per_group)
    verdicts |= {crop_id: ("", reason) for crop_id, reason in copies.items()}
    barred, by_group = set(excluded), defaultdict(list)
    for crop in sorted(crops, key=lambda c: (-c.z, c.crop_id)):
        if crop.crop_id not in copies:
            by_group[groups[crop.image_id]].append(crop.crop_id)
    # Whole groups fill the validation split; the rest is for training.
    room = val
    for group in sorted(by_group, key=lambda g: seeded_key(seed, g)):
        ids = by_group[group]
        if group in barred:
            verdicts |= {crop_id: ("", Reason.SPLIT_CONFLICT) for crop_id in ids}
            continue
        taken = min(room, len(ids))
        room -= taken
        rest = ("", Reason.SPLIT_CONFLICT) if taken else ("train", "")
        verdicts |= {crop_id: ("val", "") for crop_id in ids[:taken]}
        verdicts |= {crop_id: rest for crop_id in ids[taken:]}
    return verdicts


def sample_strata(
    values: Sequence[float], names: Sequence[str], count: int, seed: int, strata: int = 5
) -> set[str]:
    """`count` of `names`, an equal share of each quantile bin of their values as far as it goes.

    Within a bin the order of `seeded_key` decides; what a bin lacks is taken from the others by
    the same order. All names where there are no more than `count`.
    """
    # Bins of equal size by value; names decide between equal values.
    order = sorted(range(len(names)), key=lambda i: (values[i], names[i]))
    bins = [list(part) for part in np.array_split(np.array(order, np.int64), strata)]
    chosen: list[int] = []
    spare: list[int] = []
    for number, members in enumerate(bins):
        share = count * (number + 1) // strata - count * number // strata
        ranked = sorted((int(i) for i in members), key=lambda i: seeded_key(seed, names[i]))
        chosen += ranked[:share]
        spare += ranked[share:]
    # What is left of all bins stands in for what some of them lack.
    spare.sort(key=lambda i: seeded_key(seed, names[i]))
    return {names[i] for i in (chosen + spare)[: min(count, len(names))]}
