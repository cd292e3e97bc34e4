"""Tags of the kept crops, for Figure 7: from a file of any tagger, or by RAM.

RAM is a network of the package, which curation does not import: `osdhuman captions` looks at the
crops, in a process of its own, and what it found stays.

    OUT/tags/MODEL.jsonl    a line for each crop: {"file": "SHA256.png", "tags": [...], ...}

MODEL begins the digest of the model's tagger, SHA256 is the crop's, so that nothing is looked at
twice and nothing passes for what it is not. After a kill the same command goes on where it was.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from curate.config import ConfigError
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import Row, read_rows
from curate.schema import InputError
from curate.selection.manifest import Crops, selected_rows
from osdhuman_jax.disk import json_lines, write_text
from osdhuman_jax.filenames import spelled

# What a model folder needs, with digests in its config.json: RAM's encoder, which the restorer has
# too, its tagging head, the names of its tags and the probability that each must exceed.
MODEL_FILES = (
    *("base.safetensors", "tagger.safetensors"),
    *("tags/ram_tag_list.txt", "tags/ram_tag_list_threshold.txt"),
)
# Crops that a process is given; their PNGs lie in OUT/tmp meanwhile, 0.4 MB each.
CHUNK = 8192
# Tags by crop.
Tags = dict[str, list[str]]


class TagError(InputError):
    """Tags that do not fit the set, cannot be read or could not be made."""


def read_tags(path: Path) -> Tags:
    """The tags in a Parquet file with columns crop_id and tags (lists of texts).

    Raises TagError if it has no such columns.
    """
    try:
        return {row["crop_id"]: row["tags"] for row in read_rows(path, ["crop_id", "tags"])}
    except (OSError, ValueError) as error:
        what = "needs columns crop_id and tags (--tags= for none)"
        raise TagError(f"--tags {path}: {what}: {error}") from None


def check_model(model: Path) -> str:
    """The digest of all that a model folder's tags depend on.

    Raises ConfigError where it has no part or list that RAM's tags need, or another's tags.
    """
    where, config = f"--tags ram {spelled(model)}", model / "config.json"
    if not config.is_file():
        raise ConfigError(f"{where}: no model folder, it has no config.json (--tags= for none)")
    try:
        meta = json.loads(config.read_bytes())
        digests, tagger = meta["digests"], meta.get("tagger", "ram")
        promised = {name: digests[name] for name in MODEL_FILES if name in digests}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{where}: its config.json is damaged ({error})") from None
    lacking = [name for name in MODEL_FILES if name not in promised or not (model / name).is_file()]
    if lacking:
        raise ConfigError(
            f"{where}: lacks {', '.join(lacking)}; osdhuman weights import --ram FILE --tags "
            "FOLDER makes a folder that has them"
        )
    if tagger != "ram":
        raise ConfigError(f"{where}: its tags are those of {tagger}, not of RAM")
    return digest(promised)


def ram_tags(ledger: ShardLedger, model: Path) -> Tags:
    """RAM's tags of all kept crops; only crops that have none are looked at.

    Raises ConfigError as `check_model`, TagError where tags could not be made, LedgerError before a
    selection.
    """
    file = ledger.root / "tags" / f"{check_model(model)[:16]}.jsonl"
    rows = [row for split in selected_rows(ledger).values() for row in split]
    known = _known(file)
    # In the order in which the crops lie on the disk; equal crops are looked at once.
    left = {row["crop_sha256"]: row for row in rows if row["crop_sha256"] not in known}
    todo = sorted(left.values(), key=lambda row: (row["crop_shard"], row["crop_row"]))
    print(f"tags: {len(todo):,} crops for RAM, {len(rows) - len(todo):,} done", flush=True)
    crops = Crops(ledger)
    for start in range(0, len(todo), CHUNK):
        _look(ledger, crops, todo[start : start + CHUNK], model, file)
    known = _known(file) if todo else known
    if lacking := [row["crop_id"] for row in rows if row["crop_sha256"] not in known]:
        raise TagError(f"{spelled(file)}: no tags of {len(lacking)} crops, such as {lacking[0]}")
    return {row["crop_id"]: known[row["crop_sha256"]] for row in rows}


def _look(ledger: ShardLedger, crops: Crops, rows: Sequence[Row], model: Path, file: Path) -> None:
    """Have the tags of some crops added to the file. Raises TagError."""
    command = [sys.executable, "-m", "osdhuman_jax", "captions"]
    with ledger.workspace() as folder:
        for row in rows:
            (folder / f"{row['crop_sha256']}.png").write_bytes(crops.png(row))
        flags = [f"--pictures={folder}", f"--ram={model}", f"--output={file}"]
        # Its own lines and its bar are on stderr, where a person sees them.
        status = subprocess.run([*command, *flags], stdout=subprocess.DEVNULL).returncode
    if status:
        raise TagError(
            f"--tags ram {spelled(model)}: `osdhuman captions` ended with status {status}, "
            "for the reason above"
        )


def _known(file: Path) -> Tags:
    """The tags in a file of lines by the digest of a crop; a torn line is left out."""
    lines = json_lines(file.read_bytes()) if file.exists() else []
    return {
        Path(line["file"]).stem: line["tags"]
        for line in lines
        if isinstance(line.get("file"), str) and isinstance(line.get("tags"), list)
    }


def forget_tags(root: Path, gone: Collection[str]) -> None:
    """Take crops out of all files of tags below OUT, by the digests of their PNGs."""
    for file in sorted((root / "tags").glob("*.jsonl")):
        lines = json_lines(file.read_bytes())
        left = [line for line in lines if Path(str(line.get("file"))).stem not in gone]
        if len(left) < len(lines):
            write_text(file, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in left))
