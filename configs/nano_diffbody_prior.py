"""DiffBody in small, its prior: what Stable Diffusion is to it, prompted by the picture itself.

    python train.py --config configs/nano_vae.py --workdir runs/nano_vae \\
        --config.data.resize_short=176
    python train.py --config configs/nano_diffbody_prior.py --workdir runs/nano_diffbody_prior

It is configs/nano_diffusion.py's for longer, on upright crops that show most of a person. The loss
falls, fast at first. A step is half a second of one CPU core, 52 minutes of it in all.
"""

from configs import nano_diffusion
from osdhuman_jax.config import Config, DataConfig, RunConfig


def get_config() -> Config:
    config = nano_diffusion.get_config()
    upright(config.data, config.run)
    config.data.batch_size = 4
    config.optim.ema = 0.999
    config.run.steps = 6_000
    config.run.remat = "none"
    config.run.sample_every = 1_000
    config.run.checkpoint_every = 500
    return config


def upright(data: DataConfig, run: RunConfig) -> None:
    """Crops of half of a photograph, scaled so that a person is in it: all stages have these."""
    data.resize_short = 176
    data.crop = run.eval_crop = 128
    data.crop_height = run.eval_height = 192
