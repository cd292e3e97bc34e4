"""The folder beside a model where published files lie while it is made, and the record of them.

    models/osediff.downloads/
      sd/unet/diffusion_pytorch_model.safetensors   a file, or a link to one that was there already
      osediff/osediff.pkl.part  osediff.pkl.part.json   what a broken download left for the next run
      downloads.json    of each file: address, bytes, SHA-256, how it was checked, date, licence

It belongs to the person, is never removed by the command, and serves another model by --from.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from osdhuman_jax.disk import hold, write_json
from osdhuman_jax.weights.download import BY_TABLE, Received, check
from osdhuman_jax.weights.homes import UNVERIFIED, Source, WeightFile
from osdhuman_jax.weights.torch_files import WeightsError

RECORD, LOCK, BY_RECORD = "downloads.json", ".lock", "as when it was fetched"


@dataclass(frozen=True)
class DownloadFolder:
    """Files below a folder by source and name; makes nothing before it is asked to."""

    path: Path

    def place(self, source: Source, file: WeightFile) -> Path:
        """Where a file belongs."""
        return self.path / source.folder / file.name

    def unfinished(self, source: Source, file: WeightFile) -> int:
        """Bytes that a broken download left of a file."""
        part = self.place(source, file)
        part = part.with_name(f"{part.name}.part")
        return part.stat().st_size if part.is_file() else 0

    def has(self, source: Source, file: WeightFile) -> bool:
        """Whether a file was fetched before, by its size and by what can prove it."""
        # Quick, for a list: bytes are read and compared by `proved`, once they are needed.
        place, row = self.place(source, file), self._row(source, file)
        size = file.bytes or row.get("bytes")
        return place.is_file() and bool(file.sha256 or row) and place.stat().st_size == size

    def proved(self, source: Source, file: WeightFile) -> Received:
        """A file that was fetched before, compared with the table or with its record.

        Raises WeightsError where it is not what it was.
        """
        place, row = self.place(source, file), self._row(source, file)
        # The table decides where it can; a record only says that nothing changed since.
        try:
            digest = check(place, file)
            if not file.sha256 and digest != row.get("sha256"):
                raise WeightsError(f"{place}: SHA-256 {digest}, not as in {RECORD}")
        except WeightsError as error:
            raise WeightsError(f"{error}; remove it and give the same command again") from error
        checked = BY_TABLE if file.sha256 else BY_RECORD
        address = row.get("address", str(place))
        return Received(place, address, place.stat().st_size, digest, checked)

    def link(self, source: Source, file: WeightFile, found: Path) -> Received:
        """A file of the person's own in its place, checked. Raises WeightsError."""
        # A link costs no room, and importers read through it; a file is never moved or changed.
        digest, place = check(found, file), self.place(source, file)
        if not (place.exists() and place.samefile(found)):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(found.resolve())
        checked = BY_TABLE if file.sha256 else UNVERIFIED
        return Received(place, str(found), found.stat().st_size, digest, checked)

    def record(self, source: Source, file: WeightFile, received: Received) -> None:
        """Note what a file is and where it came from."""
        row = {
            "file": self._name(source, file),
            "address": received.address,
            "bytes": received.bytes,
            "sha256": received.sha256,
            "checked": received.checked,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "licence": source.licence,
            "licence_link": source.licence_link,
        }
        # Written whole after every file, so that a killed run forgets none.
        others = [old for old in self._rows() if old.get("file") != row["file"]]
        write_json(self.path / RECORD, [*others, row])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made if need be, for this process alone. Raises WeightsError."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Two runs that append to one .part would spoil it.
        try:
            with hold(self.path / LOCK):
                yield
        except BlockingIOError as error:
            raise WeightsError(
                f"{self.path}: another process downloads into it; wait for it to end"
            ) from error

    def _name(self, source: Source, file: WeightFile) -> str:
        return str(PurePosixPath(source.folder) / file.name)

    def _row(self, source: Source, file: WeightFile) -> dict[str, Any]:
        """What is recorded of a file, if anything is."""
        name = self._name(source, file)
        return next((row for row in self._rows() if row.get("file") == name), {})

    def _rows(self) -> list[dict[str, Any]]:
        try:
            rows = json.loads((self.path / RECORD).read_text())
        except (OSError, ValueError):
            return []
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def find(folder: Path, files: Iterable[WeightFile]) -> dict[WeightFile, Path]:
    """Those of the files that lie anywhere below a folder, by name.

    A name with folders, as unet/config.json, must lie in such folders. Of several the one of the
    table's size is taken, then the one that lies highest.
    """
    # One walk for all names: a person's folder of downloads may be large.
    by_name: dict[str, list[Path]] = {}
    for base, _, names in os.walk(folder):
        for name in names:
            by_name.setdefault(name, []).append(Path(base, name))
    found = {}
    for file in files:
        parts = PurePosixPath(file.name).parts
        fits = [p for p in by_name.get(parts[-1], []) if p.parts[-len(parts) :] == parts]
        fits = [path for path in fits if path.is_file()]
        # Of an old and a new copy the right size tells; a digest would cost a reading of each.
        if fits:
            found[file] = min(fits, key=lambda p: _preference(p, file))
    return found


def _preference(path: Path, file: WeightFile) -> tuple[bool, int, str]:
    return (bool(file.bytes) and path.stat().st_size != file.bytes, len(path.parts), str(path))


def free_space(path: Path) -> int:
    """Free bytes on the disk where a path is, or will be."""
    whole = path.absolute()
    there = next(folder for folder in (whole, *whole.parents) if folder.exists())
    return shutil.disk_usage(there).free
