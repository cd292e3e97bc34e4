"""Folders of pictures that belong together: partners by relative path without suffix, checked.

`evaluate` compares what several methods made of the same pictures. A mean over unlike sets, or of
pictures that were scaled to fit, would be a number that nobody can read: so a picture that one
folder lacks, or has in another size, is an error that names it, before anything is scored.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from osdhuman_jax.cli import bar
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import ImageError, decode
from osdhuman_jax.images.listing import named_images

# By this name the folder of references stands among those of the methods.
REFERENCE = "reference"
# The folder of what was restored, where a metric needs it: a method's name has no slash.
DEGRADED = "degraded/"
LISTED = 20  # names in one refusal


@dataclass(frozen=True)
class File:
    """A picture on disk that could be decoded."""

    path: Path
    digest: str
    size: tuple[int, int]  # height, width


@dataclass
class Pictures:
    """What is compared: {method: {name: file}}, the same names in all, and their references."""

    methods: dict[str, dict[str, File]]
    reference: dict[str, File] | None
    left_out: dict[str, str] = field(default_factory=dict)  # why, by name
    degraded: dict[str, File] | None = None  # of any size

    @property
    def names(self) -> list[str]:
        """Names of all pictures, in order."""
        # Every method has the same ones.
        return sorted(next(iter(self.methods.values())))


def gather(
    folders: dict[str, Path],
    reference: Path | None,
    allow_missing: bool,
    degraded: Path | None = None,
) -> Pictures:
    """Files that every folder has, checked; degraded ones are given where a metric needs them.

    Raises ValueError with the names of pictures that a folder lacks or cannot give (unless
    `allow_missing`, which leaves them out of all folders) or whose sizes disagree.
    """
    # Every name in any folder, and why those that are not in all of them are left out.
    both = {**folders, **({REFERENCE: reference} if reference else {})}
    both |= {DEGRADED: degraded} if degraded else {}
    found = {label: named_images(folder) for label, folder in both.items()}
    names = sorted(set().union(*found.values()))
    left_out = {
        name: f"not in {spelled(both[label])}"
        for name in names
        for label in both
        if name not in found[label]
    }
    # The rest is decoded once: a picture that is damaged in one folder counts in none.
    files: dict[str, dict[str, File]] = {label: {} for label in both}
    common = [name for name in names if name not in left_out]
    with bar(len(common), "picture") as progress:
        progress.set_description("reading")
        for name in common:
            progress.update()
            try:
                opened = {label: _open(found[label][name]) for label in both}
            except ImageError as error:
                left_out[name] = str(error)
                continue
            for label, file in opened.items():
                files[label][name] = file
    # What is left, or why there is nothing to compare.
    if left_out and not allow_missing:
        _refuse("pictures without a partner (--allow_missing leaves them out)", left_out)
    if not files[next(iter(folders))]:
        raise ValueError(f"no picture is in all of {', '.join(map(spelled, both.values()))}")
    # A method may enlarge: degraded pictures are never held against others pixel by pixel.
    before = files.pop(DEGRADED, None)
    _refuse("pictures of unequal size", _unequal(files))
    return Pictures({m: files[m] for m in folders}, files.get(REFERENCE), left_out, before)


def _open(path: Path) -> File:
    """Read and decode a file. Raises ImageError, with the path, where that fails."""
    # The digest is of the file, since values are kept by it; the pixels are dropped again.
    try:
        data = path.read_bytes()
        return File(path, hashlib.sha256(data).hexdigest(), decode(data).size)
    except (ImageError, OSError) as error:
        raise ImageError(f"{spelled(path)}: {error}") from error


def _unequal(files: dict[str, dict[str, File]]) -> dict[str, str]:
    """Sizes of pictures that differ from their partners, by name."""
    # As people say it, width first.
    by_name = {
        name: {label: f"{f[name].size[1]} x {f[name].size[0]}" for label, f in files.items()}
        for name in next(iter(files.values()))
    }
    return {
        name: ", ".join(f"{label} {size}" for label, size in sizes.items())
        for name, sizes in by_name.items()
        if len(set(sizes.values())) > 1
    }


def _refuse(why: str, names: dict[str, str]) -> None:
    """Raise ValueError with the first names and reasons, if there are any."""
    if names:
        lines = [f"\n  {name}: {reason}" for name, reason in list(names.items())[:LISTED]]
        more = f"\n  and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise ValueError(f"{why}:{''.join(lines)}{more}")
