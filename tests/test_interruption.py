"""Work in a thread of its own: what comes back, and what a signal ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from osdhuman_jax import interruption
from osdhuman_jax.interruption import Stopped, apart, leave

ROOT = Path(__file__).parent.parent


def test_what_work_gives_or_raises_comes_back():
    assert apart(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0)
    with pytest.raises(SystemExit) as ended:
        leave(4)
    assert ended.value.code == 4


@pytest.fixture
def endless(monkeypatch):
    """Work that comes back when the test is over."""
    monkeypatch.setattr(interruption, "_threads", [])
    over = threading.Event()
    yield lambda: over.wait(60)
    over.set()


def test_a_signal_is_heard_meanwhile(endless):
    """Sent by the process itself, as soon as the main thread waits."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        apart(endless)
    assert time.monotonic() - before < 5


def test_a_signal_that_was_only_noted_ends_it(endless, monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(Stopped):
        apart(endless, stopped=lambda: True)
    with pytest.raises(SystemExit):  # in earnest, _exit does not come back
        leave(130)
    assert ended == [130]


def test_infer_ends_while_it_compiles(tmp_path):
    """The bundled model, with no program kept: nothing is left behind."""
    Image.fromarray(skimage.data.astronaut()[:64, 200:264]).save(tmp_path / "a.png")
    command = [sys.executable, str(ROOT / "infer.py"), "--input", str(tmp_path / "a.png")]
    slow = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "c")}
    slow["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "false"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **slow}
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stderr is not None
        assert any("compiling the restorer for 256 x 256 ..." in line for line in process.stderr)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        before = time.monotonic()
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and time.monotonic() - before < 5
    assert rest.splitlines()[-1] == ("infer.py: interrupted; the same command goes on where it was")
    assert "Traceback" not in rest and not (tmp_path / "out").exists()
