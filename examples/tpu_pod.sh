#!/bin/bash
# The paper's run on a slice of Cloud TPU, of one host or many:
#   ZONE=us-west4-a SHARED=/mnt/shared/osdhuman_jax examples/tpu_pod.sh NAME
# NAME is the slice, as of `gcloud compute tpus tpu-vm create NAME --accelerator-type=v5litepod-16`.
# SHARED is a clone on a file system that all its hosts have mounted (Filestore, for one), with its
# .venv (pip install -r requirements.txt -e . "jax[tpu]"), data/ and models/sd21 (docs/training.md).
set -u
NAME=$1

# The same command on every host: who takes part is read from the slice, without flags for it. A
# terminal of its own hands Ctrl-C on to the hosts, which finish their step and save.
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="
    cd '$SHARED' && exec .venv/bin/python train.py \
        --config configs/base.py --workdir runs/base --config.data.workers=16"
# 75: stopped and saved; the same command goes on from there.
exit $?
