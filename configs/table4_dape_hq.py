"""Table 4: tags of the HQ picture by DAPE, bare in training as OSEDiff's."""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.prompt.kind = "dape"
    config.prompt.source = "hq"
    return config
