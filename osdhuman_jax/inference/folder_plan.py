"""What is to be done with a folder of photographs, decided before anything is done.

Each input becomes a job with one output, which no other job has; whatever would lose a picture or
take an output for an input is refused here, with the names. Files are looked at by their headers
alone: no network is loaded, and no pixel decoded.
"""

import glob
import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import MAX_PIXELS, ImageError, check_side, read_size
from osdhuman_jax.images.formats import SUFFIXES
from osdhuman_jax.images.listing import SUFFIXES as LISTED_SUFFIXES
from osdhuman_jax.images.listing import list_images, other_pictures, real
from osdhuman_jax.images.sizes import scaled_size
from osdhuman_jax.inference.jobs import Job, UsageError
from osdhuman_jax.inference.memory import EXHAUSTED, is_exhausted
from osdhuman_jax.inference.settings import Settings

LISTED = 20  # names in one refusal
AHEAD = 1  # batches that are read, and that are written, while one is computed
ALONE = MAX_PIXELS // (1 + 2 * AHEAD)  # pixels; a larger batch has no other beside it in memory


def plan(source: str, output: Path, settings: Settings) -> list[Job]:
    """What is to be done, from the files' headers. Raises UsageError if it must not be."""
    pairs = [(path, name) for path, name in list_images(source) if not _is_own(path, name, output)]
    if not pairs:
        others = other_pictures(source)
        # A pattern may be meant by what is no name here.
        gone = not (os.path.exists(source) or glob.has_magic(source))
        why = "no such file or folder" if gone else f"not one {' '.join(LISTED_SUFFIXES)}"
        why = f"but {others}" if others else why
        raise UsageError(f"no images found: {spelled(source)} ({why})")
    # What would have which name.
    named: dict[Path, list[Path]] = {}
    for path, name in pairs:
        named.setdefault(name.with_suffix(SUFFIXES[settings.format]), []).append(path)
    # What would lose a picture, or make the next run take outputs for inputs.
    if _root(*pairs[0]) == real(output) and _are_found(source, named):
        why = "the next run would take outputs for inputs"
        raise UsageError(f"--output {output} is the folder of the inputs: {why}")
    several = "several inputs would have one output (rename some, or restore them apart)"
    refuse(several, [p for g in named.values() if g[1:] for p in g])
    folders = {folder for name in named for folder in name.parents}
    refuse("outputs would also be folders of others", [name for name in named if name in folders])
    inputs = {real(path) for path, _ in pairs}
    clash = [name for name in named if real(output / name) in inputs]
    refuse("outputs would replace inputs", clash)
    outside = {name.parent for name in named if not is_inside(output, name.parent)}
    refuse("links lead out of the output folder", [output / name for name in sorted(outside)])
    return [_inspect(paths[0], name, settings) for name, paths in named.items()]


def _is_own(path: Path, name: Path, output: Path) -> bool:
    """Whether an input lies in an output folder that lies inside the input folder."""
    root, out = _root(path, name), real(output)
    return out != root and out.is_relative_to(root) and real(path).is_relative_to(out)


def _root(path: Path, name: Path) -> Path:
    """The folder in which an input was found by its relative name."""
    return real(path.parents[len(name.parts) - 1])


def _are_found(source: str, outputs: Iterable[Path]) -> bool:
    """Whether outputs that lie where the inputs do would be found beside them."""
    if Path(source).is_file():
        return False
    # A glob finds outputs again only where it matches their new suffix.
    pattern = "*" if Path(source).is_dir() else Path(source).name
    return any(fnmatch(output.name, pattern) for output in outputs)


def is_inside(output: Path, folder: Path) -> bool:
    """Whether a folder below the output folder truly is there, all links followed."""
    return real(output / folder).is_relative_to(real(output))


def refuse(why: str, names: list[Path]) -> None:
    """Raise UsageError with the first names, if there are any."""
    if names:
        more = f"\n  and {len(names) - LISTED} more" if len(names) > LISTED else ""
        lines = [f"\n  {spelled(name)}" for name in names[:LISTED]]
        raise UsageError(f"{why}:{''.join(lines)}{more}")


def _inspect(path: Path, output: Path, settings: Settings) -> Job:
    """The job of one file; marked broken if its header rules it out."""
    try:
        # From the header: a folder of thousands is planned in seconds.
        height, width = scaled_size(read_size(path), settings.upscale)
        if height * width > MAX_PIXELS:
            raise ImageError(f"more than {MAX_PIXELS} pixels after upscaling")
        check_side((height, width), settings.format)
    except (ImageError, OSError) as error:
        # A bad file is a job that fails, so that the others are done and this one is reported.
        return Job(path, output, broken=one_line(error))
    return Job(path, output, (height, width))


def one_line(error: BaseException) -> str:
    """An error's first line; an OSError's without the path, which is told beside it."""
    if is_exhausted(error):
        return EXHAUSTED
    # A record and a report have one line for each file.
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
