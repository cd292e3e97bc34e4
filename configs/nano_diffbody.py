"""DiffBody in small: a ControlNet of 1.4 million parameters for a prior that two CPU cores train.

    python train.py --config configs/nano_diffbody.py --workdir runs/nano_diffbody

It begins with the results of configs/nano_diffbody_parts.py (which has the prior) and
configs/nano_diffbody_cleaner.py. No texts: HFIE's tokens of the cleaned picture are the prompt, as
they will be in use. `diffusion` and `val_loss` fall slowly; `val_psnr_y`, of pictures sampled in 10
steps, stays below the cleaner's: it was 15.6 dB beside 21.4 after 1,300 steps, on a prior of 2,500,
and nothing was restored (docs/diffbody.md, "Measured"). A step is 0.6 s of one CPU core, 32 minutes
of it in all.
"""

from configs import nano_diffbody_parts
from osdhuman_jax.config import Config, SampleConfig, UseConfig


def get_config() -> Config:
    config = nano_diffbody_parts.get_config()
    config.data.degrade = True
    config.data.batch_size = 4
    config.optim.learning_rate = 5e-4
    config.optim.ema = 0.998
    config.run.kind = "control"
    config.run.init = "runs/nano_diffbody_parts/model"
    config.run.cleaner = "runs/nano_diffbody_cleaner/model"
    config.run.steps = 3_000
    config.run.eval_images = 8
    fast = SampleConfig(steps=20, sampler="ddim", cfg=1.0, negative="")
    config.use = UseConfig("wavelet", work_side=config.data.resize_short, sample=fast)
    return config
