"""Second stage of a small restorer: a small diffusion prior, prompted by the picture itself.

    python train.py --config configs/nano_diffusion.py --workdir runs/nano_diffusion

It starts from the result of configs/nano_vae.py and took 4 minutes on two CPU cores. The loss is
that of eps-prediction, and falls.
"""

from configs import nano_vae
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = nano_vae.get_config()
    config.optim.learning_rate = 1e-3
    config.run.kind = "diffusion"
    config.run.init = "runs/nano_vae/model"
    config.run.steps = 700
    return config
