"""The whole loop in minutes: tiny random model, 20 steps, scikit-image's own pictures.

    python train.py --config configs/debug.py --workdir runs/debug

It takes minutes on two CPU cores, most of them for compiling. Nothing is learned in 20 steps: the
loss is noise. What can be seen is that data, step, validation, checkpoints and export work here.
"""

from pathlib import Path

import skimage

from configs.models import tiny
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config(model=tiny())
    config.data.sources = (str(Path(skimage.__file__).parent / "data"),)
    config.data.crop = 64
    config.data.batch_size = 4
    config.data.workers = 0
    config.loss.lpips = 0.0
    config.run.steps = 20
    config.run.precision = "fp32"
    config.run.remat = "none"
    config.run.log_every = 5
    config.run.checkpoint_every = 5
    config.run.sample_every = 10
    config.run.eval_images = 2
    config.run.eval_crop = 64
    return config
