"""Fourth stage: the bundled restorer, with the whole objective: VSD beside the data terms."""

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
