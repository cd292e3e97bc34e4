"""The page in the browser and what is behind it: a few addresses, each with one task.

Needs the extra `app` (Starlette, uvicorn). Goes in: a pipeline, Markdown about its model, bounds.
Comes out: an ASGI application, and a server of it.

    GET  /             the page: page.html, page.css, page.js beside this file
    GET  /api/model    what the model is, its controls and bounds, in JSON
    POST /api/look     a picture -> its size, a small copy and what should be known of it, in JSON
    POST /api/restore  a picture, settings and maybe a mask -> the restored file
    GET  /api/progress?ticket=..   what becomes of the restoration that was asked for with a ticket

Nothing is kept: the answer to a restoration is its result, and an answer that was an error has
none. One picture is computed at a time, for two would need twice the memory that was planned; the
others wait for their turn.
"""

import asyncio
import base64
import io
import json
import logging
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Asked
from starlette.responses import (
    FileResponse,
    JSONResponse,
    Response,
)
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from osdhuman_jax.commands.page_controls import Wish, controls, read_wish
from osdhuman_jax.commands.page_upload import Refusal, Upload, read_upload
from osdhuman_jax.commands.page_words import card_html, model_words
from osdhuman_jax.images.codec import (
    KINDS,
    ImageError,
    Picture,
    TooLargeError,
    check_alpha,
    decode,
    encode,
    read_size_of,
    to_pillow,
)
from osdhuman_jax.images.formats import SUFFIXES
from osdhuman_jax.images.listing import HEIC
from osdhuman_jax.images.listing import SUFFIXES as LISTED
from osdhuman_jax.images.sizes import scaled_size
from osdhuman_jax.inference import programs
from osdhuman_jax.inference.condition import remark
from osdhuman_jax.inference.finishing import RestoreError
from osdhuman_jax.inference.folder_plan import one_line
from osdhuman_jax.inference.notes import Request
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.plans import Progress
from osdhuman_jax.inference.restraint import Restrained
from osdhuman_jax.interruption import Stopped, apart

Message = Mapping[str, Any]  # of ASGI, as are the three below
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

