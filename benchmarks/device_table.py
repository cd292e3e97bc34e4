"""benchmarks/device.sh [--smoke] [OUT [PART ...]]: what one machine with a GPU does, in one table.

Every measurement is a process of its own (benchmarks.restore and benchmarks.train_step), with its
log in OUT and with its own limit: one that fails, hangs or finds too little time left says so in
its row and costs no other. The most important come first; BUDGET seconds (590) are for all of them,
compilation included. After each one OUT/table.md and OUT/table.json are written anew. Parts are
those of GROUPS: another call with `PART ...` measures what the first had no time for. `--smoke`
tries every part on the smallest networks, on a CPU too, with compilers that optimise nothing: its
figures say nothing. The status is 1 where no row has a figure, 2 where nothing can be begun.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np

from osdhuman_jax.cli import Parser, end

OURS, EAGER, COMPILED = "osdhuman_jax", "PyTorch, eager", "PyTorch, `torch.compile`"
CHECKPOINTED = "PyTorch, eager, gradient checkpointing"
SIDES = {"ours": OURS, "eager": EAGER, "compile": COMPILED}
GROUPS = ("restore", "train", "haodiff", "restore8", "decoder", "dpg", "haodiff_restore")
NAME, BUDGET = "benchmarks/device.sh", 590  # seconds, of all parts
EPILOG = f"""Variables: PYTHON is the interpreter (python3), BUDGET the seconds of all parts
together, compilation included ({BUDGET}). A relative OUT is below the current folder."""
# Of XLA: with kernels of Triton's to try for every product, a step takes over 200 s to compile.
STEP_FLAGS = "--xla_gpu_enable_triton_gemm=false"
# Room for the weights, twice, in float32.
ROOM = 20e9
HEAD = (
    "| what | batch | | ms, median | ms, best | pictures/s | peak, GB | program, GB "
    "| times ours | first, s | remark |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
CAPTION = """Milliseconds are of a whole batch. "Times ours" is a side's median over this project's.
The peak is of the allocator that JAX or PyTorch has: JAX's is of its whole process, trials of its
compiler included, PyTorch's without its first call; "program" is what XLA says that the program
takes, weights included. "First" are seconds until the first result: weights read and compiled for
restoring, compiled alone for steps. A restoration ends with its picture on the host. PyTorch has
channels_last, bfloat16 weights for restoring and autocast for steps, `cudnn.benchmark`, TF32 for
what is left in float32 (`set_float32_matmul_precision("high")`), and `torch.compile` in its
default mode; JAX has its defaults, TF32 among them, and no preallocation, and steps are compiled
with `--xla_gpu_enable_triton_gemm=false`. "Apart" is the largest
difference from this project's output, in levels of 255, with random weights in bfloat16."""


@dataclass(frozen=True)
class Part:
    """A process to run: one row of the table."""

    name: str  # of its log
    group: str
    what: str
    batch: int
    side: str
    command: tuple[str, ...]  # after `python -m`
    limit: float  # seconds after which it is stopped
    least: float  # seconds below which it is not begun
    key: str = "whole"  # of a restoration's figures
    after: str = ""  # only if the part of this name failed


@dataclass(frozen=True)
class Sizes:
    """What is measured: presets of restore.py and train_step.py, and how much of each."""

    preset: str = "sd21"
    first: str = "haodiff_dpg"  # HAODiff's two stages
    second: str = "haodiff"
    size: int = 512  # side of a restored picture
    crop: int = 512  # of one in training
    many: int = 8  # pictures restored together
    batch: int = 4  # of a training step
    pair: int = 2  # of one of HAODiff's second stage
    runs: int = 20
    steps: int = 5


# The same commands on the smallest networks; both of HAODiff's stages by one program.
SMOKE = Sizes("tiny", "haodiff_tiny", "haodiff_tiny", 64, 64, 2, 1, 1, 2, 1)


def step_part(name: str, what: str, side: str, flags: str, **kw: Any) -> Part:
    """A training step's part; the group is the name's first word."""
    words = flags.split()
    batch = int(words[words.index("--batch") + 1])
    command = ("benchmarks.train_step", "--figures", *words)
    return Part(name, name.split("-")[0], what, batch, side, command, **kw)


