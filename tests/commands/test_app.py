"""The page, most of it in a real headless Chromium: extra `app`, playwright, a Chromium.

python -m pytest -m page          # CHROMIUM names another browser than /usr/bin/chromium
"""

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import bomb
from PIL import Image
from skimage.data import astronaut

from osdhuman_jax.commands import app
from osdhuman_jax.inference import pipeline

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
        tab.wait_for_selector("body[data-ready]")
        yield tab
        browser.close()
    assert asked and all(url.startswith((address, "blob:", "data:")) for url in asked)


def photo(path: Path) -> Path:
    Image.fromarray(astronaut()[20:120, 180:280]).save(path, quality=40)
    return path


def upload(page: Any, *paths: Path) -> None:
    """Choose files and wait until all of them were looked at."""
    page.set_input_files("#files", paths)
    page.wait_for_function("() => items.length && !items.some(item => item.state === 'looking')")


def done(page: Any) -> None:
    """Wait until nothing is restored any more."""
    page.wait_for_function("() => !running")


def saved(page: Any, press: Callable[[], object]) -> tuple[str, bytes]:
    """Name and bytes of the download that follows."""
    with page.expect_download() as download:
        press()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


@pytest.mark.page
def test_a_picture_is_restored_compared_and_downloaded(page, tmp_path):
    source = photo(tmp_path / "someone.jpg")
    page.get_by_label("Colours of the original").select_option("wavelet")
    upload(page, source)
    page.get_by_role("button", name="Restore this picture").click()
    button = page.get_by_role("button", name="Download someone_restored.png")
    name, data = saved(page, button.click)
    assert name == "someone_restored.png"
    flags = ["--input", str(source), "--output", str(tmp_path / "out"), "--color_fix", "wavelet"]
    command = [sys.executable, "infer.py", *flags]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    assert data == (tmp_path / "out" / "someone.png").read_bytes()
    assert "Restored with colours of the original wavelet" in page.locator("#facts").inner_text()
    move_slider(page, tmp_path)


def move_slider(page: Any, folder: Path) -> None:
    """The line follows the mouse, and the picture changes between its places."""
    frame = page.locator("#frame").bounding_box()
    middle = frame["y"] + frame["height"] / 2
    shots = []
    for part in (0.25, 0.75):
        page.mouse.move(frame["x"] + frame["width"] / 2, middle)
        page.mouse.down()
        page.mouse.move(frame["x"] + part * frame["width"], middle, steps=5)
        page.mouse.up()
        box = page.locator("#line").bounding_box()
        place = (box["x"] + box["width"] / 2 - frame["x"]) / frame["width"]
        assert place == pytest.approx(part, abs=0.05)
        page.screenshot(path=folder / f"{part}.png")
        shots.append(np.asarray(Image.open(folder / f"{part}.png").convert("RGB"), int))
    assert np.abs(shots[0] - shots[1]).max() > 20


def tab_to(page: Any, wanted: str, backwards: bool = False) -> None:
    """Press Tab until what is focused has this id, or class in the queue."""
    key = "Shift+Tab" if backwards else "Tab"
    for _ in range(60):
        page.keyboard.press(key)
        found = page.evaluate("() => [document.activeElement.id, document.activeElement.className]")
        if wanted in found:
            return
    raise AssertionError(f"{wanted} is not reached")


