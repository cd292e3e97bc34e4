"""Fourth stage of a small restorer: the whole objective, VSD beside the data terms.

    python train.py --config configs/nano_vsd.py --workdir runs/nano_vsd

After configs/nano.py, from whose result it starts. 19 minutes on two CPU cores; runs/nano_vsd/model
is what version 0.1 bundled. Beside the data terms VSD changes little at this weight.
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
