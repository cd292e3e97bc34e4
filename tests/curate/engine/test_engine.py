"""The engine: what is done stays done, a kill loses a shard at most, one bad item costs itself."""

import multiprocessing
import os
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from engine_jobs import DiskFull, Doubling, Dying

from curate.engine import engine
from curate.engine.engine import Engine, run_local
from curate.engine.ledger import LedgerError, ShardLedger, tree_digest
from curate.engine.worker import ShardJob, Task
from osdhuman_jax.disk import json_lines, staged_file
from osdhuman_jax.workers import EngineError

SHARDS = ["0-4", "4-8", "8-12"]


def read(root: Path, shard: str) -> list[str]:
    return ShardLedger(root).output("double", shard, "lines.txt").read_text().split()


def test_second_run_does_nothing_and_changes_nothing(tmp_path):
    engine = Engine(tmp_path)
    assert engine.run(Doubling(), SHARDS) == 3
    before = tree_digest(tmp_path)
    assert read(tmp_path, "4-8") == ["8", "10", "12", "14"]
    assert engine.run(Doubling(), SHARDS) == 0
    assert tree_digest(tmp_path) == before


def test_digest_sees_names_and_bytes_but_no_bookkeeping(tmp_path):
    Engine(tmp_path).run(Doubling(), SHARDS)
    before = tree_digest(tmp_path)
    (tmp_path / "log.jsonl").write_text("other")
    assert tree_digest(tmp_path) == before
    path = ShardLedger(tmp_path).output("double", "0-4", "lines.txt")
    path.write_text("0\n2\n4\n7\n")
    assert tree_digest(tmp_path) != before


def damage(ledger: ShardLedger, shard: str, how: str) -> None:
    path = ledger.output("double", shard, "lines.txt")
    marker = ledger.root / "done" / "double" / f"{shard}.json"
    if how == "no marker":
        marker.unlink()
    elif how == "cut marker":
        marker.write_bytes(marker.read_bytes()[:40])
    elif how == "no output":
        path.unlink()
    elif how == "cut output":
        path.write_text("8\n")
    else:
        path.write_bytes(path.read_bytes().replace(b"10", b"11"))


@pytest.mark.parametrize(
    "how", ["no marker", "cut marker", "no output", "cut output", "flipped bit"]
)
def test_only_the_damaged_shard_is_redone(tmp_path, how):
    engine = Engine(tmp_path, verify=how == "flipped bit")
    engine.run(Doubling(), SHARDS)
    before, worked = tree_digest(tmp_path), []
    damage(ShardLedger(tmp_path), "4-8", how)
    assert engine.run(Doubling(), SHARDS, lambda outcome: worked.append(outcome.shard)) == 1
    assert worked == ["4-8"] and tree_digest(tmp_path) == before


def test_other_parameters_replace_the_outputs(tmp_path):
    Engine(tmp_path).run(Doubling(), SHARDS)
    assert Engine(tmp_path).run(Doubling(version=2), SHARDS) == 3
    assert len(list((tmp_path / "double").iterdir())) == 3


def test_full_disk_leaves_no_marker_and_names_the_shard(tmp_path):
    (tmp_path / "full").touch()
    with pytest.raises(EngineError, match="3 of 3 shards failed: double 0-4: OSError.*No space"):
        Engine(tmp_path).run(DiskFull(), SHARDS)
    assert ShardLedger(tmp_path).shards("double") == []
    assert not list((tmp_path / "tmp").iterdir())
    (tmp_path / "full").unlink()
    assert Engine(tmp_path).run(DiskFull(), SHARDS) == 3


def test_missing_output_says_which_job_to_run(tmp_path):
    with pytest.raises(LedgerError, match="run `double` first"):
        ShardLedger(tmp_path).output("double", "0-4", "lines.txt")


def test_exception_costs_its_item_alone(tmp_path):
    Engine(tmp_path).run(Doubling(), ["15-17"])
    assert read(tmp_path, "15-17") == ["stage_error:ValueError", "32"]


def test_crash_and_hang_cost_their_items_alone(tmp_path):
    outcomes = []
    engine = Engine(tmp_path, workers=2, limit=2.0)
    engine.run(Doubling(), ["10-17", "20-22"], outcomes.append)
    expected = ["20", "22", "24", "decoder_crash", "stage_error:timeout", "stage_error:ValueError"]
    assert read(tmp_path, "10-17") == [*expected, "32"]
    assert read(tmp_path, "20-22") == ["40", "42"]
    assert {o.shard: o.facts["isolated"] for o in outcomes}["10-17"]


def test_an_interrupted_shard_is_redone_with_the_same_bytes(tmp_path):
    Engine(tmp_path / "a").run(Doubling(), SHARDS)
    ShardLedger(tmp_path / "b").begin("double", "4-8")  # as a killed worker leaves it
    outcomes = []
    Engine(tmp_path / "b").run(Doubling(), SHARDS, outcomes.append)
    assert [o.facts["isolated"] for o in outcomes] == [False, True, False]
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    assert not list((tmp_path / "b" / "running" / "double").iterdir())


def test_workers_that_go_on_dying_end_the_run(tmp_path):
    with pytest.raises(EngineError, match="die again and again"):
        Engine(tmp_path, workers=1).run(Dying(), ["0-4"])
    assert ShardLedger(tmp_path).shards("double") == []


