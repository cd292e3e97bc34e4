"""Fingerprints of sets that must have no photograph in common with the one that is made.

Needed where `--exclude` names such a set: a folder of pictures (crops or whole photographs), or the
output of another run, whose kept images count. Files of fingerprints come out, which the split
compares with those of this set.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from curate.config import ConfigError, CurateConfig, DecodeConfig
from curate.cropping import decode
from curate.cropping.fingerprints import fingerprint_row, pixels_digest
from curate.cropping.job import CODE, LIBRARIES
from curate.engine.engine import Engine
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import FINGERPRINT_SCHEMA, Row, read_rows, write_rows
from curate.engine.worker import Failure, ItemRunner
from curate.schema import Facts, SourceImage
from curate.selection.manifest import selected_rows
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.listing import list_images


def pictures(folder: str) -> list[Path]:
    """Pictures anywhere below a folder, sorted; none where it is no folder."""
    return [path for path, _ in list_images(folder)] if Path(folder).is_dir() else []


@dataclass(frozen=True)
class BarredJob:
    """The job of one set. It has one shard, by a digest of the path; output prints.parquet."""

    path: str
    name: str = "barred"
    gpus: float = 0.0
    network: bool = False

    def key(self, ledger: ShardLedger, shard: str) -> str:
        # A run's selection changes with its outputs; a folder of pictures has only their dates.
        if is_output(self.path):
            return digest(CODE, ShardLedger(self.path).outputs_key("select", "all"))
        stats = ((path, path.stat()) for path in pictures(self.path))
        listing = [(spelled(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return digest(CODE, LIBRARIES, listing)

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> Facts:
        rows = (
            fingerprints_of_run(self.path)
            if is_output(self.path)
            else fingerprints_of_folder(self.path, run)
        )
        write_rows(folder / "prints.parquet", FINGERPRINT_SCHEMA, rows)
        return {"images": len(rows)}


def is_output(path: str) -> bool:
    """Whether a folder is the output of a run that has selected."""
    return (Path(path) / "done" / "select").is_dir()


def fingerprints_of_run(path: str) -> list[Row]:
    """Fingerprints of a run's images that have kept crops, and of their crops."""
    # The crop job has made them already.
    other = ShardLedger(path)
    kept = {row["image_id"] for rows in selected_rows(other).values() for row in rows}
    shards = other.shards("crop")
    files = (other.output("crop", shard, "prints.parquet") for shard in shards)
    return [row for file in files for row in read_rows(file) if row["image_id"] in kept]


def fingerprints_of_folder(path: str, run: ItemRunner) -> list[Row]:
    """Fingerprints of every picture that can be decoded; training cannot read the others either."""
    files = pictures(path)
    if not files:
        raise ConfigError(f"--exclude {path}: neither a run's output nor a folder of pictures")
    # `each` wants a function that makes the function; the inner partial is that of one file.
    results = run.each(partial(partial, fingerprint_file, CurateConfig().decode), files)
    return [row for row in results if not isinstance(row, Failure)]


def fingerprint_file(config: DecodeConfig, path: Path) -> Row:
    """The fingerprint of a picture as a row. Raises Refused if it cannot be used."""
    # "detect" turns it upright by EXIF, as pictures without labels are.
    image = SourceImage(
        image_id=f"barred/{spelled(path)}", dataset="barred", path=spelled(path), policy="detect"
    )
    picture = decode.decode_source(image, config)
    facts = {"file_sha256": picture.file_sha256, "pixel_sha256": pixels_digest(picture.rgb)}
    return fingerprint_row(image.image_id, "", picture.rgb, facts)


def barred_files(engine: Engine, paths: list[str]) -> list[Path]:
    """The fingerprint files of the sets at these paths, made anew where they are out of date."""
    ledger, files = ShardLedger(engine.root), []
    for path in paths:
        shard = digest(path)[:16]
        engine.here().run(BarredJob(path), [shard])
        files.append(ledger.output("barred", shard, "prints.parquet"))
    return files
