"""One published file from the first of its homes that has it: received, resumed, checked.

    Downloader(Path("models/osediff.downloads")).fetch(source, file)  ->  Received(path, ...)

huggingface_hub speaks the hub's protocol: addresses (HF_ENDPOINT), a person's token (HF_TOKEN), no
network (HF_HUB_OFFLINE), and what the hub says of a file. Bytes are received here, from hub and
plain addresses alike, because huggingface_hub drops what it has of a file when its process ends,
warns of a full disk but goes on, and compares no digest. Here an unfinished `NAME.part` stays and
the next run goes on with it; `NAME.part.json` beside it says of which file it is.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx
from tqdm import tqdm

from osdhuman_jax.disk import file_digest, sync, write_json
from osdhuman_jax.weights.homes import UNVERIFIED, Home, Source, WeightFile
from osdhuman_jax.weights.torch_files import WeightsError

ATTEMPTS, PAUSE = 4, 1.0  # at one home when connections break, and seconds between them
TIMEOUT = httpx.Timeout(30.0)  # seconds without a byte, of each step
SPACE_GONE = (errno.ENOSPC, errno.EDQUOT)
BY_TABLE, BY_HOME = "as in the table", "as its home says"  # its digest; or UNVERIFIED
_PAGES = (b"<!doctype html", b"<html", b"version https://git-lfs")  # in the place of weights


class DiskFullError(WeightsError):
    """The disk has no room for a file, so that no other home would help."""


@dataclass(frozen=True)
class Received:
    """A file that is there, and what its digest was compared with."""

    path: Path
    address: str  # where it came from
    bytes: int
    sha256: str
    checked: str  # BY_TABLE, BY_HOME or UNVERIFIED


@dataclass(frozen=True)
class _Offer:
    """What a home says of a file; 0 and empty where it says nothing."""

    address: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # may hold a token
    bytes: int = 0
    sha256: str = ""
    git: str = ""  # SHA-1 of git's blob, which the hub has of small files


class Downloader:
    """Fetches files into a folder; a home that failed once is asked last from then on."""

    def __init__(self, folder: Path, note: Callable[[str], object] = print) -> None:
        """`note` is told, in one line each, of homes that did not give a file."""
        self.folder, self.note = folder, note
        self._failed: set[str] = set()

    def fetch(self, source: Source, file: WeightFile) -> Received:
        """The file in its place below the folder, from the first home that gives it as it should.

        Raises WeightsError, in one line, where none does or the disk is full; what was received so
        far stays as `.part`.
        """
        target, reasons = self.folder / source.folder / file.name, []
        target.parent.mkdir(parents=True, exist_ok=True)
        homes = [home for home in source.homes if home.fetchable]
        # It stays in the list: a home may lack one file and have the next.
        homes.sort(key=lambda home: home.place in self._failed)
        for number, home in enumerate(homes, start=1):
            try:
                return _from(home, file, target)
            except DiskFullError:
                raise
            except (ValueError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                # Another home would fill the same disk.
                if isinstance(error, OSError) and error.errno in SPACE_GONE:
                    raise DiskFullError(
                        f"{target}: the disk is full; make room and give the same command again: "
                        "what was received is kept"
                    ) from error
                self._failed.add(home.place)
                reasons.append(f"{home}: {_reason(error)}")
            if number < len(homes):
                self.note(f"{file.name}: {reasons[-1]}; trying {homes[number]}")
        raise WeightsError(
            f"{file.name}: no home gave it ({'; '.join(reasons)}); give the same command again to "
            "go on where it ended, or get it by hand and give --from DIR"
        )


def _from(home: Home, file: WeightFile, target: Path) -> Received:
    """The file from one home. Raises WeightsError, OSError or httpx.HTTPError."""
    offer = _ask(home, file)
    # What cannot be the file is not downloaded to find out.
    _agree("bytes", offer.bytes and f"{offer.bytes:,}", file.bytes and f"{file.bytes:,}")
    _agree("SHA-256", offer.sha256, file.sha256)
    # The file takes its name only when it is whole and proved.
    part = target.with_name(f"{target.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(offer, file, part)
            break
        except httpx.TransportError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE)
    # A file that is not the one must not be taken for it by the next run.
    try:
        received = _checked(part, file, offer)
    except WeightsError:
        _forget(part)
        raise
    sync(part)
    os.replace(part, target)
    _forget(part)
    return Received(target, *received)


def _ask(home: Home, file: WeightFile) -> _Offer:
    """What a home says of a file before any of it is received."""
    if home.url:
        return _Offer(home.url + quote(file.name))
    # Needs a second to import, and plain addresses do not need it.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    kind, repository = home.repository()
    endpoint = os.environ.get("HF_ENDPOINT") or None
    where = {"repo_type": kind, "revision": home.revision, "endpoint": endpoint}
    address = hf_hub_url(repository, home.inside(file.name), **where)
    said = get_hf_file_metadata(address, endpoint=endpoint)
    # A proxy's log-in page answers everything, but not with a commit.
    if said.commit_hash is None:
        raise WeightsError("what answers is no Hugging Face hub; see HF_ENDPOINT, or a proxy")
    digest = said.etag or ""
    # The hub's tag of a large file is its SHA-256, of a small one what git calls its blob.
    return _Offer(
        address,
        build_hf_headers(),
        said.size or 0,
        sha256=digest if re.fullmatch("[0-9a-f]{64}", digest) else "",
        git=digest if re.fullmatch("[0-9a-f]{40}", digest) else "",
    )


def _agree(what: str, said: str | int, wanted: str | int) -> None:
    """Raise WeightsError where a home and the table say different things."""
    if said and wanted and said != wanted:
        raise WeightsError(f"its {what}: {said:.24}, not {wanted:.24} as in the table")


# Receiving


def _receive(offer: _Offer, file: WeightFile, part: Path) -> None:
    """Have the whole file in `part`, going on with what is there of the same file.

    httpx drops the token from a request that a redirect sends to another host.
    """
    from huggingface_hub import get_session

    identity = file.sha256 or offer.sha256 or offer.git or offer.address
    whole = file.bytes or offer.bytes
    done, tag = _kept(part, identity, proved=identity != offer.address)
    if whole and done == whole:
        return
    # A compressed answer could not be taken up in its middle.
    headers = offer.headers | {"Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-"} | ({"If-Range": tag} if tag else {})
    request = get_session().stream("GET", offer.address, headers=headers, timeout=TIMEOUT)
    with request as response:
        if response.status_code == 416:
            # Nothing follows: it is whole, which the digest proves, or of another file.
            if not whole and identity != offer.address:
                return
            _forget(part)
            raise httpx.ReadError("the range is not there", request=response.request)
        response.raise_for_status()
        # What is no file is refused before it replaces what was received of one.
        if "text/html" in response.headers.get("Content-Type", ""):
            raise WeightsError("a web page came in its place")
        if response.headers.get("Content-Range", "").partition("-")[0] != f"bytes {done}":
            done = 0  # the whole file comes, whatever was asked for
        total = done + int(response.headers.get("Content-Length", 0))
        _agree("bytes", total > done and f"{total:,}", whole and f"{whole:,}")
        _check_room(part.parent, total - done)
        # Before the first byte, so that whatever ends the process, the part says whose it is.
        _mark(part, identity, response.headers.get("ETag", ""))
        _write(response, part, done, total or whole)


def _write(response: httpx.Response, part: Path, done: int, total: int) -> None:
    """Append a response's bytes as they come; a broken connection leaves what came."""
    name = part.name.removesuffix(".part")
    with (
        open(part, "ab" if done else "wb") as copy,
        closing(
            tqdm(
                total=total or None,
                initial=done,
                desc=name,
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                disable=None,  # where stderr is no terminal
            )
        ) as progress,
    ):
        # As they come from the network: whole pieces of a size would lose the last when it breaks.
        for chunk in response.iter_raw():
            copy.write(chunk)
            progress.update(len(chunk))


