"""Fourth stage of a small restorer: the whole objective, VSD beside the data terms.

    python train.py --config configs/nano_vsd.py --workdir runs/nano_vsd

It starts from the result of configs/nano.py and took 19 minutes on two CPU cores. Version 0.1
bundled its runs/nano_vsd/model. Beside the data terms VSD changes little at this weight.
"""

from configs import nano
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = nano.get_config()
    config.loss.vsd = 0.1  # of so small a prior; 1.0 in the paper
    config.optim.learning_rate = 2e-4
    config.run.init = "runs/nano/model"
    config.run.steps = 600
    config.run.sample_every = 300
    return config
