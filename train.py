"""Train from a clone: python train.py --config configs/base.py --workdir runs/base

The same as `osdhuman train`, which an installed package has; `--help` lists all settings.
"""

from osdhuman_jax.__main__ import start

if __name__ == "__main__":
    start("train", "train.py")