@pytest.mark.page
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_folder_by_the_keyboard_alone(page, tmp_path, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    # Early: the browser is told of it without an answer, and might open a window of its own.
    page.on("filechooser", lambda chooser: None)
    (tmp_path / "notes.txt").touch()
    sources = [photo(tmp_path / name) for name in ("b.tif", "a.jpg", "c.webp")]
    # Chosen: the focus stays on the button.
    tab_to(page, "choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([*sources, tmp_path / "notes.txt"])
    page.get_by_text("3 pictures added; 1 file of other kinds left out.").wait_for()
    page.wait_for_function("() => items.every(item => item.state === 'ready')")
    # Looked at, before anything is restored; and one is taken out again.
    assert page.locator("#before").get_attribute("alt") == "b.tif"
    tab_to(page, "pick")
    tab_to(page, "remove")
    tab_to(page, "pick")
    page.keyboard.press("Enter")
    assert page.locator("#name").inner_text() == "a.jpg"
    tab_to(page, "pick")
    tab_to(page, "remove")
    page.keyboard.press("Enter")
    assert page.evaluate("() => items.map(item => item.name)") == ["b.tif", "a.jpg"]
    assert (
        page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Remove a.jpg"
    )
    # Restored, all of them.
    tab_to(page, "restore-all")
    page.keyboard.press("Enter")
    page.get_by_text("2 pictures restored.").wait_for()
    states = page.locator("#queue .state").all_inner_texts()
    assert states == ["restored", "restored"]
    # Compared: the slider is one of the browser's own, and says what it shows.
    tab_to(page, "share", backwards=True)
    slider = page.get_by_role("slider", name="Before and after")
    for key, value in (("Home", "0 % before, 100 % after"), ("ArrowRight", "1 % before, 99 %")):
        page.keyboard.press(key)
        assert (slider.get_attribute("aria-valuetext") or "").startswith(value)
    assert page.locator("#before").get_attribute("alt") == "a.jpg before"
    assert page.locator("#after").get_attribute("alt") == "a.jpg restored"
    # Downloaded, one and all.
    tab_to(page, "download")
    name, one = saved(page, lambda: page.keyboard.press("Enter"))
    assert name == "a_restored.png"
    tab_to(page, "zip")
    name, data = saved(page, lambda: page.keyboard.press("Enter"))
    assert name == "restored.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["b_restored.png", "a_restored.png"]
        assert archive.read("a_restored.png") == one
    # Nothing is wider than the window.
    assert page.evaluate("() => document.documentElement.scrollWidth") == width


@pytest.mark.page
def test_a_result_of_before_is_gone_whatever_follows(page, tmp_path):
    upload(page, photo(tmp_path / "someone.jpg"))
    page.get_by_role("button", name="Restore this picture").click()
    done(page)
    button = page.locator("#download")
    assert button.is_enabled()
    page.get_by_label("Enlarge").fill("4")
    assert "the settings are others now" in page.locator("#facts").inner_text()
    # 400 x 400 is more than the page takes.
    page.get_by_role("button", name="Restore again").click()
    page.get_by_text("Not restored: enlarged it has 400 x 400, which is more than").wait_for()
    assert button.is_disabled() and page.locator("#zip").is_disabled()
    assert page.locator("#share").is_hidden()
    assert page.evaluate("() => items[0].result") is None
    page.get_by_label("Enlarge").fill("1")
    page.get_by_role("button", name="Restore this picture").click()
    done(page)
    assert button.is_enabled() and page.locator("#problem").is_hidden()


@pytest.mark.page
def test_where_it_is_painted_it_is_restored(page, tmp_path):
    """By keys: the brush goes from the middle to the right, a tenth of the width wide."""
    upload(page, photo(tmp_path / "someone.png"))
    tab_to(page, "painting")
    page.keyboard.press("Enter")
    for key in [" ", *["ArrowRight"] * 12, " "]:
        page.keyboard.press(key)
    assert page.locator("#status").inner_text() == "The brush is up."
    tab_to(page, "restore")
    page.keyboard.press("Enter")
    done(page)
    assert "where it was painted." in page.locator("#facts").inner_text()
    name, data = saved(page, page.locator("#download").click)
    made = np.asarray(Image.open(io.BytesIO(data)), int)
    changed = np.abs(made - np.asarray(Image.open(tmp_path / "someone.png"), int)).max(axis=-1) > 0
    assert changed[46:54, 55:95].mean() > 0.5
    assert not changed[:40].any() and not changed[60:].any() and not changed[:, :40].any()


@pytest.mark.page
def test_what_is_waited_for_is_told_and_can_be_stopped(page, tmp_path):
    upload(page, photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg"))
    words = {"state": "compiling", "seconds": 3, "expected": 20, "ahead": 0, "total": 0}
    page.route("**/api/progress*", lambda route: route.fulfill(json=words))
    page.route("**/api/restore*", lambda route: None)
    page.get_by_role("button", name="Restore all (2)").click()
    page.get_by_text("Compiling for this size, once, about 20 s (3 s so far).").wait_for()
    words.update(state="restoring", done=2, total=9, unit="tiles")
    page.get_by_text("Restoring: tiles 2 of 9.").wait_for()
    page.get_by_role("button", name="Stop").click()
    done(page)
    assert page.locator("#queue .state").all_inner_texts() == ["ready", "ready"]


@pytest.mark.page
def test_the_model_is_told_of_in_words_and_by_its_card(page):
    page.get_by_text("The model is called nano.").wait_for()
    page.get_by_text("Its card, for whoever knows models").click()
    page.get_by_role("heading", name="nano: the bundled model").wait_for()
    assert page.get_by_role("button", name="Restore this picture").is_disabled()


@pytest.mark.page
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"hello", "Cannot be restored: not a PNG, JPEG, WebP, TIFF, BMP, AVIF or HEIC image"),
        (bomb(), "pixels"),
        (bytes(200_001), "Cannot be restored: The file has more than 0.2 MiB."),
    ],
    ids=["text", "bomb", "large"],
)
def test_what_is_no_picture_is_refused_in_words(page, tmp_path, data, said):
    (tmp_path / "a.png").write_bytes(data)
    upload(page, tmp_path / "a.png")
    assert said in page.locator("#problem").inner_text()
    assert page.locator("#restore").is_disabled()


@pytest.mark.page
def test_the_policy_forbids_the_rest_of_the_world(page):
    script = "() => fetch('http://127.0.0.1:9/').then(() => 'reached', error => 'refused')"
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        assert page.evaluate(script) == "refused"


def test_warnings_are_shown(tmp_path, capsys):
    logging.getLogger("osdhuman_jax").setLevel(logging.NOTSET)
    assert app.main(["--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"app: {tmp_path}")
    assert logging.getLogger(pipeline.__name__).isEnabledFor(logging.WARNING)