def restore_parts(
    group: str,
    what: str,
    command: tuple[str, ...],
    size: int,
    batch: int,
    limits: dict[str, tuple[float, float]],
) -> list[Part]:
    """Sides of a restoration, with limit and least seconds of each."""
    made = []
    for side, (limit, least) in limits.items():
        # What restore.py gives to the process of one side.
        words = ("benchmarks.restore", *command, "--work", side, str(size), str(batch))
        key = "decode" if "decode" in command else "whole"
        name = f"{group}-{side}"
        made.append(Part(name, group, what, batch, SIDES[side], words, limit, least, key))
    return made


def steps(sizes: Sizes) -> dict[str, Part]:
    """Training steps by name."""
    common = f"--precision bf16 --steps {sizes.steps}"
    paper = f"--preset {sizes.preset} --batch {sizes.batch} --remat none {common}"
    alone = f"{paper} --peer_alone --peer"
    what = f"training step, {sizes.crop} x {sizes.crop}"
    short, long = {"limit": 90, "least": 25}, {"limit": 350, "least": 240}
    first = f"--preset {sizes.first} --batch {sizes.batch} --remat blocks {common}"
    second = f"--preset {sizes.second} --batch {sizes.pair} --remat blocks {common}"
    made = [
        step_part("train-eager", what, EAGER, f"{alone} plain", **short),
        step_part(
            "train-checkpointing",
            *(what, CHECKPOINTED, f"{alone} checkpointing"),
            **short,
            after="train-eager",
        ),
        step_part("train-ours", what, OURS, paper, **long),
        step_part("haodiff", "HAODiff, stage 2, step", OURS, second, **long),
        step_part("dpg", "HAODiff, stage 1, step", OURS, first, limit=240, least=90),
    ]
    return {part.name: part for part in made}


def plan(sizes: Sizes, weights: Path) -> list[Part]:
    """All parts, the most important first."""
    size, step = sizes.size, steps(sizes)
    common = ("--precision", "bf16", "--runs", str(sizes.runs))
    plain = (*common, "--preset", sizes.preset, "--weights", str(weights / "restorer"))
    guided = (*common, "--preset", sizes.second, "--weights", str(weights / "haodiff"))
    guided += ("--sides", "ours")
    what = f"restoration, {size} x {size}"
    one = {"ours": (220, 40), "eager": (60, 20), "compile": (170, 60)}
    many = {"ours": (150, 50), "eager": (60, 20), "compile": (150, 60)}
    alone = {"ours": (90, 40), "eager": (60, 20)}
    decoding = (*plain, "--parts", "decode")
    return [
        # PyTorch's step computes while a CPU makes the weights that restorations need.
        step["train-eager"],
        step["train-checkpointing"],
        *restore_parts("restore", what, plain, size, 1, one),
        step["train-ours"],
        step["haodiff"],
        *restore_parts("restore8", what, plain, size, sizes.many, many),
        *restore_parts("decoder", "decoder alone", decoding, size, 1, alone),
        step["dpg"],
        *restore_parts("haodiff_restore", f"HAODiff, {what}", guided, size, 1, {"ours": (170, 80)}),
    ]


def started(command: tuple[str, ...], file: IO[str]) -> subprocess.Popen:
    """A process of `python -m command` in a session of its own, so that its workers end with it."""
    kw: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
    if command[0] == "benchmarks.train_step":
        kw["env"] = os.environ | {"XLA_FLAGS": f"{STEP_FLAGS} {os.environ.get('XLA_FLAGS', '')}"}
    return subprocess.Popen([sys.executable, "-m", *command], **kw)