def tasks(root: Path, job: ShardJob, count: int) -> list[Task]:
    """Shards of one item each."""
    return [(str(root), job, f"{k}-{k + 1}", "key", 60.0) for k in range(20, 20 + count)]


def test_workers_are_replaced_and_every_shard_gets_done(tmp_path):
    """More shards than the first workers take."""
    outcomes = list(run_local(tasks(tmp_path, Doubling(), 7), workers=2, shards_a_worker=1))
    assert sorted(o.shard for o in outcomes) == [f"{k}-{k + 1}" for k in range(20, 27)]
    assert [o.error for o in outcomes] == [""] * 7
    # Four pools, of two shards and at least one worker that takes some.
    assert len({o.facts["process"] for o in outcomes}) >= 4
    assert len(ShardLedger(tmp_path).shards("double")) == 7


def test_killed_workers_cost_no_shard(tmp_path):
    """All of them at once, as by a machine out of memory."""
    outcomes = run_local(tasks(tmp_path, Doubling(delay=0.2), 6), workers=2)
    done = [next(outcomes).shard]
    for child in multiprocessing.active_children():
        child.kill()
    done += [outcome.shard for outcome in outcomes]
    assert sorted(done) == [f"{k}-{k + 1}" for k in range(20, 26)]


def test_a_pool_that_lost_its_workers_ends_the_run(tmp_path, monkeypatch):
    """It says so instead of waiting for ever: nothing is under way and nobody is there to do it."""

    class Lost:
        def __init__(self, *_: object) -> None:
            pass

        def submit(self, *_: object) -> Future:
            return Future()

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.setattr(engine, "ProcessPoolExecutor", Lost)
    monkeypatch.setattr(engine, "WATCH", 0.01)
    with pytest.raises(EngineError, match="die again and again.*2 shards are left, such as 20-21"):
        list(run_local(tasks(tmp_path, Doubling(), 2), workers=2))


@pytest.mark.parametrize(("workers", "gpus", "used"), [(4, 0.0, 4), (4, 1.0, 1)])
def test_those_that_share_a_gpu_are_one_worker(tmp_path, monkeypatch, workers, gpus, used):
    seen = []
    monkeypatch.setattr(engine, "run_local", lambda tasks, count: seen.append(count) or [])
    Engine(tmp_path, workers=workers).run(Doubling(gpus=gpus), SHARDS)
    assert seen == [used]


def test_ray_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'osdhuman-jax\[ray\]'"):
        Engine(tmp_path, kind="ray").run(Doubling(), SHARDS)
    assert ShardLedger(tmp_path).shards("double") == []


def test_garbage_is_what_no_marker_names(tmp_path):
    Engine(tmp_path).run(Doubling(), SHARDS)
    before = tree_digest(tmp_path)
    orphan, unfinished = tmp_path / "double" / "x-0-lines.txt", tmp_path / "tmp" / "dead" / "file"
    unfinished.parent.mkdir()
    for path in (orphan, unfinished):
        path.write_text("12345")
    ledger = ShardLedger(tmp_path)
    assert ledger.collect_garbage() == 0 and orphan.exists()  # it may be a living worker's
    os.utime(orphan, (0, 0))
    os.utime(unfinished, (0, 0))
    assert ledger.collect_garbage() == 10
    assert tree_digest(tmp_path) == before


def leave_half_done(ledger: ShardLedger) -> list[Path]:
    """What a kill leaves between placing a shard's outputs and its marker."""
    ledger.begin("double", "4-8")
    left = [
        ledger.root / f".{'1' * 16}.tmp",
        ledger.root / "done" / "double" / f".{'2' * 16}.tmp",
        ledger.root / "double" / f"4-8-{'3' * 16}-lines.txt",
        ledger.root / "tmp" / f".{'4' * 16}.tmp",
        ledger.root / "tmp" / f".{'4' * 16}.folder" / "lines.txt",
    ]
    left[-1].parent.mkdir()
    for path in left:
        path.write_text("half")
    return left


def test_what_killed_runs_left_is_removed(tmp_path):
    Engine(tmp_path).run(Doubling(), SHARDS)
    before, ledger = tree_digest(tmp_path), ShardLedger(tmp_path)
    left = leave_half_done(ledger)
    assert ledger.clean() == 4 * len(left)
    assert not any(path.exists() for path in left) and not list((tmp_path / "tmp").iterdir())
    assert tree_digest(tmp_path) == before


def test_what_a_living_run_is_writing_stays(tmp_path):
    Engine(tmp_path).run(Doubling(), SHARDS)
    ledger = ShardLedger(tmp_path)
    with ledger.workspace() as folder, staged_file(tmp_path / "plan.json") as file:
        (folder / "lines.txt").write_text("first")
        left = leave_half_done(ledger)
        ledger.clean()
        assert (folder / "lines.txt").exists() and os.path.exists(file.name)
        # It may have placed this output a moment ago, and be about to write the marker.
        assert [path.exists() for path in left] == [False, False, True, False, False]
    ledger.clean()
    assert not left[2].exists() and not list((tmp_path / "tmp").iterdir())


def test_a_torn_line_of_the_log_is_ended(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"job": "dou')
    Engine(tmp_path).run(Doubling(), SHARDS[:1])
    lines = (tmp_path / "log.jsonl").read_bytes()
    assert lines.startswith(b'{"job": "dou\n')
    assert [line["shard"] for line in json_lines(lines)] == SHARDS[:1]
