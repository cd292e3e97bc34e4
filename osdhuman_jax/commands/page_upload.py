"""What is sent to the page: a form with a picture, its settings and maybe a mask.

Goes in: a request. Comes out: an Upload, or a Refusal in words, which is an HTTP status too. A
sender has limits in bytes and in time, for the page is open to whoever reaches it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request as Asked

Message = MutableMapping[str, Any]  # of ASGI, as is the next
Receive = Callable[[], Awaitable[Message]]

OVERHEAD = 2**16  # bytes of a form beside its files
PATIENCE = 60.0  # seconds without a byte, after which nobody is thought to send
SLOWEST = 2.0**16  # bytes per second that a sender must reach on average: a poor wireless link


class Refusal(Exception):
    """A request that is answered by an HTTP status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class Upload(NamedTuple):
    """A picture and the other fields of a form."""

    data: bytes
    name: str
    fields: dict[str, str]
    mask: bytes | None = None


async def read_upload(asked: Asked, max_file_size: int) -> Upload:
    """The form that was sent.

    Raises Refusal on one that is too large, too slow, damaged, ambiguous or without a picture, and
    starlette's ClientDisconnect where the sender leaves before its end.
    """
    limit = f"{max_file_size / 2**20:g} MiB"
    large = Refusal(413, f"the file has more than {limit} (--max_file_size)")
    size = _announced_size(asked)
    if size > 2 * max_file_size + OVERHEAD:
        raise large
    hurried = Asked(asked.scope, _in_time(asked.receive, size))
    try:
        # What is not yet whole lies in files of the system, and no more than 1 MiB of each file
        # in memory: any number may be on their way.
        async with hurried.form(max_files=2, max_fields=20) as form:
            files = _files(form)
            if max(file.size or 0 for file in files.values()) > max_file_size:
                raise large
            picture, mask = files["picture"], files.get("mask")
            fields = {name: text for name, text in form.items() if isinstance(text, str)}
            data = await picture.read()
            return Upload(data, picture.filename or "", fields, await mask.read() if mask else None)
    except TimeoutError:
        raise Refusal(408, "the picture came too slowly: send it again") from None
    except HTTPException as error:
        raise Refusal(error.status_code, f"the form cannot be read: {error.detail}") from None


def _announced_size(asked: Asked) -> int:
    """The bytes of the form, to which the server holds a sender. Raises Refusal without them."""
    size = asked.headers.get("content-length", "")
    # Of a body in chunks the server does not regard the length.
    if not size.isdecimal() or "transfer-encoding" in asked.headers:
        raise Refusal(411, "no Content-Length: tell how many bytes are sent, and not in chunks")
    return int(size)


def _in_time(receive: Receive, size: int) -> Receive:
    """`receive`, which raises TimeoutError where a form of `size` bytes comes too slowly."""
    now = asyncio.get_running_loop().time
    end = now() + PATIENCE + size / SLOWEST

    async def received() -> Message:
        async with asyncio.timeout_at(min(now() + PATIENCE, end)):
            return await receive()

    return received


def _files(form: FormData) -> dict[str, UploadFile]:
    """The files of a form by their names. Raises Refusal on what cannot be meant."""
    given = Counter(name for name, _ in form.multi_items())
    if twice := [name for name, count in given.items() if count > 1]:
        raise Refusal(400, f"{twice[0]} is given {given[twice[0]]} times: give it once")
    files = {name: file for name, file in form.items() if isinstance(file, UploadFile)}
    if "picture" not in files or set(files) - {"picture", "mask"}:
        raise Refusal(400, "send the picture as the file `picture` of a form")
    if "mask" in set(form) - set(files):
        raise Refusal(400, "mask must be a file: send a picture, or leave it out")
    return files
