"""The page, most of it in a real headless Chromium: extra `app`, playwright, a Chromium.

python -m pytest -m page          # CHROMIUM names another browser than /usr/bin/chromium
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from damage import raising
from picture_files import bomb
from PIL import Image
from skimage.data import astronaut
from tiny import halving

from osdhuman_jax.commands import app
from osdhuman_jax.commands import page as page_module
from osdhuman_jax.inference import pipeline
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.weights import random_restorer, save_model

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PATIENCE = 300_000  # milliseconds; the first picture is compiled
LIMITS = ["--max_pixels", "60000", "--max_file_size", "200000"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served with small limits by the command, where the network has a proxy.

    It cleans up when it is interrupted, and at the start what a page that was killed has left.
    """
    folder = tmp_path_factory.mktemp("page")
    (folder / ".0123456789abcdef.folder").mkdir()
    (folder / ".0123456789abcdef.folder" / "someone.jpg").touch()
    (folder / ".0123456789abcdef.tmp").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "osdhuman_jax.commands.app", "--model", "models/nano"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *LIMITS],
        cwd=ROOT,
        env=ENVIRONMENT | {"TMPDIR": str(folder), "HTTP_PROXY": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"app: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
    assert not list(folder.rglob("someone.jpg"))
    try:
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert not list(folder.iterdir())


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """A tab that has loaded the page; every request must be to it."""
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 800})
        tab.set_default_timeout(PATIENCE)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.get_by_role("button", name="Restore").wait_for()
        yield tab
        browser.close()
    assert asked and all(url.startswith((address, "blob:", "data:")) for url in asked)


@pytest.mark.parametrize(
    ("uploaded", "name"),
    [
        ("photo #1.jpg", "photo #1.png"),
        ("100% sure.JPG", "100% sure.png"),
        ("день рождения.a.b.webp", "день рождения.a.b.png"),
        ("back\\slash\u00a0\n.jpe", "back\\slash\u00a0\n.png"),
        (None, "kept.png"),
        ("", "kept.png"),
        ("..", "kept.png"),
        ("../up.jpg", "kept.png"),
        ("nul\0.jpg", "kept.png"),
        ("half \ud800.jpg", "kept.png"),
        ("x" * 252 + ".jpg", "kept.png"),
    ],
)
def test_downloads_are_named_as_infer_names_files(uploaded, name):
    assert page_module.download_name(Path("kept.jpg"), uploaded) == name


def photo(path: Path) -> Path:
    Image.fromarray(astronaut()[20:120, 180:280]).save(path, quality=40)
    return path


def upload(page: Any, path: Path, press: bool = True) -> None:
    page.set_input_files("input[type=file]", path)
    page.get_by_text(path.name).first.wait_for()
    if press:
        page.get_by_role("button", name="Restore").click()


def toast(page: Any) -> str:
    """What the page says has gone wrong."""
    box = page.get_by_test_id("toast-body")
    box.wait_for()
    return box.inner_text()


@pytest.mark.page
def test_a_picture_is_restored_compared_and_downloaded(page, tmp_path):
    source = photo(tmp_path / "someone.jpg")
    page.get_by_text("none", exact=True).wait_for()
    page.get_by_text("wavelet", exact=True).click()
    upload(page, source)
    button = page.get_by_role("button", name="Download PNG")
    page.wait_for_function("() => document.querySelectorAll('.slider-wrap img').length > 1")
    with page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename == "someone.png"
    flags = ["--input", str(source), "--output", str(tmp_path / "out"), "--color_fix", "wavelet"]
    command = [sys.executable, "infer.py", *flags]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    expected = (tmp_path / "out" / "someone.png").read_bytes()
    assert Path(download.value.path()).read_bytes() == expected
    move_slider(page, tmp_path)


def move_slider(page: Any, folder: Path) -> None:
    """The handle follows the mouse, and the picture changes between its places."""
    handle = page.locator(".slider-wrap .outer")
    wrap = page.locator(".slider-wrap").bounding_box()
    middle = wrap["y"] + wrap["height"] / 2
    shots = []
    for part in (0.25, 0.75):
        box = handle.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, middle)
        page.mouse.down()
        page.mouse.move(wrap["x"] + part * wrap["width"], middle, steps=5)
        page.mouse.up()
        box = handle.bounding_box()
        place = (box["x"] + box["width"] / 2 - wrap["x"]) / wrap["width"]
        assert place == pytest.approx(part, abs=0.05)
        page.screenshot(path=folder / f"{part}.png")
        shots.append(np.asarray(Image.open(folder / f"{part}.png").convert("RGB"), int))
    assert np.abs(shots[0] - shots[1]).max() > 20


@pytest.mark.page
def test_the_card_is_there_and_nothing_is_restored_of_nothing(page):
    page.get_by_text("The model: nano").click()
    page.get_by_role("heading", name="nano: the bundled model").wait_for()
    page.get_by_role("button", name="Restore").click()
    assert "Choose a picture first." in toast(page)


@pytest.mark.page
@pytest.mark.parametrize(
    ("data", "said"),
    [(b"hello", "a.png: not a PNG, JPEG or WebP image"), (bomb(), "pixels")],
    ids=["text", "bomb"],
)
def test_what_is_no_picture_is_refused_in_words(page, tmp_path, data, said):
    (tmp_path / "a.png").write_bytes(data)
    upload(page, tmp_path / "a.png")
    assert said in toast(page)


@pytest.mark.page
def test_too_large_a_file_is_refused(page, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(200_001))
    upload(page, tmp_path / "large.png", press=False)
    assert "size" in toast(page)


@pytest.mark.page
def test_the_policy_forbids_the_rest_of_the_world(page):
    script = "() => fetch('http://127.0.0.1:9/').then(() => 'reached', error => 'refused')"
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        assert page.evaluate(script) == "refused"


def test_warnings_are_shown(tmp_path, monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # as it was, afterwards
    logging.getLogger("osdhuman_jax").setLevel(logging.NOTSET)
    assert app.main(["--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"app: {tmp_path}")
    assert logging.getLogger(pipeline.__name__).isEnabledFor(logging.WARNING)


@pytest.mark.page
def test_the_page_of_a_guided_model_has_a_slider(tmp_path):
    save_model(tmp_path / "dual", tiny.DUAL_MODEL, random_restorer(tiny.DUAL_MODEL, 3))
    labels = {}
    for name, made in (
        ("one prompt", halving()),
        ("two prompts", Pipeline.from_folder(tmp_path / "dual", bucket=16)),
    ):
        (handler,) = page_module.build(made, "", 60_000, tmp_path).fns.values()
        labels[name] = [component.label for component in handler.inputs]
    assert labels["two prompts"] == [*labels["one prompt"], "Guidance"]
    Image.fromarray(astronaut()[40:72, 200:248]).save(tmp_path / "someone.png")
    file = (str(tmp_path / "someone.png"), None)
    (_, one), (_, other) = (
        handler.fn(file, 1, "none", guidance, lambda *_, **__: None)[0] for guidance in (1.0, 9.0)
    )
    assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() > 0


@pytest.mark.page
def test_a_want_of_memory_is_told_in_words(tmp_path, monkeypatch):
    import gradio

    blocks = page_module.build(halving(), "", 60_000, tmp_path)
    (restore,) = (block.fn for block in blocks.fns.values())
    monkeypatch.setattr(page_module, "encode", raising(MemoryError()))
    with pytest.raises(gradio.Error, match="someone.jpg: out of memory: try a smaller"):
        restore(
            (str(photo(tmp_path / "someone.jpg")), None), 1, "none", None, lambda *_, **__: None
        )
