"""The paper's run (section 4.1): every value is `Config`'s default but for where the data are."""

from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.run.init = "models/sd21"  # Stable Diffusion 2.1-base and RAM as a model folder
    config.data.sources = ("data/persona/train",)
    config.run.eval_sources = ("data/persona/val",)
    return config
