"""Files on the disk: whole or as they were after any kill, cleaned up, locked, digested."""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damage import raising

from osdhuman_jax import disk

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def process(code: str, folder: Path) -> Iterator[subprocess.Popen]:
    """A process that runs `code` on `folder`, says a word, and waits to be killed."""
    lines = ["import sys, time", "from pathlib import Path", "from osdhuman_jax import disk"]
    lines += ["folder = Path(sys.argv[1])", code]
    command = [sys.executable, "-c", "\n".join(lines), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"ready\n"
        yield child
        child.kill()


WAIT = "print('ready', flush=True); time.sleep(600)"
WRITING = f"with disk.staged(folder / 'a.txt', b'new'): {WAIT}"
FILLING = f"""
with disk.staged_folder(folder / 'model', replace=True) as made:
    (made / 'weights').write_bytes(b'half'); {WAIT}
"""
# The process ends between the two renames of a replacement.
REPLACING = f"""
import os
rename = os.rename
def stop(a, b):
    if b == folder / 'model': {WAIT}
    rename(a, b)
os.rename = stop
with disk.staged_folder(folder / 'model', replace=True) as made:
    (made / 'weights').write_bytes(b'new')
"""


def test_written_files_are_what_was_given(tmp_path):
    disk.write_bytes(tmp_path / "a", b"\0\xff")
    disk.write_text(tmp_path / "b", "Körper\n")
    disk.write_json(tmp_path / "c", {"a": [1]})
    disk.copy_file(tmp_path / "a", tmp_path / "d")
    with disk.staged_file(tmp_path / "e") as file:
        file.write(b"filled")
    contents = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    text = "Körper\n".encode()
    assert contents == [b"\0\xff", text, b'{\n  "a": [\n    1\n  ]\n}\n', b"\0\xff", b"filled"]


def test_a_file_has_the_rights_of_any_new_file(tmp_path):
    disk.write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with disk.staged_folder(tmp_path / "folder"):
        pass
    (tmp_path / "plain_folder").mkdir()
    modes = [(tmp_path / name).stat().st_mode for name in ("folder", "plain_folder")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("where", ["inside", "on the disk"])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    disk.write_bytes(tmp_path / "a", b"old")

    full = OSError(errno.ENOSPC, "No space left on device")
    if where == "on the disk":
        monkeypatch.setattr(os, "fsync", raising(full))
    with pytest.raises(OSError, match="No space"):
        with disk.staged(tmp_path / "a", b"new"):
            raise full
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_file_and_folder_are_flushed_in_this_order(tmp_path, monkeypatch):
    seen = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append("folder" if path == tmp_path else path.suffix)
        real_sync(descriptor)

    def replace(a: Path, b: Path) -> None:
        seen.append("rename")
        real_replace(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    disk.write_bytes(tmp_path / "a", b"new")
    assert seen == [".tmp", "rename", "folder"]


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    disk.write_bytes(tmp_path / ("n" * 255), b"x")
    with disk.staged_folder(tmp_path / ("f" * 255)) as folder:
        (folder / "a").write_bytes(b"x")
    assert (tmp_path / ("f" * 255) / "a").exists() and len(names(tmp_path)) == 2


def test_leftovers_of_the_living_stay_and_those_of_the_dead_go(tmp_path):
    disk.write_bytes(tmp_path / "a.txt", b"old")
    with process(WRITING, tmp_path) as child:
        assert disk.remove_leftovers(tmp_path) == 0 and len(names(tmp_path)) == 2
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert disk.remove_leftovers(tmp_path) == len(b"new")
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_bytes() == b"old"


def test_the_next_process_that_writes_to_a_folder_cleans_it(tmp_path):
    with process(WRITING, tmp_path) as child:
        child.kill()
        child.wait()
    assert len(names(tmp_path)) == 1
    with process(f"disk.write_text(folder / 'b.txt', 'x'); {WAIT}", tmp_path):
        assert names(tmp_path) == ["b.txt"]


def test_leftovers_below_a_folder_are_found(tmp_path):
    left = tmp_path / "a" / "b" / f".{'0' * 16}.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    (tmp_path / "a" / ".other.tmp").write_bytes(b"not ours")
    assert disk.remove_leftovers(tmp_path) == 0
    assert disk.remove_leftovers(tmp_path, deep=True) == 4
    assert names(tmp_path / "a") == [".other.tmp", "b"] and not left.exists()


def test_a_links_target_is_no_leftover(tmp_path):
    (tmp_path / "kept").write_bytes(b"x")
    (tmp_path / f".{'0' * 16}.tmp").symlink_to("kept")
    disk.remove_leftovers(tmp_path)
    assert (tmp_path / "kept").exists()


def test_files_that_belong_together_appear_together(tmp_path, monkeypatch):
    path, beside = tmp_path / "a.onnx", tmp_path / "a.onnx.data"

    def write(text: str) -> None:
        with disk.staged_files(path) as made:
            made.write_text(text)
            (made.parent / beside.name).write_text(text)
            assert text == "old" or path.read_text() == beside.read_text() == "old"
            if text == "fails":
                raise OSError

    write("old")
    with pytest.raises(OSError):
        write("fails")
    assert path.read_text() == beside.read_text() == "old"
    # Stopped between the two, there is no file that the other's weights belong to.
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: replace(a, b) if b != path else raising(OSError)()
    )
    with pytest.raises(OSError):
        write("half")
    assert names(tmp_path) == ["a.onnx.data"] and beside.read_text() == "half"
    monkeypatch.undo()
    write("old")
    assert names(tmp_path) == ["a.onnx", "a.onnx.data"] and path.read_text() == "old"


def test_a_folder_appears_whole(tmp_path):
    with disk.staged_folder(tmp_path / "in" / "model") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a").write_bytes(b"x")
        assert not (tmp_path / "in" / "model").exists()
    assert names(tmp_path / "in") == ["model"]
    assert (tmp_path / "in" / "model" / "part" / "a").read_bytes() == b"x"


def test_a_folder_is_replaced_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(FileExistsError), disk.staged_folder(tmp_path / "model"):
        pytest.fail("must be refused before any work")
    with pytest.raises(ZeroDivisionError), disk.staged_folder(tmp_path / "model", replace=True):
        raise ZeroDivisionError
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]
    with disk.staged_folder(tmp_path / "model", replace=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["new"]


def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    real = os.rename

    def rename(a: Path, b: Path) -> None:
        if "new" in Path(a).parts:
            raise OSError(errno.EIO, "Input/output error")
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        with disk.staged_folder(tmp_path / "model", replace=True):
            pass
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


@pytest.mark.parametrize(("code", "left"), [(FILLING, b"old"), (REPLACING, b"new")])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(tmp_path, code, left):
    """Before the renames the old folder stands; between them the new one is whole already."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"old")
    with process(code, tmp_path) as child:
        disk.remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == 2 + (left == b"old")
        child.kill()
        child.wait()
        disk.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_bytes() == left


def test_a_workspace_is_gone_afterwards_and_its_ticket_last(tmp_path, monkeypatch):
    with disk.workspace(tmp_path) as folder:
        (folder / "a").touch()
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not names(tmp_path)
    with monkeypatch.context() as patch, disk.workspace(tmp_path) as folder:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
    assert len(names(tmp_path)) == 2
    disk.remove_leftovers(tmp_path)
    assert not names(tmp_path)


def without_locks(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", raising(OSError(code, os.strerror(code))))


@pytest.mark.parametrize("code", disk.NO_LOCKS)
def test_a_place_without_locks_is_warned_of_and_used(tmp_path, monkeypatch, capsys, code):
    without_locks(code, monkeypatch)
    with disk.hold(tmp_path / "log") as file:
        file.write(b"x")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'log'}: this file system has no locks")
    disk.write_bytes(tmp_path / "a", b"x")
    with disk.staged_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == ["a", "folder", "log"] and not capsys.readouterr().err


def test_without_locks_age_tells_the_dead(tmp_path, monkeypatch):
    without_locks(errno.ENOLCK, monkeypatch)
    young, old = (tmp_path / f".{digit * 16}.tmp" for digit in "01")
    for path in (young, old):
        path.touch()
    os.utime(old, (0, 0))
    disk.remove_leftovers(tmp_path)
    assert young.exists() and not old.exists()


def test_another_machines_leftovers_must_be_old_too(tmp_path):
    """Its locks may not be seen here."""
    ticket = tmp_path / f".{'0' * 16}-{'f' * 8}.tmp"
    inside = ticket.with_suffix(".folder") / "file"
    inside.parent.mkdir()
    inside.touch()
    ticket.touch()
    os.utime(ticket, (0, 0))
    disk.remove_leftovers(tmp_path)
    assert ticket.exists() and inside.exists()
    os.utime(inside, (0, 0))
    os.utime(inside.parent, (0, 0))
    disk.remove_leftovers(tmp_path)
    assert not names(tmp_path)


def test_other_faults_of_a_lock_are_told(tmp_path, monkeypatch):
    without_locks(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output"), disk.hold(tmp_path / "log"):
        pass


def test_one_process_at_a_time_holds_a_file(tmp_path):
    with process(f"with disk.hold(folder / 'log') as file: {WAIT}", tmp_path) as child:
        with pytest.raises(BlockingIOError, match="held by another process"):
            with disk.hold(tmp_path / "log"):
                pass
        child.kill()
        child.wait()
        with disk.hold(tmp_path / "log") as file:
            assert file.readall() == b""


def test_a_file_that_its_holder_removed_is_made_anew(tmp_path, monkeypatch):
    path, real = tmp_path / "log", fcntl.flock
    locked = []

    def flock(descriptor: int, how: int) -> None:
        if not locked:
            path.unlink()
        locked.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with disk.hold(path) as file:
        assert os.path.samestat(os.fstat(file.fileno()), path.stat())
    assert len(locked) == 2


def test_a_torn_line_is_ended_and_read_over(tmp_path):
    path = tmp_path / "log"
    disk.append_line(path, '{"a": 1}')
    path.write_bytes(path.read_bytes() + b'{"a": 2, "b')
    disk.append_line(path, '{"a": 3}')
    disk.append_line(path, '{"a": 4}')
    path.write_bytes(path.read_bytes() + b"\xff\0[5]\n[6]\n" + b'{"a"')
    assert path.read_bytes().count(b"\n") == 6
    assert [line["a"] for line in disk.json_lines(path.read_bytes())] == [1, 3, 4]


def test_digests_are_of_the_bytes_that_are_there(tmp_path):
    path = tmp_path / "a"
    for data in (b"one", b"other"):
        path.write_bytes(data)
        assert disk.file_digest(path) == disk.known_digest(path) == hashlib.sha256(data).hexdigest()
