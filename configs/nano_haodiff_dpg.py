"""HAODiff in small, stage 1: what two prompts are made of, learnt beside a frozen restorer.

    osdhuman parts --pictures data/photos --output data/parts --from blazepose
    python train.py --config configs/nano_haodiff_dpg.py --workdir runs/nano_haodiff_dpg

VAE and U-Net are those of configs/small.py, which this stage does not touch; its HFIE makes room
for a random dual-prompt generator. A step is 0.9 s of one CPU core, 18 minutes in all. `restored`
and `residual` fall at once, `dice` late; `val_psnr_y` is of what the first branch takes the
original to be.
"""

from configs.models import small, small_dual
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config(model=small())
    config.model.dual = small_dual()
    config.prompt.kind = "dual"
    config.data.sources = ("data/photos",)
    config.data.parts = ("data/parts",)
    config.data.mask = True
    # People move in heavily degraded pictures alone; the second stage has the other kinds too.
    config.data.kinds = (0.75, 0.1, 0.05, 0.05, 0.05)
    # Nothing, human motion blur, or Real-ESRGAN's first order; its second order always follows.
    config.data.degradation.first_order = (0.2, 0.4, 0.4)
    config.data.gray = 0.05
    config.data.crop = 128
    config.data.batch_size = 4
    config.data.workers = 1
    config.loss.mse = 0.0
    config.loss.lpips = 0.0
    config.loss.vsd = 0.0
    # HAODiff's 0.02 is for 320,000 pictures; of 4,800 the mask would learn nothing.
    config.loss.dice = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 100
    config.optim.schedule = "cosine"
    config.run.kind = "dpg"
    config.run.init = "runs/small/model"
    config.run.precision = "fp32"
    config.run.remat = "none"
    config.run.steps = 1_200
    config.run.eval_sources = ("data/val",)
    config.run.eval_images = 8
    config.run.eval_crop = 128
    config.run.sample_every = 400
    config.run.checkpoint_every = 200
    return config
