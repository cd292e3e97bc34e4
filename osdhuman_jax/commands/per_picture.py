"""What commands have in common that make something of each picture of a folder, one after another.

Needed by `parts`, `poses` and `captions`. A picture that fails is named and does not stop the
others; what is there stays, so that the same command goes on where it was stopped.
"""

import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from osdhuman_jax.cli import CommandError, bar
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.listing import list_images, real

if TYPE_CHECKING:
    from osdhuman_jax.config import Json
    from osdhuman_jax.images.codec import Pixels


class PictureJob(NamedTuple):
    """A picture, and what is to be made of it."""

    path: Path
    name: Path  # of the picture below its folder
    target: Path  # a file, or a name in a file of lines

    @property
    def file(self) -> str:
        """The picture's name as files of lines have it."""
        return spelled(self.name.as_posix())


if TYPE_CHECKING:
    ReadPicture = tuple[PictureJob, Pixels]


def check_apart(output: Path, pictures: Path) -> None:
    """Raise CommandError where files would be written among the pictures, and read as such."""
    if real(output).is_relative_to(real(pictures)):
        raise CommandError(f"--output {spelled(output)} lies in --pictures {spelled(pictures)}")


def plan(pictures: Path, kind: str, place: Callable[[Path], Path]) -> list[PictureJob]:
    """A job for each picture; `place` is where its `kind` goes, by name. Raises CommandError."""
    # By their targets, of which no two pictures may have the same.
    jobs: dict[Path, PictureJob] = {}
    for path, name in list_images(pictures):
        target = place(name)
        if target in jobs:
            both = f"{spelled(jobs[target].name)} and {spelled(name)}"
            raise CommandError(f"{both} would both have the {kind} {spelled(target)}")
        jobs[target] = PictureJob(path, name, target)
    if not jobs:
        raise CommandError(f"--pictures {spelled(pictures)}: no pictures in this folder")
    return list(jobs.values())


def without_line(jobs: Sequence[PictureJob], known: Container[str]) -> list[PictureJob]:
    """The jobs whose pictures have no line in a file of lines, of which `known` are the stems."""
    from osdhuman_jax.data.picture_lines import stem

    return [job for job in jobs if stem(job.file) not in known]


def add_lines(
    command: str,
    jobs: Sequence[PictureJob],
    file: Path,
    lines: "Callable[[Sequence[ReadPicture]], Sequence[Json]]",
    size: int = 1,
) -> int:
    """Add the line of each picture to a file of lines; returns how many.

    Args:
        lines: makes those of up to `size` pictures; what it raises, ValueError or OSError, costs
            these and no others.

    Raises DataError where another run is writing to it, and OSError.
    """
    from osdhuman_jax.data.picture_lines import appended

    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = 0
    with appended(file) as add, bar(len(jobs), "picture", shown=bool(jobs)) as progress:
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            read = [one for job in batch for one in _read(command, job)]
            try:
                for line in lines(read) if read else ():
                    add(line)
                    made += 1
            except (OSError, ValueError) as error:
                more = f" and {len(read) - 1} more" if read[1:] else ""
                print(f"{command}: {spelled(read[0][0].path)}{more}: {error}", file=sys.stderr)
            progress.update(len(batch))
    return made


def _read(command: str, job: PictureJob) -> "list[ReadPicture]":
    """A job with its picture's pixels; none where it cannot be read, which is said."""
    from osdhuman_jax.images.codec import read_rgb

    try:
        return [(job, read_rgb(job.path))]
    except (OSError, ValueError) as error:
        print(f"{command}: {spelled(job.path)}: {error}", file=sys.stderr)
        return []


def each(
    command: str, jobs: Sequence[PictureJob], make: Callable[[PictureJob], bool]
) -> tuple[int, int]:
    """How many were made, and of how many pictures `make` says that their source has none."""
    made = unknown = 0
    with bar(len(jobs), "picture", shown=bool(jobs)) as progress:
        for job in jobs:
            try:
                done = make(job)
                made, unknown = made + done, unknown + (not done)
            except (OSError, ValueError) as error:
                print(f"{command}: {spelled(job.path)}: {error}", file=sys.stderr)
            progress.update(1)
    return made, unknown


def status(made: int, there: int, failed: int) -> int:
    """The exit status: 0 all there, 1 some could not be made, 2 none was."""
    return (1 if failed else 0) if made + there else 2
