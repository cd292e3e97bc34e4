"""Fourth stage of the bundled model: the whole objective, VSD beside the data terms.

    python train.py --config configs/nano_vsd.py --workdir runs/nano_vsd

After configs/nano.py, from whose result it starts. 19 minutes on two CPU cores; runs/nano_vsd/model
is the bundled model, but for `use` in its config.json. Beside the data terms VSD changes little at
this weight (models/nano/README.md).
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
