"""Table 3: the same training on random crops of a general data set, LSDIR."""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.data.sources = ("data/lsdir",)
    return config
