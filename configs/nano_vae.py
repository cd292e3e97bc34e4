"""First stage of a small restorer by the paper's chain: a small autoencoder on HQ pictures.

    python train.py --config configs/nano_vae.py --workdir runs/nano_vae

data/photos are the photographs to train on, data/val a few others for the curves. It took 8.5
minutes on two CPU cores. The autoencoder's own output is in samples/, and `val_psnr_y` rises.
"""

from configs.models import nano
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config(model=nano())
    config.data.sources = ("data/photos",)
    config.run.eval_sources = ("data/val",)
    config.data.crop = 96
    config.data.degrade = False
    config.data.batch_size = 8
    config.data.workers = 1
    config.loss.kl = 1e-5
    config.loss.chroma = 1.0
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 100
    config.optim.schedule = "cosine"
    config.run.kind = "vae"
    config.run.steps = 900
    config.run.eval_crop = 256
    config.run.sample_every = 250
    config.run.checkpoint_every = 250
    config.run.precision = "fp32"
    return config
