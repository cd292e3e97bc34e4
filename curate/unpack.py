"""python -m curate.unpack OUT/packed/val --output DIR

Writes a packed split's pictures as files, CROP.webp (or with its codec's suffix), for programs that
read no records. The set itself, `forget` and later runs know nothing of these files.
"""

import hashlib
import json
import sys
from pathlib import Path

from curate.engine.parquet import read_rows
from curate.publish.pack import PackError, picture_name, read_container
from curate.schema import InputError
from osdhuman_jax.cli import CommandError, Parser, check_folder, end, some_path
from osdhuman_jax.disk import write_bytes
from osdhuman_jax.filenames import spelled


def unpack(packed: Path, output: Path) -> int:
    """Write the pictures of a packed folder; returns how many.

    Raises PackError if it is none, if a picture is not the one that was packed, or if other files
    are in `output` already.
    """
    if not (packed / "index.parquet").is_file():
        raise PackError(f"{packed}: no packed split; give OUT/packed/SPLIT")
    check_folder("output", output)
    try:
        # Only the index is read here: it says what the folder is to hold in the end.
        rows = read_rows(packed / "index.parquet", ["header"])
        names = {picture_name(json.loads(row["header"])) for row in rows}
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PackError(f"{packed}: {reason}; pack again, or name another --output") from error
    # Pictures of an earlier attempt may be there; files of another set would be taken for its own.
    if others := sorted({path.name for path in output.glob("[!.]*")} - names):
        raise PackError(
            f"--output {output}: {others[0]} is none of its pictures; give a new folder"
        )
    for header, data in read_container(packed):
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise PackError(f"{packed}: picture of crop {header['crop_id']} is damaged; pack again")
        write_bytes(output / picture_name(header), data)
    return len(names)


def main(arguments: list[str] | None = None) -> int:
    """Unpack a split.

    Returns the exit status: 0 done, 1 stopped by a failure (the same command goes on from there),
    2 bad input.
    """
    parser = Parser("python -m curate.unpack", "Unpack a split.")
    parser.add_argument("packed", type=some_path, help="OUT/packed/SPLIT")
    parser.add_argument("--output", type=some_path, required=True, help="a folder of its own")
    flags = parser.parse_args(arguments)
    try:
        count = unpack(flags.packed, flags.output)
    except (InputError, OSError, ValueError, RuntimeError) as error:
        # Arrow raises RuntimeError where a file is damaged.
        print(f"unpack: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InputError, CommandError)) else 1
    print(f"{count:,} pictures in {spelled(flags.output)}")
    return 0


if __name__ == "__main__":
    end("unpack", main, "the same command goes on")
