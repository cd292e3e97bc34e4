"""Table 4: the null prompt, a single space."""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.prompt.kind = "null"
    config.prompt.source = "lq"
    return config
