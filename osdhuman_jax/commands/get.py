"""Published weights to a model folder: osdhuman weights get osediff|haodiff --output DIR

Says what would be fetched, from where, under which licence and into how much room; asks once;
fetches what is missing into OUTPUT.downloads (which stays), imports it as `weights import` does,
and restores a test picture. `--dry-run` only says; `--from` takes files that are there already.
Homes and digests are in weights/homes.toml; `--homes` names another such table.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from osdhuman_jax.cli import CommandError, check_folder, check_input
from osdhuman_jax.inference.memory import budget
from osdhuman_jax.weights.download import Downloader, Received
from osdhuman_jax.weights.download_folder import DownloadFolder, find, free_space
from osdhuman_jax.weights.homes import TABLE, UNVERIFIED, Source, Wanted, WeightFile, read_homes
from osdhuman_jax.weights.torch_files import WeightsError

SIDE = 256  # of the test picture: a few seconds of a processor at the published networks' sizes
Places = dict[str, Path]  # a source's file, or its folder where it has several
NEEDED = {  # by the imports, of a model in a table
    "osediff": ("sd21", "clip", "ram", "tags", "dape", "osediff"),
    "haodiff": ("sd21", "haodiff"),
}


def get_model(
    model: str, output: Path, found_in: Path | None, dry_run: bool, yes: bool, homes: Path | None
) -> None:
    """Do what one command line asks. Raises WeightsError or CommandError, in one line."""
    # What can be refused is refused before anything is fetched.
    if found_in:
        check_input("from", found_in)
    plan = _plan(model, output, found_in, homes or TABLE)
    if dry_run:
        print("\n".join(_described(plan)))
        return
    _check_output(output)
    build = _importer(model)

    # The person sees everything before anything of it happens.
    print("\n".join(_described(plan)))
    _check_plan(plan)
    _ask(plan, yes)

    # A folder of downloads stays whatever happens; a model folder is written whole or not at all.
    with plan.downloads.locked():
        _bring(plan)
        places = {name: _place(plan, source) for name, source in plan.wanted.sources.items()}
        try:
            build(places, output)
        except WeightsError as error:
            # A file that nothing verifies may be another, and would be taken again as it is.
            raise WeightsError(
                f"{error}; {plan.downloads.path} stays: remove what is wrong in it, and give the "
                "same command again"
            ) from error
    print(f"{output}: written; see it with: osdhuman weights info {output}")
    print(f"{plan.downloads.path}: no longer needed, 'rm -r' it to free its room")
    print(_test_picture(output))


@dataclass(frozen=True)
class Plan:
    """What a command is about to do."""

    model: str
    output: Path
    wanted: Wanted
    downloads: DownloadFolder
    found_in: Path | None
    found: dict[WeightFile, Path]  # below `found_in`

    def missing(self) -> list[tuple[Source, WeightFile]]:
        """Files that are neither in the folder of downloads nor the person's own."""
        return [
            (source, file)
            for source, file in self.wanted.files()
            if file not in self.found and not self.downloads.has(source, file)
        ]

    def by_hand(self) -> list[tuple[Source, WeightFile]]:
        """Those of the missing files that no program can fetch."""
        return [(s, f) for s, f in self.missing() if not any(home.fetchable for home in s.homes)]


def _plan(model: str, output: Path, found_in: Path | None, homes: Path) -> Plan:
    wanted = read_homes(homes).get(model)
    if wanted is None:
        raise WeightsError(f"{homes}: knows no model {model}")
    if lacking := [name for name in NEEDED[model] if name not in wanted.sources]:
        raise WeightsError(f"{homes}: {model} lacks the source {', '.join(lacking)}")
    # Files of a person's own are looked for by name here, and read only once the list is agreed to.
    found = find(found_in, [file for _, file in wanted.files()]) if found_in else {}
    downloads = DownloadFolder(Path(f"{output}.downloads"))
    return Plan(model, output, wanted, downloads, found_in, found)