def stop(process: subprocess.Popen) -> None:
    """End a process of `started` and its workers, whether it goes on or not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: tuple[str, ...], log: Path, limit: float) -> str:
    """Run `python -m command`, its output in `log`; why it failed, or nothing."""
    with log.open("w") as file:
        file.write(f"python -m {' '.join(command)}\n")
        file.flush()
        process = started(command, file)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Also where this process is told to end.
            stop(process)
    if status is None:
        return f"stopped after {limit:.0f} s"
    if status:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"status {status}: {said[-1][:160]}".replace("|", "/")
    return ""


def figures(log: Path) -> dict[str, Any]:
    """The last line of a log that is JSON."""
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.startswith("{")]
    return json.loads(lines[-1])


def milliseconds(part: Part, found: dict[str, Any]) -> tuple[float, float]:
    """Median and best of a batch."""
    if "seconds" in found:
        return 1e3 * statistics.median(found["seconds"]), 1e3 * min(found["seconds"])
    return part.batch * found[f"{part.key}_median"], part.batch * found[part.key]


def measure(part: Part, out: Path, limit: float) -> dict[str, Any]:
    """A row: what is measured, and its figures or why there are none."""
    row: dict[str, Any] = {"what": part.what, "batch": part.batch, "side": part.side}
    row |= {"name": part.name, "command": " ".join(part.command)}
    log = out / f"{part.name}.log"
    start = time.monotonic()
    row["failed"] = run(part.command, log, min(part.limit, limit))
    row["took"] = round(time.monotonic() - start, 1)
    if row["failed"]:
        return row
    found = figures(log)
    row["median_ms"], row["best_ms"] = milliseconds(part, found)
    # A part's own memory is not told: the whole ran in its process too.
    kept = ("peak", "program", "first") if part.key == "whole" else ()
    return row | {k: found[k] for k in kept if found.get(k)}


def apart(part: Part, folder: Path) -> float | None:
    """Largest difference of a restoration from ours in levels of 255, where both are there."""
    ours, theirs = folder / "ours.npy", folder / f"{part.name.split('-')[-1]}.npy"
    if part.key != "whole" or part.side not in (EAGER, COMPILED) or not ours.exists():
        return None
    a, b = np.load(ours), np.load(theirs)
    return float(np.abs(a - b).max()) * 127.5 if a.shape == b.shape else None


def line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A row of the table."""
    same = [r for r in rows if (r["what"], r["batch"]) == (row["what"], row["batch"])]
    ours = next((r["median_ms"] for r in same if r["side"] == OURS and "median_ms" in r), None)
    cells = [row["what"], str(row["batch"]), row["side"]]
    if "median_ms" not in row:
        return f"| {' | '.join(cells)} | | | | | | | | {row['failed']} |"
    median, best = row["median_ms"], row["best_ms"]
    cells += [f"{median:,.1f}", f"{best:,.1f}", f"{1e3 * row['batch'] / median:,.2f}"]
    cells += [f"{row[k] / 1e9:.2f}" if k in row else "" for k in ("peak", "program")]
    cells += [f"{median / ours:.2f}" if ours and row["side"] != OURS else ""]
    cells += [f"{row['first']:.0f}" if "first" in row else ""]
    cells += [f"{row['apart']:.2f} apart" if row.get("apart") is not None else ""]
    return f"| {' | '.join(cells)} |"


