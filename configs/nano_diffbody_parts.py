"""DiffBody in small, the parser of parts of the body, by which its sampling may be guided (Eq. 6).

    osdhuman poses --pictures data/photos --output data/poses --from blazepose:WHEEL
    osdhuman poses --pictures data/val --output data/val_poses --from blazepose:WHEEL
    python train.py --config configs/nano_diffbody_parts.py --workdir runs/nano_diffbody_parts

The result is the prior's folder with the parser in it, which configs/nano_diffbody.py begins with.
`parts` and `val_loss` fall, `right`, the share of the places whose part is found, rises from that
of the background. A step is a sixth of a second of one CPU core, six minutes of it in all.
"""

from configs.models import nano
from configs.nano_diffbody_prior import upright
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config(model=nano())
    upright(config.data, config.run)
    config.data.sources = ("data/photos",)
    config.data.poses = ("data/poses",)
    config.data.degrade = False
    config.data.batch_size = 8
    config.data.workers = 1
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 100
    config.optim.schedule = "cosine"
    config.run.kind = "parts"
    config.run.init = "runs/nano_diffbody_prior/model"
    config.run.precision = "fp32"
    config.run.remat = "none"
    config.run.steps = 2_000
    config.run.best = "val_loss"
    config.run.eval_sources = ("data/val",)
    config.run.eval_poses = ("data/val_poses",)
    return config