def _check_output(output: Path) -> None:
    check_folder("output", output.absolute().parent)
    if os.path.lexists(output):
        raise WeightsError(f"{output}: exists; remove it, or name another --output")


# What is said


def _described(plan: Plan) -> list[str]:
    """The plan in lines: files by source, with homes, sizes, digests and licences; then the sum."""
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    lines = [f"{plan.model} -> {plan.output}", f"hub: {hub}"]
    for source in plan.wanted.sources.values():
        homes = ", else ".join(map(str, source.homes))
        lines += ["", source.title, f"  licence: {source.licence}, {source.licence_link}"]
        lines += [f"  from: {homes}"]
        lines += [f"    {_line(plan, source, file)}" for file in source.files]
    # Sizes are the table's: no home is asked before the person agrees.
    missing = plan.missing()
    known, unknown = sum(f.bytes for _, f in missing), sum(not f.bytes for _, f in missing)
    more = f" and {unknown} of unknown size" if unknown else ""
    if by_hand := plan.by_hand():
        more += f", {len(by_hand)} of them by a person, for --from"
    folder = plan.downloads.path
    return [
        *lines,
        "",
        f"to fetch: {len(missing)} files, {known:,} bytes{more}, into {folder}, which stays",
        f"then the model folder: about {plan.wanted.bytes:,} bytes",
        f"free on the disk: {free_space(folder):,} bytes",
    ]


def _line(plan: Plan, source: Source, file: WeightFile) -> str:
    """One file: its name, size, digest, and where it is already."""
    size = f"{file.bytes:,} bytes" if file.bytes else "unknown size"
    digest = f"sha256 {file.sha256:.12}" if file.sha256 else UNVERIFIED
    part = plan.downloads.unfinished(source, file)
    there = ""
    if file in plan.found:
        there = f", found: {plan.found[file]}"
    elif plan.downloads.has(source, file):
        there = ", fetched before"
    elif part:
        there = f", {part:,} bytes of it fetched before"
    return f"{PurePosixPath(source.folder) / file.name}: {size}, {digest}{there}"


def _check_plan(plan: Plan) -> None:
    """Raise WeightsError where the plan cannot be carried out, with all that is missing at once."""
    # Without these the rest is of no use, so that none of it is fetched.
    missing = plan.missing()
    if by_hand := plan.by_hand():
        where = f"not in {plan.found_in}, and " if plan.found_in else ""
        raise WeightsError(
            f"{where}to be fetched by a person: {_with_homes(by_hand)}; then give --from DIR"
        )
    if missing and _offline():
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and files are missing: {_with_homes(missing)}; give --from DIR"
        )
    # Downloads and model lie on one disk, and what was received of a file needs no more room.
    downloads = plan.downloads
    rest = sum(max(0, f.bytes - downloads.unfinished(s, f)) for s, f in missing)
    free, needed = free_space(downloads.path), rest + plan.wanted.bytes
    if needed > free:
        raise WeightsError(
            f"{downloads.path.parent}: {needed:,} bytes are needed and {free:,} are free; make "
            "room, or name an --output on another disk"
        )


def _with_homes(files: list[tuple[Source, WeightFile]]) -> str:
    """Names of files, each with its homes, in one line."""
    return "; ".join(f"{f.name} ({', else '.join(map(str, s.homes))})" for s, f in files)


def _offline() -> bool:
    """Whether the person wants no network, by huggingface_hub's own rule."""
    from huggingface_hub import constants  # costs a second

    return constants.is_offline_mode()


