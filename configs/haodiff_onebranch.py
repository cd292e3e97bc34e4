"""HAODiff's ablation with one branch for the negative prompt: the residual, without what moved.

    python train.py --config configs/haodiff_onebranch.py --workdir runs/haodiff_onebranch

As configs/haodiff.py, from a start that was imported and trained with the same `skip_branch`.
"""

from dataclasses import replace

from configs.haodiff import get_config as haodiff
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = haodiff()
    if config.model.dual:
        config.model.dual = replace(config.model.dual, skip_branch=(2,))  # of what moved
    return config
