"""Third stage of a small restorer: one step from degraded to restored, by the data terms.

    python train.py --config configs/nano.py --workdir runs/nano

It starts from the result of configs/nano_diffusion.py and took 61 minutes on two CPU cores that had
other work. `mse` and `structure` fall, and `val_psnr_y` rises above that of the degraded pictures.
"""

from configs import nano_vae
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = nano_vae.get_config()
    config.data.degrade = True
    config.data.crop = 128
    config.data.batch_size = 4
    config.lora.rank = 16  # of layers 16 to 128 wide
    config.lora.alpha = 192.0  # scale 12: without it LoRA moves weights ten times slower than AdamW
    config.loss.lpips = 0.0
    config.loss.structure = 0.2
    config.loss.vsd = 0.0
    config.optim.learning_rate = 1e-3
    config.run.kind = "restorer"
    config.run.init = "runs/nano_diffusion/model"
    config.run.latent = "mode"
    config.run.steps = 4_500
    config.run.sample_every = 500
    return config