def machine(command: str) -> dict[str, str]:
    """GPU, driver, versions, date and command."""
    ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        told = "none"
    versions = {}
    for name in ("jax", "jaxlib", "flax", "torch", "diffusers", "transformers", "peft", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    listed = ", ".join(f"{k} {v}" for k, v in versions.items())
    python = f"Python {sys.version.split()[0]}"
    cores = f"{len(os.sched_getaffinity(0))} cores"
    return {
        "GPU, driver, memory": told,
        "machine": cores,
        "versions": f"{python}, {listed}",
        "date": now,
        "command": command,
    }


def write(out: Path, about: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """Write both files; the table."""
    head = "\n".join(f"- {key}: {value}" for key, value in about.items())
    body = "\n".join(line(row, rows) for row in rows)
    table = f"{head}\n\n{HEAD}\n{body}\n\n{CAPTION}\n"
    (out / "table.md").write_text(table)
    (out / "table.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    return table


def making(flags: tuple[str, ...], log: Path) -> subprocess.Popen:
    """A process that makes the weights of a restorer, on the CPU."""
    with log.open("w") as file:
        return started(("benchmarks.restore", *flags, "--work", "make", "0", "0"), file)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with the `budget` in seconds; exits with status 2 where one cannot be."""
    parser = Parser(NAME, "Measure what one machine with a GPU does, in one table.", epilog=EPILOG)
    parser.add_argument("--smoke", action="store_true", help="the smallest networks, anywhere")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        nargs="?",
        default=Path("results/device"),
        help="folder for the table and the logs",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(GROUPS)}")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(GROUPS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    text = os.environ.get("BUDGET", str(BUDGET))
    try:
        args.budget = float(text)
    except ValueError:
        args.budget = math.nan
    if not 0 <= args.budget < math.inf:
        parser.error(f"BUDGET: {text!r:.40} is no number of seconds")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        # Whether files can be made there is known after one was.
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        parser.error(f"{args.out}: no folder to write into ({error.strerror})")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure part after part while there is time, and print the table; the exit status."""
    args = parse(argv)
    until = time.monotonic() + args.budget
    if args.smoke:
        # A CPU's compilers take minutes otherwise, also for the smallest networks.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > ROOM
    with tempfile.TemporaryDirectory(dir=shared if roomy else None) as temporary:
        # What the compiler tried for one program it need not try again for another.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(temporary) / "jax"))
        rows = measure_all(args, Path(temporary), until)
    return 0 if any("median_ms" in row for row in rows) else 1


def measure_all(args: argparse.Namespace, weights: Path, until: float) -> list[dict[str, Any]]:
    """The rows of every part that was asked for, in the order of the plan."""
    about = machine(" ".join([NAME, *sys.argv[1:]]))
    planned = plan(SMOKE if args.smoke else Sizes(), weights)
    parts = [part for part in planned if part.group in (args.parts or GROUPS)]
    rows: list[dict[str, Any]] = []
    makers: dict[str, subprocess.Popen] = {}
    try:
        for part in parts:
            # The weights of all restorations begin to be made at once, beside the first part.
            if "--weights" in part.command and until - time.monotonic() >= part.least:
                folder = part.command[part.command.index("--weights") + 1]
                if folder not in makers:
                    flags = part.command[1 : part.command.index("--work")]
                    (weights / Path(folder).name).mkdir()
                    log = args.out / f"weights-{Path(folder).name}.log"
                    makers[folder] = making(flags, log)
        for part in parts:
            row = measured(part, rows, makers, args.out, until)
            if row:
                rows.append(row)
                write(args.out, about, rows)
                print(f"{part.name}: {row['failed'] or 'done'}, {row.get('took', 0)} s", flush=True)
    finally:
        for maker in makers.values():
            stop(maker)
    print(f"\n{write(args.out, about, rows)}")
    return rows


def measured(
    part: Part,
    rows: list[dict[str, Any]],
    makers: dict[str, subprocess.Popen],
    out: Path,
    until: float,
) -> dict[str, Any] | None:
    """The row of a part, after its weights are there; none where it is not needed."""
    before = next((row for row in rows if row["name"] == part.after), None)
    if part.after and not (before and before["failed"]):
        return None
    row: dict[str, Any] = {"what": part.what, "batch": part.batch, "side": part.side}
    row |= {"name": part.name}
    folder, left = None, until - time.monotonic()
    if "--weights" in part.command and left >= part.least:
        folder = Path(part.command[part.command.index("--weights") + 1])
        try:
            failed = makers[str(folder)].wait(left - part.least)
        except subprocess.TimeoutExpired:
            left = until - time.monotonic()
            return row | {"failed": f"not begun: {left:.0f} s were left, its weights not made"}
        if failed:
            return row | {"failed": f"no weights: see weights-{folder.name}.log"}
        left = until - time.monotonic()
    if left < part.least:
        return row | {"failed": f"not begun: {max(left, 0):.0f} s were left"}
    row = measure(part, out, left)
    if folder and not row["failed"]:
        row["apart"] = apart(part, folder)
    return row


if __name__ == "__main__":
    end(NAME, main)