HERE = Path(__file__).parent
WAITING = 8  # pictures in the queue; the next is asked to come back
LONGEST = 255  # bytes of a name, as file systems have it
SHOWN = 1600  # longest side of the small copy, in pixels; the download is whole
# Seconds that compiling is said to take before anything was compiled, and more for each byte of the
# weights: about those of the bundled model, and of one of 4 GB, on two cores.
FIRST, FIRST_MORE = 10.0, 5e-9
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The page's own files and small copies of pictures; nothing from anywhere else.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware: HEADERS on every answer, and no requests that another page has sent.

    A page of the network may make a browser ask this machine. Its address is in `origin` then, or,
    where a name was made to lead here, in `host`.
    """

    def __init__(self, app: Application, hosts: tuple[str, ...]) -> None:
        """`hosts` are the names by which the page is served; all, if there are none."""
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), text.encode()) for name, text in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        app = self.app if self._is_own(scope) else _refuse_other_pages
        await app(scope, receive, guarded)

    def _is_own(self, scope: Message) -> bool:
        headers = {name: text.decode("latin-1") for name, text in scope.get("headers", [])}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            named = not self.hosts or urlsplit(f"//{host}").hostname in self.hosts
            return named and (origin is None or urlsplit(origin).netloc == host)
        except ValueError:  # what is no address
            return False


async def _refuse_other_pages(scope: Message, receive: Receive, send: Send) -> None:
    words = "this page is for its own address alone: open the one that `osdhuman app` tells"
    await JSONResponse({"error": words}, 403)(scope, receive, send)  # type: ignore[arg-type]


@dataclass
class Ticket:
    """What becomes of one restoration, as the page shows it."""

    since: float = field(default_factory=time.monotonic)
    state: str = "waiting"  # then compiling and restoring, as often as need be
    ahead: int = 0  # of those that wait
    expected: float = 0.0  # seconds that compiling takes
    done: int = 0
    total: int = 0
    unit: str = "tiles"

    def turn(self, state: str, expected: float = 0.0) -> None:
        """Enter a state."""
        self.state, self.since, self.expected = state, time.monotonic(), expected

    def as_json(self) -> dict[str, object]:
        """What is told of it; seconds are those of this state."""
        told = {name: getattr(self, name) for name in ("state", "ahead", "done", "total", "unit")}
        seconds = round(time.monotonic() - self.since, 1)
        return told | {"seconds": seconds, "expected": round(self.expected)}


class Compiling(logging.Handler):
    """Hears of programs that are compiled, and tells the ticket that is being restored."""

    def __init__(self, first: float) -> None:
        """`first` is how long a kind of program is said to take before one of it was compiled."""
        super().__init__(logging.INFO)
        self._first = first
        self.ticket: Ticket | None = None
        # Of each kind of program how long the last one took.
        self._took: dict[str, float] = {}
        self._kind = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == programs.COMPILING and record.args:
            # "the restorer for 512 x 512": sizes of one kind take nearly the same time.
            self._kind = str(next(iter(record.args))).partition(" for ")[0]
            if self.ticket:
                self.ticket.turn("compiling", self._took.get(self._kind, self._first))
        elif record.msg == programs.COMPILED and record.args:
            self._took[self._kind] = float(str(next(iter(record.args))))
            if self.ticket:
                self.ticket.turn("restoring")


class Desk:
    """Takes pictures, lets them wait, and restores one at a time."""

    def __init__(self, pipeline: Pipeline, card: str, max_pixels: int, max_file_size: int) -> None:
        self.pipeline, self.card = pipeline, card
        self.max_pixels, self.max_file_size = max_pixels, max_file_size
        self.closing = False  # once true, what is computed is given up
        self._tickets: dict[str, Ticket] = {}
        self._turn, self._look = asyncio.Lock(), asyncio.Lock()
        self._waiting = 0
        self._compiling = Compiling(FIRST + FIRST_MORE * pipeline.programs.weight_bytes)

    def hear(self) -> None:
        """Listen to what is compiled from now on."""
        programs.log.addHandler(self._compiling)
        programs.log.setLevel(logging.INFO)

    # The addresses ------------------------------------------------------------------------------

    async def model(self, asked: Asked) -> Response:
        """What the page is made of."""
        return JSONResponse(
            {
                "name": self.pipeline.model.name,
                "words": model_words(self.pipeline),
                "card": card_html(self.card),
                "controls": [control.as_json() for control in controls(self.pipeline)],
                "kinds": KINDS,
                "suffixes": [*{*LISTED, *HEIC}],  # of HEIC it is told what reads it
                "max_file_size": self.max_file_size,
            }
        )

    async def look(self, asked: Asked) -> Response:
        """A small copy of a picture, and what should be known before it is restored."""
        given = await read_upload(asked, self.max_file_size)
        async with self._look:
            return JSONResponse(await run_in_threadpool(self._seen, given))

    async def restore(self, asked: Asked) -> Response:
        """The restored picture, once it is its turn."""
        # What is sent in vain is refused before it is sent. Only what has come whole waits: who
        # sends nothing keeps nobody from the queue.
        self._check_queue()
        given = await read_upload(asked, self.max_file_size)
        self._check_queue()
        key, ticket = asked.query_params.get("ticket", ""), Ticket(ahead=self._waiting)
        self._waiting += 1
        if key:
            self._tickets[key] = ticket
        try:
            async with self._turn:
                # Whoever has gone away in the meantime needs no answer.
                if await asked.is_disconnected():
                    return Response(status_code=204)
                self._compiling.ticket = ticket
                try:
                    return await run_in_threadpool(self._answer, given, ticket)
                finally:
                    self._compiling.ticket = None
        finally:
            self._waiting -= 1
            for other in self._tickets.values():
                other.ahead = max(other.ahead - 1, 0)
            self._tickets.pop(key, None)

    async def progress(self, asked: Asked) -> Response:
        """What becomes of a restoration; its ticket is gone with its answer."""
        ticket = self._tickets.get(asked.query_params.get("ticket", ""))
        return JSONResponse(ticket.as_json() if ticket else {"state": "unknown"})

    # What is done there -------------------------------------------------------------------------

    def _check_queue(self) -> None:
        """Raises Refusal where no picture more may wait."""
        if self._waiting >= WAITING:
            raise Refusal(503, f"{WAITING} pictures wait already: try again in a minute")

    def _seen(self, given: Upload) -> dict[str, object]:
        """What `look` answers."""
        with _said():
            picture = decode(given.data, self.max_pixels)
            note = remark(picture.rgb, self.pipeline.model.use)
        height, width = picture.size
        return {"width": width, "height": height, "note": note, "preview": preview(picture)}

    def _answer(self, given: Upload, ticket: Ticket) -> Response:
        """What `restore` answers."""

        def told(done: int, total: int) -> None:
            ticket.done, ticket.total = done, total

        with _said():
            wish = read_wish(given.fields, self.pipeline)
            ticket.unit = "tiles" if wish.sampling is None else "steps"
            ticket.turn("restoring")

            def work() -> tuple[bytes, Sequence[str]]:
                made = restore_file(self.pipeline, given, wish, self.max_pixels, told)
                return encode(made.picture, wish.format, wish.quality), made.remarks

            # Apart, so that the page can end while a program is compiled.
            data, remarks = apart(work, lambda: self.closing)
        headers = {"content-disposition": _saved_as(download_name(given.name, wish.format))}
        headers |= {"remarks": quote("; ".join(remarks))} if remarks else {}
        return Response(data, headers=headers, media_type=MEDIA[wish.format])


@contextmanager
def _said() -> Iterator[None]:
    """A Refusal, in words, in the place of what a picture or its settings cause."""
    try:
        yield
    except (ImageError, ValueError) as error:
        raise Refusal(400, one_line(error)) from None
    except (RestoreError, OSError, MemoryError) as error:
        raise Refusal(500, one_line(error)) from None
    except Stopped:
        raise Refusal(503, "the page has ended") from None


def restore_file(
    pipeline: Pipeline,
    given: Upload,
    wish: Wish,
    max_pixels: int,
    progress: Progress | None = None,
) -> Restrained:
    """The restoration of a file, as infer.py makes it.

    Raises ImageError on a file that is no picture or a larger one than `max_pixels` (after
    enlarging), which its header tells before it is decoded, ValueError and RestoreError. A model of
    many steps takes the picture's name.
    """
    # By the header: a page is open to whoever reaches it, and a bomb is small before it is decoded.
    height, width = scaled_size(read_size_of(given.data, max_pixels), wish.upscale)
    if height * width > max_pixels:
        limit = f"{max_pixels / 1e6:g} million pixels (--max_pixels)"
        raise TooLargeError(f"enlarged it has {width} x {height}, which is more than {limit}")
    picture = decode(given.data, max_pixels, deep=True)
    # What the format cannot hold is refused before the picture is computed.
    check_alpha(picture, wish.format)
    name = Path(given.name).with_suffix("").as_posix() if given.name else ""
    (restored,) = pipeline.restored(
        [picture],
        wish.upscale,
        wish.color_fix,
        progress=progress,
        sampling=wish.sampling,
        requests=[Request(name)],
        strength=wish.strength,
        mask=None if given.mask is None else to_pillow(decode(given.mask, max_pixels)),
        people_only=wish.people_only,
        keep_faces=wish.keep_faces,
    )
    return restored


def preview(picture: Picture) -> str:
    """A copy of at most SHOWN pixels a side as the address of an image, of the same colours."""
    # EXIF, where a photograph was taken for one, stays out of the page; the profile does not.
    image = to_pillow(Picture(picture.rgb, picture.alpha))
    image.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=90, icc_profile=picture.icc)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def download_name(uploaded: str, kind: str = "png") -> str:
    """photo_restored.png of photo.jpg: a name that a file in a folder can have."""
    stem = Path(uploaded).stem
    # A sender may state anything, a path out of the folder too.
    odd = uploaded != Path(uploaded).name or uploaded in ("", "..") or "\0" in uploaded
    name = f"{stem}_restored{SUFFIXES[kind]}"
    try:
        long = len(os.fsencode(name)) > LONGEST
    except UnicodeEncodeError:  # half a character of UTF-16, as JSON may have it
        long = True
    return f"picture_restored{SUFFIXES[kind]}" if odd or long else name


def _saved_as(name: str) -> str:
    """The header by which browsers, and curl -J, name what they save (RFC 6266)."""
    # For programs that know no other alphabet: what might end the text or lead elsewhere is left
    # out.
    plain = re.sub(r'[^ -~]|["\\/%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def build(
    pipeline: Pipeline,
    card: str,
    max_pixels: int,
    max_file_size: int,
    hosts: tuple[str, ...] = LOOPBACK,
) -> tuple[Starlette, Desk]:
    """The application and its desk; `card` is Markdown about the model, `hosts` as of Guard."""
    desk = Desk(pipeline, card, max_pixels, max_file_size)

    def file(name: str) -> Callable[[Asked], Awaitable[Response]]:
        async def answer(asked: Asked) -> Response:
            return FileResponse(HERE / name)

        return answer

    routes = [
        Route("/", file("page.html")),
        *(Route(f"/{name}", file(name)) for name in ("page.css", "page.js")),
        Route("/api/model", desk.model),
        Route("/api/look", desk.look, methods=["POST"]),
        Route("/api/restore", desk.restore, methods=["POST"]),
        Route("/api/progress", desk.progress),
    ]
    handlers: Any = {
        Refusal: _refused,
        HTTPException: _not_served,
        ClientDisconnect: _gone,
        Exception: _failed,
    }
    guard = [Middleware(Guard, hosts=hosts)]
    return Starlette(routes=routes, middleware=guard, exception_handlers=handlers), desk


async def _refused(asked: Asked, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    # A body that did not come in time would be awaited by the server otherwise.
    headers = {"connection": "close"} if error.status == 408 else None
    return JSONResponse({"error": error.words}, error.status, headers)


async def _not_served(asked: Asked, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: "there is nothing at this address",
        405: f"this address does not take {asked.method}",
    }.get(error.status_code, error.detail)
    return JSONResponse({"error": words}, error.status_code, error.headers)


async def _gone(asked: Asked, error: Exception) -> Response:
    # Nobody reads it.
    return Response(status_code=204)


async def _failed(asked: Asked, error: Exception) -> Response:
    words = f"something went wrong inside ({type(error).__name__}): the terminal tells more"
    return JSONResponse({"error": words}, 500)


class Protocol(H11Protocol):
    """uvicorn's, which answers what is no HTTP in JSON too."""

    def send_400_response(self, msg: str) -> None:
        headers = {"content-type": "application/json", "connection": "close"} | HEADERS
        answer = [
            h11.Response(status_code=400, headers=[*headers.items()], reason=b"Bad Request"),
            h11.Data(data=json.dumps({"error": msg}).encode()),
            h11.EndOfMessage(),
        ]
        for event in answer:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's, which gives up what is computed when it is told to end."""

    def __init__(self, page: Starlette, desk: Desk) -> None:
        self._desk = desk
        config = uvicorn.Config(
            page,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            http=Protocol,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._desk.closing = True
        super().handle_exit(sig, frame)


def listening(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises OSError where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error}; name another address") from error


def serve(
    pipeline: Pipeline, card: str, host: str, port: int, max_pixels: int, max_file_size: int
) -> None:
    """Serve the page until interrupted. Raises OSError where the address cannot be had."""
    at = listening(host, port)
    # On every machine's network the page has names that it does not know.
    hosts = LOOPBACK if host in LOOPBACK else ()
    page, desk = build(pipeline, card, max_pixels, max_file_size, hosts)
    desk.hear()
    shown = f"[{host}]" if ":" in host else host
    print(f"app: http://{shown}:{at.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
    try:
        Server(page, desk).run(sockets=[at])
    # uvicorn hands a signal on after its own end.
    except KeyboardInterrupt:
        pass
