"""The score of NTIRE 2026's challenge on real-world face restoration, and its identity gate.

    score({"clipiqa": 0.7, "maniqa": 0.6, "musiq": 75, "niqe": 4, "qalign": 4.5, "fid-ffhq": 50})

Both are as the organisers' repository (jkwang28/NTIRE2026_RealWorld_Face_Restoration) has them, the
score in its README, the thresholds in its eval.py: the README still names those of 2025 for two of
the sets, 0.30, while its conclusion names 0.20 as the lowest. Similarities are AdaFace's, cosines
of a restored face and the degraded one. They are not computed here but read from the table of
pictures that eval.py writes. The report is arXiv 2604.10532.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from osdhuman_jax.filenames import spelled

NAME = "ntire2026"
PARTS = ("clipiqa", "maniqa", "musiq", "niqe", "qalign", "fid-ffhq")
# The lowest similarity of a set's faces, and how many may be below theirs in all.
LOWEST = {
    "CelebA": 0.5,
    "LFW-Test": 0.6,
    "CelebChild-Test": 0.6,
    "Wider-Test": 0.2,
    "WebPhoto-Test": 0.25,
}
MOST_BELOW = 10
_COLUMNS = ("Filename", "Dataset", "ID_Sim")


@dataclass(frozen=True)
class Gate:
    """How many faces have lost their person."""

    below: int
    faces: int

    @property
    def passed(self) -> bool:
        """Whether the score counts."""
        return self.below <= MOST_BELOW


def score(means: Mapping[str, float | None]) -> float | None:
    """The challenge's score of mean values; None where one of them is missing."""
    values = {name: means.get(name) for name in PARTS}
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) < len(PARTS):
        return None
    return math.fsum(
        (
            known["clipiqa"],
            known["maniqa"],
            known["musiq"] / 100,
            max(0.0, (10 - known["niqe"]) / 10),
            known["qalign"] / 5,
            max(0.0, (100 - known["fid-ffhq"]) / 100),
        )
    )


def read_gate(path: Path, pictures: Iterable[str]) -> Gate:
    """The gate by a table of similarities of a method's pictures, named without suffix.

    Raises ValueError, in one line, where it is no such table, or one of other pictures.
    """
    below, faces = 0, {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        try:
            if lacking := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
                raise ValueError(f"lacks the column {', '.join(lacking)}")
            for row in rows:
                found = float(row["ID_Sim"])
                # A similarity that is no number is above nothing.
                below += not found >= LOWEST[row["Dataset"]]
                stem = PurePath(row["Filename"]).stem
                if stem in faces:
                    raise ValueError(f"has {stem!r} twice")
                faces[stem] = row["Filename"]
        except KeyError as error:
            known = ", ".join(LOWEST)
            raise ValueError(f"{spelled(path)}: no set {error}; there are {known}") from error
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{spelled(path)}: not eval.py's table: {error!s:.160}") from error
    if not faces:
        raise ValueError(f"{spelled(path)}: holds no face")
    # The table has files without the folders that they lie in.
    names = {PurePath(name).name: name for name in pictures}
    if strange := [file for stem, file in faces.items() if stem not in names]:
        raise ValueError(f"{spelled(path)}: {strange[0]!r:.80}: none of the method's pictures")
    if lacking := [name for stem, name in names.items() if stem not in faces]:
        raise ValueError(f"{spelled(path)}: lacks the method's picture {lacking[0]}")
    return Gate(below, len(faces))
