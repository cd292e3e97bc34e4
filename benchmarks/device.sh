#!/bin/sh
# Measure this machine's GPU (or, with --smoke, try the script on a CPU) and write a table:
#   benchmarks/device.sh [--smoke] [OUT [PART ...]]      OUT is results/device unless given
# PYTHON is the interpreter (python3), BUDGET the seconds in all; see device_table.py.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
# The peers run beside JAX's processes: none takes a GPU's memory before it needs it.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
# The caller's folder stays the current one, since OUT is told from there; no module is taken of it.
export PYTHONSAFEPATH=1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m benchmarks.device_table "$@"