def _kept(part: Path, identity: str, proved: bool) -> tuple[int, str]:
    """How many bytes of a file are there, and the tag under which its home gave them.

    Without a digest that proves the whole in the end, only a home's strong tag tells whether the
    rest belongs to the same file.
    """
    try:
        mark = json.loads(_mark_of(part).read_text())
        of, tag, done = mark["of"], mark["tag"], part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
    strong = isinstance(tag, str) and tag.startswith('"')
    if of != identity or not (proved or strong):
        return 0, ""
    return done, "" if proved else tag


def _mark(part: Path, identity: str, tag: str) -> None:
    write_json(_mark_of(part), {"of": identity, "tag": tag})


def _mark_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    """Remove what there is of an unfinished file."""
    for path in (part, _mark_of(part)):
        path.unlink(missing_ok=True)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{folder}: {needed:,} more bytes are needed and {free:,} are free; make room and give "
            "the same command again"
        )


# Checks


def check(path: Path, file: WeightFile) -> str:
    """The SHA-256 of a file that is as the table has it. Raises WeightsError in one line."""
    size = path.stat().st_size
    with open(path, "rb") as opened:
        start = opened.read(64).lstrip().lower()
    if not size:
        raise WeightsError(f"{path}: empty")
    if start.startswith(_PAGES):
        raise WeightsError(f"{path}: a web page or a pointer in the place of the file")
    # The size first: a digest of gigabytes takes a while.
    if file.bytes and size != file.bytes:
        raise WeightsError(f"{path}: {size:,} bytes, not {file.bytes:,} as in the table")
    digest = file_digest(path)
    if file.sha256 and digest != file.sha256:
        raise WeightsError(f"{path}: SHA-256 {digest}, not {file.sha256} as in the table")
    return digest


def _checked(part: Path, file: WeightFile, offer: _Offer) -> tuple[str, int, str, str]:
    """Address, size, digest and what it was compared with. Raises WeightsError."""
    size, digest = part.stat().st_size, check(part, file)
    if offer.bytes and size != offer.bytes:
        raise WeightsError(f"{size:,} bytes came, not {offer.bytes:,} as the home says")
    if offer.sha256 and digest != offer.sha256:
        raise WeightsError(f"SHA-256 {digest}, not {offer.sha256} as the home says")
    if offer.git and _git_digest(part) != offer.git:
        raise WeightsError(f"git's digest is not {offer.git} as the home says")
    own = BY_HOME if offer.sha256 or offer.git else UNVERIFIED
    return offer.address, size, digest, BY_TABLE if file.sha256 else own


def _git_digest(path: Path) -> str:
    """What git calls a blob: SHA-1 of its length and its bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """A few words of an error of the network, which has many lines and may have none."""
    response = getattr(error, "response", None)
    if isinstance(response, httpx.Response):
        hint = ": gone, or it asks for HF_TOKEN" if response.status_code in (401, 403) else ""
        return f"HTTP {response.status_code}{hint}"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, WeightsError):
        return str(error)
    lines = str(error).strip().splitlines()
    words = lines[0] if lines else type(error).__name__
    return f"{words:.160}"
