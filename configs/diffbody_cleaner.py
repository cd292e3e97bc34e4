"""DiffBody's first stage, its cleaner: SwinIR by the squared error (Eq. 2).

    python train.py --config configs/diffbody_cleaner.py --workdir runs/diffbody_cleaner

The paper gives the network's kind and the loss, and no more; where it is silent, this is DiffBIR's
first stage:

| setting | value | source |
|---|---|---|
| network | SwinIR of 8 groups of 6 blocks, 180 wide, on squares of 8 x 8 pixels | DiffBIR |
| loss | mean squared error | paper, Eq. 2 |
| optimizer | AdamW, constant rate 1e-4, no decay, no clipping | DiffBIR |
| batch, steps | 96 pictures of 512 x 512, 150,000 | DiffBIR |
| data | photographs of people, degraded as Real-ESRGAN's x4plus | paper names the kinds |

This run has not been made, and nothing here says in how many hours it could be. `val_psnr_y` rises.
"""

from osdhuman_jax.config import Config
from osdhuman_jax.networks.configs import SwinIRConfig


def get_config() -> Config:
    config = Config()
    config.cleaner.swinir = SwinIRConfig.diffbir()
    config.data.sources = ("data/diffbody/train",)
    config.run.eval_sources = ("data/diffbody/val",)
    config.data.batch_size = 96
    config.optim.accumulate = 12  # eight pictures at a time on one device
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1e9  # never reached: there is no clipping
    config.run.kind = "cleaner"
    config.run.steps = 150_000
    config.run.sample_every = 2_000
    config.run.checkpoint_every = 2_000
    return config
