"""Who takes part, and signals."""

import os
import signal
import socket
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import pytest
from jax._src import cloud_tpu_init, distributed
from jax._src.clusters import K8sCluster

from osdhuman_jax.config import ConfigError
from osdhuman_jax.training import hosts

ROOT = Path(__file__).parents[2]
SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
OTHERS = ("SLURM_STEP_NUM_NODES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_NUM_SLICES")


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """Arguments of the calls of jax.distributed.initialize, which is not really called."""
    for name in (*SLURM, *KUBERNETES, *GKE, *OTHERS):
        monkeypatch.delenv(name, raising=False)
    calls: list[tuple] = []

    def initialize(*arguments, **_):
        calls.append(() if arguments == (None, None, None) else arguments)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


@pytest.fixture
def kubernetes(monkeypatch) -> None:
    """Stands for the package that asks a cluster's server."""
    module = ModuleType("kubernetes")
    module.__spec__ = ModuleSpec("kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes", module)


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


@pytest.mark.parametrize(
    ("variables", "tpu", "wanted"),
    [
        ({}, False, None),
        ({}, True, "the TPU's metadata server"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        (GKE, False, None),
        (GKE | KUBERNETES, True, "GKE's variables"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"} | KUBERNETES, True, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, "GKE's variables"),
        (KUBERNETES, False, "Kubernetes's server"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None),
        (SLURM | KUBERNETES, True, "Slurm's variables"),
    ],
)
def test_how_processes_find_each_other(started, kubernetes, monkeypatch, variables, tpu, wanted):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", tpu)
    way = hosts.find("", -1, -1)
    assert (way and way.said) == (wanted and f"found by {wanted}")
    assert hosts.find("", 1, -1) is None
    said: list[str] = []
    hosts.join("", -1, -1, said.append)
    assert len(started) == (wanted is not None) and len(said) == 2 * len(started)
    assert all(f"found by {wanted}" in line for line in said)


def test_a_pod_without_the_package_is_told_what_to_do(started, monkeypatch):
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"osdhuman-jax\[k8s\].*--processes 1"):
        hosts.join("", -1, -1)
    assert started == []


def test_kubernetes_is_asked_for_the_first_pod(kubernetes, monkeypatch):
    """JAX's own questions, answered as for a job of examples/kubernetes.yaml."""
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    owner = SimpleNamespace(controller=True, kind="Job")
    labels = {"job-name": "osdhuman"}
    pod = SimpleNamespace(
        metadata=SimpleNamespace(labels=labels, owner_references=[owner], name="osdhuman-1"),
        spec=SimpleNamespace(subdomain="osdhuman"),
    )
    job = SimpleNamespace(
        metadata=SimpleNamespace(labels=labels, name="osdhuman"),
        spec=SimpleNamespace(parallelism=2),
    )
    monkeypatch.setattr(K8sCluster, "is_env_present", lambda: True)
    monkeypatch.setattr(K8sCluster, "_pod", lambda: pod)
    monkeypatch.setattr(K8sCluster, "_job", lambda: job)
    monkeypatch.setattr(K8sCluster, "_controller", lambda: owner)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.2")
    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    seen: list[tuple] = []

    def client(*arguments, **_):
        seen.append(arguments)
        raise ZeroDivisionError

    monkeypatch.setattr(distributed._jax, "get_distributed_runtime_client", client)
    with pytest.raises(ZeroDivisionError):
        hosts.join("", -1, -1)
    assert seen == [("osdhuman-0.osdhuman:55527", 1)]


LONELY = """
from osdhuman_jax.config import ConfigError
from osdhuman_jax.interruption import leave
from osdhuman_jax.training import hosts
try:
    hosts.join("127.0.0.1:{port}", 2, {process}, print, patience=1)
except ConfigError as error:
    print(error)
    leave(2)
"""


@pytest.mark.parametrize("process", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_whose_others_do_not_come_says_so_and_ends(process):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = LONELY.format(port=port, process=process)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300
    )
    first, last = result.stdout.splitlines()
    assert first.startswith(f"process {process} of 2, found by --coordinator 127.0.0.1:{port};")
    assert "did not come in 1 s" in last and last.endswith("--processes 1 if this process is alone")
    assert result.returncode == 2 and "stack trace" not in result.stderr


def test_kubernetes_says_which_one(started, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    hosts.join("a:1", 2, -1)
    assert started == [("a:1", 2, 1)]


@pytest.mark.parametrize(
    "flags", [("", 2, 0), ("", -1, 1), ("", 1, 1), ("a:1", 2, -1), ("a:1", -1, 0), ("a:1", 2, 2)]
)
def test_open_questions_are_refused(started, flags):
    with pytest.raises(ConfigError, match="--process"):
        hosts.join(*flags)
    assert started == []


@pytest.mark.parametrize(
    ("variables", "flags", "said"),
    [
        ({"SLURM_STEP_NUM_TASKS": "abc"}, ("", -1, -1), "SLURM_STEP_NUM_TASKS is 'abc'"),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "x"},
            ("a:1", -1, -1),
            "SLURM_PROCID is 'x'",
        ),
        ({"JOB_COMPLETION_INDEX": "foo"}, ("a:1", 2, -1), "JOB_COMPLETION_INDEX is 'foo'"),
    ],
)
def test_a_variable_that_is_no_number_is_named(started, monkeypatch, variables, flags, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{said} in the environment, and no number"):
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
