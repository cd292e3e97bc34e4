"""DiffBody's first stage in small: a thin SwinIR that two CPU cores can train.

    python train.py --config configs/nano_diffbody_cleaner.py --workdir runs/nano_diffbody_cleaner

data/photos are the photographs to train on, data/val a few others for the curves. `mse` falls and
`val_psnr_y` rises above that of the degraded pictures; what comes out is smooth. A step is half
a second of one CPU core, 24 minutes of it in all; no run has been that long yet.
"""

from dataclasses import replace

from configs.nano_diffbody_prior import upright
from osdhuman_jax.config import Config
from osdhuman_jax.networks.configs import SwinIRConfig


def get_config() -> Config:
    config = Config()
    config.cleaner.swinir = replace(
        SwinIRConfig.diffbir(),
        embed_dim=36,
        depths=(2, 2),
        num_heads=(2, 2),
        upscale=4,
        unshuffle=4,
        num_feat=32,
    )
    config.data.sources = ("data/photos",)
    config.run.eval_sources = ("data/val",)
    upright(config.data, config.run)
    config.data.batch_size = 4
    config.data.workers = 1
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1e9  # never reached: there is no clipping
    config.optim.warmup_steps = 100
    config.optim.schedule = "cosine"
    config.run.kind = "cleaner"
    config.run.steps = 3_000
    config.run.precision = "fp32"
    config.run.remat = "none"
    config.run.sample_every = 500
    config.run.checkpoint_every = 500
    return config
