"""Who takes part, and signals."""

import os
import signal

import jax
import pytest
from jax._src import distributed

from osdhuman_jax.config import ConfigError
from osdhuman_jax.training import hosts

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """Arguments of the calls of jax.distributed.initialize, which is not really called."""
    for name in (*SLURM, "SLURM_STEP_NUM_NODES", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    calls: list[tuple] = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, local_device_ids: calls.append(args)
    )
    return calls


def test_alone(started):
    hosts.join("", -1, -1)
    assert started == [] and hosts.is_first()
    hosts.wait("nobody")


def test_flags(started):
    hosts.join("a:1", 2, 1)
    assert started == [("a:1", 2, 1)]


def test_slurm_says_it_all(started, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    hosts.join("", -1, -1)
    hosts.join("a:1", -1, -1)
    assert started == [(), ("a:1", 4, 3)]


@pytest.mark.parametrize(("nodes", "visible"), [("4", None), ("2", "1")])
def test_one_task_on_a_host_has_all_its_devices(monkeypatch, nodes, visible):
    """JAX's own reading of Slurm's variables, up to where it would call the coordinator."""
    variables = {
        **SLURM,
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node[1-4]",
        "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen = {}
    monkeypatch.setattr(distributed.config, "update", seen.__setitem__)
    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(distributed._jax, "get_distributed_runtime_client", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hosts.join("", -1, -1)
    assert seen.get("jax_cuda_visible_devices") == visible


def test_kubernetes_says_which_one(started, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    hosts.join("a:1", 2, -1)
    assert started == [("a:1", 2, 1)]


@pytest.mark.parametrize(
    "flags", [("", 2, 0), ("", -1, 1), ("a:1", 2, -1), ("a:1", -1, 0), ("a:1", 2, 2)]
)
def test_open_questions_are_refused(started, flags):
    with pytest.raises(ConfigError, match="--process"):
        hosts.join(*flags)
    assert started == []


def test_first_signal_is_noted_and_the_second_does_what_it_did():
    before = [signal.getsignal(kind) for kind in hosts.Signals.KINDS]
    with hosts.Signals() as signals:
        assert signals.received is None and signal.getsignal(signal.SIGTERM) == signals._note
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert [signal.getsignal(kind) for kind in hosts.Signals.KINDS] == before
