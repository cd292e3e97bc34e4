"""How soon `osdhuman restore` is there: processor seconds (user) of three runs, each a new process.

    python -m benchmarks.startup

`help` prints the flags. `nothing` is given a folder whose picture was restored before. `first`
restores one picture of 512 x 512 pixels with programs that an earlier run compiled and kept. Of
each the least of `--runs` is shown: what else the machine does only adds. Wall-clock seconds stand
beside it and mean something on an idle machine alone.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from skimage import data

from osdhuman_jax.images.codec import write_png

ROOT = Path(__file__).parent.parent


def timed(folder: Path, *flags: str) -> tuple[float, float]:
    """User seconds and wall-clock seconds of one command. Raises CalledProcessError."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "kept")}
    words = [sys.executable, "-m", "osdhuman_jax", "restore", *flags]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    start = time.perf_counter()
    subprocess.run(words, cwd=folder, env=env, check=True, capture_output=True)
    wall = time.perf_counter() - start
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, wall


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Processor seconds of a start.")
    parser.add_argument("--runs", type=int, default=3, help="of each; the least is shown")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_png(folder / "photo.png", data.astronaut())  # 512 x 512 pixels
        # Compiles, and keeps what it compiled for all runs that follow.
        timed(folder, "photo.png", "--output", "before")
        found = {
            "help": [timed(folder, "--help") for _ in range(runs)],
            "nothing": [timed(folder, "photo.png", "--output", "before") for _ in range(runs)],
            "first": [timed(folder, "photo.png", "--output", f"out{i}") for i in range(runs)],
        }
    print("run      user s   wall s")
    for name, seconds in found.items():
        user, wall = (min(values) for values in zip(*seconds, strict=True))
        print(f"{name:8}{user:7.2f}{wall:9.2f}")


if __name__ == "__main__":
    main()
