"""The scripts for many hosts, run on one: two processes over the loopback, which find each other.

Batch systems are stood for by programs of their names, and by servers on this machine. train.py is
stood for by a program that joins as it does and sums over all processes; that training itself is
the same in two processes is shown in test_faults.py.
"""

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
# JAX marks machines without chips, on which no server is asked.
TRAIN = """
import os, sys
import jax
os.environ.pop("TPU_SKIP_MDS_QUERY", None)
import jax.numpy as jnp
from jax.experimental import multihost_utils
from osdhuman_jax.training import hosts

def say(line):  # in one piece, beside another process
    os.write(1, f"{line}\\n".encode())

hosts.join("", -1, -1, say)
every = multihost_utils.process_allgather(jnp.float32(jax.process_index() + 1))
say(f"flags {sys.argv[1:]}")
say(f"sum {every.sum():.1f} of {jax.process_count()}")
"""
# Each is started with the number of a process, and knows how its system tells it of itself.
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
for i in 0 1; do
    SLURM_JOB_ID=7 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_LOCALID=0 \\
        SLURM_STEP_NODELIST='127.0.0.1' SLURM_PROCID=$i "$@" &
done
wait -n; first=$?; wait -n; second=$?
exit $((first > second ? first : second))
"""
GCLOUD = """#!/bin/bash
for flag in "$@"; do command=${flag#--command=}; done
for i in 0 1; do
    address=METADATA_$i
    JAX_FORCE_TPU_INIT=1 GCE_METADATA_IP=${!address} bash -c "$command" &
done
wait -n; first=$?; wait -n; second=$?
exit $((first > second ? first : second))
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone with its environment, and a place for programs."""
    for name in (".venv/bin", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train.py").write_text(TRAIN)
    for place in (".venv/bin/python", "bin/python"):
        program(tmp_path / place, f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def environment(clone: Path, **variables: str) -> dict[str, str]:
    """Where programs are found, and nothing of a batch system's that this test may run in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TPU_"))}
    own = {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    own |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": free_port(), "NO_PROXY": "127.0.0.1"}
    return {**kept, **own, **variables}


def check(said: str, way: str) -> None:
    """Both processes found each other, and have the same sum."""
    lines = said.splitlines()
    assert lines.count("sum 3.0 of 2") == 2, said
    for process in (0, 1):
        assert f"process {process} of 2, found by {way}" in lines, said
    # With the flags of the script, and none that says who takes part.
    flags = [line for line in lines if line.startswith("flags")]
    assert "--workdir" in flags[0] and "runs/base" in flags[0] and "coordinator" not in flags[0]


@pytest.mark.slow
def test_slurm(clone):
    program(clone / "bin" / "srun", SRUN)
    program(clone / "bin" / "scontrol", '#!/bin/bash\necho "asked to $*"\n')
    variables = {"SLURM_SUBMIT_DIR": str(clone), "SLURM_JOB_ID": "7"}
    env = environment(clone, **variables)
    run = ["bash", str(ROOT / "examples/slurm.sbatch")]
    result = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    check(result.stdout, "Slurm's variables")
    # Stopped and saved: the job is queued again.
    (clone / "train.py").write_text("import sys; sys.exit(75)")
    result = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 75 and "asked to requeue 7" in result.stdout


@contextmanager
def metadata(number: int) -> Iterator[str]:
    """Address of a server that answers as Google's does on a host of a slice of two."""
    known = {
        "agent-worker-number": str(number),
        "worker-network-endpoints": "127.0.0.1,127.0.0.1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\n",
    }

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            text = known[self.path.rpartition("/")[2]].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_tpu_pod(clone):
    program(clone / "bin" / "gcloud", GCLOUD)
    with metadata(0) as first, metadata(1) as second:
        variables = {"METADATA_0": first, "METADATA_1": second, "ZONE": "here"}
        env = environment(clone, SHARED=str(clone), **variables)
        run = ["bash", str(ROOT / "examples/tpu_pod.sh"), "slice"]
        result = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    check(result.stdout, "the TPU's metadata server")


@pytest.mark.slow
def test_jobset(clone):
    (document,) = yaml.safe_load_all((ROOT / "examples/jobset.yaml").read_text())
    (job,) = document["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    ports = [port["containerPort"] for port in container["ports"]]
    assert 8482 in ports and job["template"]["spec"]["completions"] == 4
    # What GKE tells the pods of a slice of two hosts.
    shared = environment(clone, TPU_WORKER_HOSTNAMES="127.0.0.1,127.0.0.1", JAX_FORCE_TPU_INIT="1")
    shared |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}
    with metadata(0) as address:
        pods = [
            subprocess.Popen(
                container["command"],
                env={
                    **shared,
                    "GCE_METADATA_IP": address,
                    "TPU_WORKER_ID": str(i),
                    "JOB_COMPLETION_INDEX": str(i),
                },
                cwd=clone,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in (0, 1)
        ]
        said = [pod.communicate(timeout=300)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    check("".join(said), "GKE's variables")


def test_kubernetes_lets_its_pods_ask(clone):
    """The job has no flags for who takes part; its account may read what JAX asks for."""
    text = (ROOT / "examples/kubernetes.yaml").read_text()
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    pod = found["Job"]["spec"]["template"]["spec"]
    account, role = found["ServiceAccount"]["metadata"]["name"], found["Role"]["rules"]
    assert pod["serviceAccountName"] == account
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    allowed = {resource for rule in role for resource in rule["resources"]}
    assert allowed == {"pods", "services", "jobs"}
    assert pod["subdomain"] == found["Service"]["metadata"]["name"]
    assert found["Job"]["spec"]["completions"] == found["Job"]["spec"]["parallelism"]
    assert not [word for word in pod["containers"][0]["command"] if "process" in word]
