"""Third stage: the bundled one-step restorer."""

from configs import nano_vae
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = nano_vae.get_config()
    config.data.degrade = True
    config.lora.rank = 16  # of layers 16 to 128 wide
    config.lora.alpha = 16.0
    config.loss.lpips = 0.0
    config.loss.vsd = 0.0
    config.optim.learning_rate = 1e-3
    config.run.kind = "restorer"
    config.run.init = "runs/nano_diffusion/model"
    config.run.latent = "mode"
    config.run.steps = 1_600
    return config
