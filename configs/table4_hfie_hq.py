"""Table 4: HFIE looks at the HQ picture in training."""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.prompt.kind = "hfie"
    config.prompt.source = "hq"
    return config
