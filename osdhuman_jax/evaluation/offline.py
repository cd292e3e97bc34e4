"""A guard around pyiqa, which downloads what it does not find: here it downloads nothing.

pyiqa, torchvision and CLIP fetch weights through `urllib.request.urlopen` and keep them in
torch.hub's folder; timm takes them from the Hugging Face hub. Inside `offline` every request for a
URL is answered by the caller, torch.hub's folder is the caller's, and nothing is printed about
downloads that do not happen. Evaluation and curation decide differently which file a URL stands
for; both need the guard while a metric is made. Free of JAX; torch is imported when it is needed.
"""

import contextlib
import functools
import io
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

# A module, the name of an attribute in it, and what stands there for a while.
Replacement = tuple[ModuleType, str, object]


@contextlib.contextmanager
def offline(
    serve: Callable[[str], object], hub_folder: Path, replaced: Iterable[Replacement] = ()
) -> Iterator[None]:
    """Run the code inside without a network; afterwards everything is as it was.

    Args:
        serve: gives an open response for a URL, or raises; what it raises comes out of here.
        hub_folder: torch.hub's folder meanwhile.
        replaced: further attributes to replace, as timm's way to the hub.
    """
    import torch

    def answer(request: str | urllib.request.Request, *_: object, **__: object) -> object:
        # torch.hub asks with headers of its own, in a Request; others ask with a URL.
        return serve(request if isinstance(request, str) else request.full_url)

    # torch.hub has imported the function by name, so that it is replaced twice.
    every = [(urllib.request, "urlopen", answer), (torch.hub, "urlopen", answer), *replaced]
    saved = [(module, name, getattr(module, name)) for module, name, _ in every]
    before, silent = torch.hub.get_dir(), io.StringIO()
    # Whatever happens inside, nobody else in this process must find the replacements.
    try:
        torch.hub.set_dir(str(hub_folder))
        for module, name, value in every:
            setattr(module, name, value)
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)
        torch.hub.set_dir(before)


def process_folder() -> Path:
    """A temporary folder, always the same one, which goes when the process ends."""
    # pyiqa keeps the name of torch.hub's folder from when it was first imported.
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """The folder's object, which removes it when it is forgotten."""
    return tempfile.TemporaryDirectory(prefix="osdhuman-jax-")
