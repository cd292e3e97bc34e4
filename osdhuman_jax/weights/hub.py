"""Models on the Hugging Face hub: fetched with pinned digests, pushed with a model card.

    fetch_model("ORG/NAME")            ->  a model folder in huggingface_hub's cache
    push_model(folder, "ORG/NAME")     ->  what was pushed, in words

config.json has the SHA-256 of every other file of a model folder, so that its own SHA-256 pins the
model. What a name stood for when it was first fetched, a commit and that digest, is remembered in
LOCK beside the repository's files in the cache. From then on the name means that commit, whatever
its branch has become, and bytes of another digest are refused. To move on, name another revision.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from osdhuman_jax.config import Json
from osdhuman_jax.disk import file_digest, parse_json, write_json
from osdhuman_jax.weights.info import describe
from osdhuman_jax.weights.model_folder import (
    CLEANER,
    CONFIG,
    RESTORER,
    kind_of,
    read_meta,
    verify,
)
from osdhuman_jax.weights.torch_files import WeightsError

BRANCH, LOCK, CARD = "main", "osdhuman.lock.json", "README.md"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_model(name: str, revision: str | None = None) -> Path:
    """The model folder of a repository ORG/NAME, proved against what was remembered of it.

    `revision` is a commit, a branch or a tag; without it, BRANCH. Raises WeightsError, in one line,
    where there is no such model or its bytes are not those that were remembered.
    """
    _check_name(name)
    asked = revision or BRANCH
    lock = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / LOCK
    pins = _read_pins(lock)
    pin = pins.get(asked)
    # A commit that is remembered and lies in the cache needs no network.
    config = _fetch(name, CONFIG, pin["commit"] if pin else asked)
    commit, digest = config.parent.name, file_digest(config)
    if pin and digest != pin["config"]:
        _drop(config)
        raise WeightsError(
            f"{name}: {CONFIG} of {asked} has SHA-256 {digest}, not {pin['config']} as when it was "
            f"first fetched ({lock}); if that is meant, remove the lock or name another revision"
        )
    # A branch or a tag may move between two files; a commit does not.
    meta = _meta(config.parent)
    for file in meta["digests"]:
        _fetch(name, file, commit)
    for file in meta["digests"]:
        try:
            verify(config.parent, meta, file)
        except WeightsError as error:
            _drop(config.parent / file)
            raise WeightsError(f"{name}: {error}; it is removed, to be fetched again") from None
    # Only what was proved whole is worth remembering.
    if not pin:
        write_json(lock, pins | {asked: {"commit": commit, "config": digest}})
    return config.parent


def push_model(folder: Path, name: str, *, private: bool = False, dry_run: bool = False) -> str:
    """Push a model folder with its card; returns what was, or would be, pushed, in lines.

    The card is the folder's README.md, or is made of its config.json. Raises WeightsError where the
    folder is no whole model, or the hub refuses.
    """
    _check_name(name)
    meta = _meta(folder)
    verify(folder, meta, *meta["digests"])
    own = (folder / CARD).is_file()
    card = (folder / CARD).read_bytes() if own else made_card(folder, name, meta).encode()
    # What is said is what is pushed, in this order.
    files: dict[str, Path | bytes] = {CARD: card, CONFIG: folder / CONFIG}
    files |= {file: folder / file for file in meta["digests"]}
    sizes = {f: len(v) if isinstance(v, bytes) else v.stat().st_size for f, v in files.items()}
    lines = [f"{folder} -> {name} at {_endpoint() or constants.ENDPOINT}"]
    lines += [f"  {file}: {size:,} bytes" for file, size in sizes.items()]
    lines[1] += "" if own else f", made from {CONFIG}"
    if dry_run:
        return "\n".join([*lines, "nothing was pushed (--dry-run)"])
    adds = [
        CommitOperationAdd(path_in_repo=file, path_or_fileobj=v if isinstance(v, bytes) else str(v))
        for file, v in files.items()
    ]
    api = HfApi(endpoint=_endpoint())
    with _one_line(name, "push"):
        api.create_repo(name, private=private, exist_ok=True)
        done = api.create_commit(name, adds, commit_message="Push a model of osdhuman-jax")
    return "\n".join([*lines, f'pushed: Restorer.from_pretrained("{name}", revision="{done.oid}")'])


def made_card(folder: Path, name: str, meta: Json) -> str:
    """A model card: how to use it, what it is, from where it comes, under which licences."""
    licence = "other" if meta.get("licences") else "unknown"
    title = name.partition("/")[2]
    # The folder's place on this machine says nothing to others.
    what = describe(folder).removeprefix(f"{folder}: ")
    return f"""---
library_name: osdhuman-jax
pipeline_tag: image-to-image
license: {licence}
tags: [image-restoration, jax]
---

# {title}

A model folder of osdhuman-jax. This card was made from its `{CONFIG}`.

```python
from osdhuman_jax import Restorer

better = Restorer.from_pretrained("{name}")(image)
```

```
{what}
```
"""


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise WeightsError(f"{name:.100}: no repository of the hub; give ORG/NAME")


def _endpoint() -> str | None:
    """The hub's address where a person names another; huggingface_hub reads it only once."""
    return os.environ.get("HF_ENDPOINT") or None


def _meta(folder: Path) -> Json:
    """config.json of a model folder of any kind. Raises WeightsError."""
    return read_meta(folder, CLEANER if kind_of(folder) == CLEANER else RESTORER)


def _read_pins(lock: Path) -> dict[str, dict[str, str]]:
    """What was remembered, by revision. Raises WeightsError on a damaged file."""
    # Taken for nothing, a damaged lock would let any bytes pass.
    try:
        pins: Any = parse_json(lock.read_bytes())
        return {str(k): {n: str(pin[n]) for n in ("commit", "config")} for k, pin in pins.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{lock}: no lock that can be read; remove it to begin anew") from error


def _fetch(name: str, file: str, revision: str) -> Path:
    """One file in the cache, below the folder of its commit. Raises WeightsError."""
    with _one_line(name, file):
        path = Path(hf_hub_download(name, file, revision=revision, endpoint=_endpoint()))
    commit = path.parents[len(Path(file).parts) - 1].name
    # A proxy's page answers everything, but not with a commit.
    if not _COMMIT.fullmatch(commit):
        raise WeightsError(f"{name}: what answers is no Hugging Face hub; see HF_ENDPOINT")
    return path


def _drop(path: Path) -> None:
    """Take a file out of the cache, which would keep it for good."""
    # Below the folder of a commit there are links to the files.
    path.resolve().unlink()
    path.unlink(missing_ok=True)


@contextmanager
def _one_line(name: str, file: str) -> Iterator[None]:
    """Raises a WeightsError of one line for what huggingface_hub says in several."""
    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(f"{name}: needs its owner's permission, and HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        what = "no such repository, or a private one that asks for another HF_TOKEN"
        raise WeightsError(f"{name}: {what}") from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{name}: has no such revision") from error
    except LocalEntryNotFoundError as error:
        what = "the hub cannot be reached (HF_ENDPOINT, HF_HUB_OFFLINE), and the cache lacks it"
        raise WeightsError(f"{name}: {file}: {what}") from error
    except EntryNotFoundError as error:
        what = "; it holds no model of this package" if file == CONFIG else ""
        raise WeightsError(f"{name}: has no {file}{what}") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{name}: {file}: {lines[0]:.200}") from error