def _ask(plan: Plan, yes: bool) -> None:
    """Go on where the person agrees. Raises CommandError where not, or where nobody can be asked.

    Where nothing is to be fetched there is nothing to agree to.
    """
    missing = plan.missing()
    if yes or not missing:
        return
    if not sys.stdin.isatty():
        raise CommandError(
            f"{len(missing)} files are to be fetched, and without a terminal nobody can be asked; "
            f"give --yes to agree, or all of them by --from: {_with_homes(missing)}"
        )
    # Where the input ends the answer is empty, and that is no.
    print("Fetch them from there, under these licences? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("not agreed to, so that nothing was fetched")


# What is done


def _bring(plan: Plan) -> None:
    """Have every file in the folder of downloads. Raises WeightsError."""
    # The person's own files first, all of them: one that is wrong is found before hours of network.
    downloads, wrong = plan.downloads, []
    own = [(source, file) for source, file in plan.wanted.files() if file in plan.found]
    for source, file in own:
        try:
            received = downloads.link(source, file, plan.found[file])
        except WeightsError as error:
            wrong.append(str(error))
            continue
        downloads.record(source, file, received)
        _tell(file, received)
    if wrong:
        raise WeightsError(f"--from: {'; '.join(wrong)}")
    # What was fetched before is proved again: a disk may have lost what it had.
    missing, downloader = plan.missing(), Downloader(downloads.path, _note)
    for source, file in plan.wanted.files():
        if (source, file) in own:
            continue
        if (source, file) in missing:
            received = downloader.fetch(source, file)
            downloads.record(source, file, received)
        else:
            received = downloads.proved(source, file)
        _tell(file, received)


def _tell(file: WeightFile, received: Received) -> None:
    words = f"{received.bytes:,} bytes, sha256 {received.sha256}, {received.checked}"
    _note(f"{file.name}: {words}")


def _note(line: str) -> None:
    print(line, flush=True)


def _place(plan: Plan, source: Source) -> Path:
    """Where an importer finds a source: its file, or the folder of its files."""
    whole = plan.downloads.path / source.folder
    return whole / source.files[0].name if len(source.files) == 1 else whole


def _importer(model: str) -> Callable[[Places, Path], None]:
    """What makes a model folder of the places of a model's sources. Raises WeightsError."""
    if model == "osediff":
        return _import_osediff
    from osdhuman_jax.weights.haodiff import import_haodiff  # with JAX: not for `--help`

    return lambda places, output: import_haodiff(places["sd21"], places["haodiff"], output)


def _import_osediff(places: Places, output: Path) -> None:
    """OSEDiff as its authors released it: prompts of DAPE's tags."""
    from osdhuman_jax.weights.importer import import_model  # with JAX, as below: not for `--help`

    import_model(
        places["sd21"],
        places["ram"],
        output,
        clip=places["clip"],
        tags=places["tags"],
        dape=places["dape"],
        generator=places["osediff"],
        prompt="dape",
    )


def _test_picture(folder: Path) -> str:
    """One line of a test picture that a new model restored, or of why it did not.

    The picture is written beside the model folder. Its checksum tells two machines' results apart,
    or says that they are the same.
    """
    import numpy as np
    from skimage import data

    from osdhuman_jax.api import Restorer
    from osdhuman_jax.images.codec import write_png
    from osdhuman_jax.inference.finishing import RestoreError

    # What a model holds in memory is what its folder holds on the disk, in 32 bits.
    needed, given = sum(path.stat().st_size for path in folder.glob("*.safetensors")), budget()
    if needed > given:
        return f"no test picture: the weights take {needed:,} bytes of memory, {given:,} are for it"
    # Means of squares: no library's filter has a part in the checksum.
    photo = data.astronaut()  # (512, 512, 3), uint8; scikit-image's wheel has it
    step = max(1, len(photo) // SIDE)
    small = photo.reshape(len(photo) // step, step, -1, step, 3).mean((1, 3))
    try:
        restored = Restorer.load(folder)(np.rint(small).astype(np.uint8))
    except RestoreError as error:
        return f"no test picture: {error}"
    path = Path(f"{folder}.test.png")
    write_png(path, restored)
    height, width = restored.shape[:2]
    digest = hashlib.sha256(restored.tobytes()).hexdigest()
    return f"{path}: test picture, {width} x {height}, SHA-256 of its pixels {digest}"
