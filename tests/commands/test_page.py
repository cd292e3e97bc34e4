"""What is behind the page, asked by httpx and curl; the page itself is in test_app.py."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from damage import raising
from picture_files import bomb, encoded, noise
from tiny import halving

from osdhuman_jax.commands import page, page_controls, page_upload, page_words
from osdhuman_jax.config import SampleConfig, UseConfig
from osdhuman_jax.images.codec import decode, encode
from osdhuman_jax.inference import programs
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.restraint import Restrained, RestraintOptions
from osdhuman_jax.inference.settings import strong
from osdhuman_jax.weights.abilities import Abilities

ROOT = Path(__file__).parents[2]
PICTURE = encoded(noise(40, 30))
Ask = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return halving()


def talk(pipeline: Pipeline, ask: Ask, hosts: tuple[str, ...] = page.LOOPBACK) -> Any:
    """What `ask` gives, of a client of the page with small limits."""

    async def main() -> Any:
        app, desk = page.build(
            pipeline, "# A <u>card</u>\n<!-- table -->\n\n<b>bold</b>", 60_000, 200_000, hosts
        )
        desk.hear()
        way = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=way, base_url="http://localhost") as client:
            return await ask(client)

    return asyncio.run(main())


def post(
    pipeline: Pipeline,
    data: bytes = PICTURE,
    name: str = "a.png",
    to: str = "restore",
    headers: dict[str, str] | None = None,
    **settings: object,
) -> httpx.Response:
    """The answer to one picture."""
    asked = {key: str(value) for key, value in settings.items()}
    files = {"picture": (name, data)}

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(f"/api/{to}", files=files, data=asked, headers=headers)

    return talk(pipeline, ask)


def test_the_answer_is_the_file_that_infer_writes(pipeline):
    answer = post(pipeline, name="día #1.tif", upscale=1.5, strength=0.5, color_fix="wavelet")
    (want,) = pipeline.restore([decode(PICTURE, deep=True)], 1.5, "wavelet", strength=0.5)
    assert answer.content == encode(want)
    assert answer.headers["content-type"] == "image/png"
    named = answer.headers["content-disposition"]
    assert 'filename="d_a #1_restored.png"' in named
    assert named.endswith("filename*=UTF-8''d%C3%ADa%20%231_restored.png")
    jpeg = post(pipeline, format="jpeg", quality=30)
    assert jpeg.content == encode(pipeline.restore([decode(PICTURE)])[0], "jpeg", 30)


def test_sixteen_bits_stay(pipeline):
    pixels = np.random.default_rng(0).integers(0, 65_536, (12, 16, 3), np.uint16)
    deep = encode(page.Picture(pixels))
    assert decode(post(pipeline, deep).content, deep=True).rgb.dtype == np.uint16


@pytest.mark.parametrize(
    ("data", "settings", "status", "words"),
    [
        (b"hello", {}, 400, "not a PNG, JPEG, WebP, TIFF, BMP, AVIF or HEIC image"),
        (bomb(), {}, 400, "60000 x 60000 is more than 60000 pixels"),
        (PICTURE, {"upscale": 4, "size": 1}, 400, "size is no setting; settings are strength"),
        (PICTURE, {"upscale": 9}, 400, "upscale must be from 1 to 4"),
        (PICTURE, {"strength": "nan"}, 400, "strength must be from 0 to 1"),
        (PICTURE, {"quality": 1.5}, 400, "quality must be a whole number from 1 to 100"),
        (PICTURE, {"format": "gif"}, 400, "format must be one of png, webp, jpeg"),
        (encoded(noise(200, 150)), {"upscale": 2}, 400, "enlarged it has 300 x 400, which is more"),
        (bytes(200_001), {}, 413, "the file has more than 0.190735 MiB (--max_file_size)"),
        (bytes(600_000), {}, 413, "the file has more than"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(pipeline, data, settings, status, words):
    answer = post(pipeline, data, **settings)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(words)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory: try a smaller"),
        (KeyError("x"), "something went wrong inside (KeyError): the terminal tells more"),
    ],
)
def test_what_goes_wrong_inside_is_said_in_words(pipeline, monkeypatch, error, words):
    monkeypatch.setattr(page, "encode", raising(error))
    answer = post(pipeline)
    assert answer.status_code == 500 and answer.json()["error"].startswith(words)
    assert "content-security-policy" in answer.headers or words.startswith("something")


def test_a_form_without_a_picture(pipeline):
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/api/restore", data={"picture": "text"})

    assert talk(pipeline, ask).json()["error"].startswith("send the picture as the file `picture`")


FILE = ("a.png", PICTURE)


@pytest.mark.parametrize(
    ("files", "fields", "words"),
    [
        ([("picture", FILE)] * 2, {}, "picture is given 2 times: give it once"),
        ([("picture", FILE)], {"strength": ["0", "1"]}, "strength is given 2 times"),
        ([("picture", FILE)], {"mask": ""}, "mask must be a file"),
        ([("picture", FILE)], {"picture": ""}, "picture is given 2 times"),
        ([("picture", FILE), *[("mask", FILE)] * 2], {}, "the form cannot be read: Too many files"),
        ([("picture", FILE)], {"a": ["b"] * 21}, "the form cannot be read: Too many fields"),
    ],
)
def test_a_form_that_cannot_be_meant(pipeline, files, fields, words):
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/api/restore", files=files, data=fields)

    answer = talk(pipeline, ask)
    assert answer.status_code == 400 and answer.json()["error"].startswith(words)


FORM = "multipart/form-data"
CHUNKED = {"transfer-encoding": "chunked"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "words"),
    [
        ("GET", "/nothing", {}, 404, "there is nothing at this address"),
        ("PUT", "/api/restore", {}, 405, "this address does not take PUT"),
        ("POST", "/api/restore", {"content-type": FORM}, 400, "the form cannot be read: Missing"),
        ("POST", "/api/restore", {"content-type": f"{FORM}; boundary=b"}, 400, "the form cannot"),
        ("POST", "/api/restore", {"content-length": ""}, 411, "no Content-Length: tell how many"),
        ("POST", "/api/restore", CHUNKED | {"content-length": "4"}, 411, "no Content-Length"),
    ],
)
def test_every_error_is_json(pipeline, method, path, headers, status, words):
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path, headers=headers, content=b"what")

    answer = talk(pipeline, ask)
    assert answer.status_code == status and answer.json()["error"].startswith(words)
    assert status != 405 or answer.headers["allow"] == "POST"


BEGUN = {"content-length": "100000", "content-type": f"{FORM}; boundary=b"}


def test_who_sends_nothing_keeps_nobody_waiting(pipeline):
    begun: list[None] = []

    async def nothing() -> AsyncIterator[bytes]:
        yield b"--b"
        begun.append(None)
        await asyncio.sleep(3600)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        ways = [
            client.post("/api/restore", content=nothing(), headers=BEGUN)
            for _ in range(page.WAITING)
        ]
        tasks = [asyncio.create_task(way) for way in ways]
        while len(begun) < page.WAITING:
            await asyncio.sleep(0)
        answer = await client.post("/api/restore", files={"picture": FILE})
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return answer

    assert talk(pipeline, ask).status_code == 200


@pytest.mark.parametrize(
    ("pause", "slowest"),
    [pytest.param(3600, 1, id="nothing"), pytest.param(0.01, float("inf"), id="drops")],
)
def test_what_comes_too_slowly_is_given_up(pipeline, monkeypatch, pause, slowest):
    monkeypatch.setattr(page_upload, "PATIENCE", 0.1)
    monkeypatch.setattr(page_upload, "SLOWEST", slowest)

    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"\n"  # which forms may begin with
            await asyncio.sleep(pause)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/api/restore", content=slow(), headers=BEGUN)

    answer = talk(pipeline, ask)
    assert answer.status_code == 408 and answer.headers["connection"] == "close"
    assert answer.json()["error"] == "the picture came too slowly: send it again"


def test_a_queue_that_fills_while_a_picture_is_sent(pipeline, monkeypatch):
    whole = httpx.Request("POST", "http://localhost", files={"picture": FILE})

    async def body() -> AsyncIterator[bytes]:
        monkeypatch.setattr(page, "WAITING", 0)
        yield whole.read()

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/api/restore", content=body(), headers=whole.headers)

    answer = talk(pipeline, ask)
    assert answer.status_code == 503 and "pictures wait already" in answer.json()["error"]


def test_who_leaves_while_sending_is_no_error(pipeline):
    app, _ = page.build(pipeline, "", 60_000, 200_000)
    headers = BEGUN | {"host": "localhost"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/restore",
        "query_string": b"",
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
    }

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    asyncio.run(app(scope, receive, send))


def test_a_look_tells_size_and_remarks(pipeline):
    told = post(pipeline, encoded(noise(20, 30), "TIFF"), to="look").json()
    assert (told["width"], told["height"], told["note"]) == (30, 20, "")
    assert told["preview"].startswith("data:image/webp;base64,UklGR")
    assert post(pipeline, b"hello", to="look").status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, 200),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "https://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "elsewhere.example"}, 403),
        ({"host": "[::1"}, 403),
    ],
)
def test_other_pages_are_refused(pipeline, headers, status):
    answer = post(pipeline, to="look", headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_on_a_network_every_name_is_taken(pipeline):
    async def ask(client: httpx.AsyncClient) -> list[int]:
        own = {"host": "studio.local", "origin": "http://studio.local"}
        other = {"host": "studio.local", "origin": "http://elsewhere.example"}
        answers = [await client.get("/api/model", headers=headers) for headers in (own, other)]
        return [answer.status_code for answer in answers]

    assert talk(pipeline, ask, hosts=()) == [200, 403]


def test_pictures_wait_for_their_turn_and_are_told_of_it(pipeline, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return Restrained(decode(PICTURE))

    monkeypatch.setattr(page, "restore_file", slow)
    files = {"picture": ("a.png", PICTURE)}

    async def ask(client: httpx.AsyncClient) -> Any:
        async def told(ticket: str) -> dict[str, Any]:
            return (await client.get("/api/progress", params={"ticket": ticket})).json()

        def send(n: int) -> asyncio.Task:
            way = client.post("/api/restore", files=files, params={"ticket": str(n)})
            return asyncio.create_task(way)

        sent = [send(n) for n in range(page.WAITING)]
        await asyncio.to_thread(begun.wait, 60)
        one_more = await send(page.WAITING)
        first, last = await told("0"), await told(str(page.WAITING - 1))
        # What is compiled is told to the one whose turn it is.
        programs.log.info(programs.COMPILING, "the restorer for 8 x 8")
        compiling = await told("0")
        programs.log.info(programs.COMPILED, 7.4)
        programs.log.info(programs.COMPILING, "the restorer for 16 x 16")
        again = await told("0")
        go_on.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*sent)]
        return first, last, compiling, again, statuses, one_more, await told("0")

    first, last, compiling, again, statuses, one_more, after = talk(pipeline, ask)
    assert (first["state"], last["state"], last["ahead"]) == ("restoring", "waiting", 7)
    assert (compiling["state"], compiling["expected"]) == ("compiling", round(page.FIRST))
    assert again["expected"] == 7
    assert statuses == [200] * page.WAITING
    assert one_more.status_code == 503 and "8 pictures wait already" in one_more.json()["error"]
    assert after == {"state": "unknown"}


def test_the_end_gives_up_what_is_computed(pipeline, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(page, "restore_file", lambda *_: go_on.wait(60))

    async def main() -> Any:
        app, desk = page.build(pipeline, "", 60_000, 200_000)
        desk.closing = True
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            return await client.post("/api/restore", files={"picture": ("a.png", PICTURE)})

    answer = asyncio.run(main())
    go_on.set()
    assert (answer.status_code, answer.json()["error"]) == (503, "the page has ended")


@pytest.mark.parametrize(
    ("uploaded", "name"),
    [
        ("photo.jpg", "photo_restored.png"),
        ("photo #1.jpg", "photo #1_restored.png"),
        ("100% sure.JPG", "100% sure_restored.png"),
        ("день рождения.a.b.webp", "день рождения.a.b_restored.png"),
        ("back\\slash\u00a0\n.jpe", "back\\slash\u00a0\n_restored.png"),
        ("", "picture_restored.png"),
        ("..", "picture_restored.png"),
        ("../up.jpg", "picture_restored.png"),
        ("nul\0.jpg", "picture_restored.png"),
        ("half \ud800.jpg", "picture_restored.png"),
        ("x" * 252 + ".jpg", "picture_restored.png"),
    ],
)
def test_downloads_are_named_after_their_pictures(uploaded, name):
    assert page.download_name(uploaded) == name


def test_every_setting_has_a_control(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(page_controls, "_people_can_be_found", lambda: True)
    named = {control.name for control in page_controls.controls(pipeline)}
    taken = set(signature(Pipeline.restored).parameters) | set(RestraintOptions.__annotations__)
    # Blend and guidance are what strength is of a model; files of the server's are not the page's.
    others = {"self", "pictures", "progress", "requests", "restraint", "mask", "sampling"}
    others |= {"blend", "guidance", "face_detector", "face_embedding"}
    assert named == taken - others | {"format", "quality"}
    wish = page_controls.read_wish({"people_only": "people", "strength": "0.5"}, pipeline)
    assert (wish.people_only, wish.strength, wish.keep_faces) == ("blazepose", 0.5, None)


def test_strength_begins_at_the_models_own(monkeypatch):
    made = halving()
    assert page_controls.own_strength(made) == made.model.use.blend
    monkeypatch.setattr(type(made.model.restorer), "guidance", 3.5)
    own = page_controls.own_strength(made)
    assert strong(UseConfig(), 3.5, None, own) == {"guidance": pytest.approx(3.5, abs=1e-3)}


def test_a_mask_says_where(pipeline):
    pixels = noise(40, 30)
    mask = np.zeros((40, 30, 3), np.uint8)
    mask[:, 10:] = 255
    files = {"picture": ("a.png", encoded(pixels)), "mask": ("mask.png", encoded(mask))}
    wrong = files | {"mask": ("mask.png", encoded(mask[:9]))}

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/api/restore", files=sent) for sent in (files, wrong)]

    made, refused = talk(pipeline, ask)
    result = decode(made.content).rgb
    np.testing.assert_array_equal(result[:, :10], pixels[:, :10])
    assert (result[:, 10:] != pixels[:, 10:]).any()
    text = "the mask has 30 x 9 pixels, the picture 30 x 40"
    assert (refused.status_code, refused.json()["error"]) == (400, text)


def test_the_model_in_words(pipeline):
    async def ask(client: httpx.AsyncClient) -> Any:
        return (await client.get("/api/model")).json()

    told = talk(pipeline, ask)
    assert "restores photographs of people in one step" in told["words"][0]
    # A card's own HTML is text.
    assert told["card"] == "<h1>A card</h1>\n<p>&lt;b&gt;bold&lt;/b&gt;</p>\n"
    assert {".heic", ".tif", ".jpg"} <= set(told["suffixes"])
    body = halving()
    body.model.use = UseConfig(sides=(128, 0), work_side=512, blend=0.8)
    body.abilities = Abilities(SampleConfig(steps=50), *[False] * 6)
    text = " ".join(page_words.model_words(body))
    for part in ("many steps (50 ", "has at least 128 pixels", "less than 512"):
        assert part in text


@pytest.fixture
def address(pipeline) -> Iterator[str]:
    """The page on a port of this machine."""
    at = page.listening("127.0.0.1", 0)
    app, desk = page.build(pipeline, "", 60_000, 200_000)
    server = page.Server(app, desk)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
    thread.start()
    try:
        yield f"127.0.0.1:{at.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def test_what_is_no_http_is_told_so_in_json(address):
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        head, _, body = line.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-security-policy" in head
    assert json.loads(body) == {"error": "Invalid HTTP request received."}


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_curl_as_the_docs_have_it(pipeline, address, tmp_path):
    docs = (ROOT / "docs" / "inference.md").read_text()
    (line,) = re.findall(r"^curl .*/api/restore.*$", docs, re.MULTILINE)
    (tmp_path / "photo.jpg").write_bytes(encoded(noise(40, 30), "JPEG"))
    command = line.partition("   #")[0].replace("127.0.0.1:7860", address)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    (made,) = {path.name for path in tmp_path.iterdir()} - {"photo.jpg"}
    assert made == "photo_restored.png"
    assert decode((tmp_path / made).read_bytes()).size == (80, 60)
    model = subprocess.run(["curl", "-s", f"http://{address}/api/model"], capture_output=True)
    assert json.loads(model.stdout)["name"] == "halve"
