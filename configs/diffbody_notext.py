"""DiffBody without texts (its Fig. 8): every caption is empty.

    python train.py --config configs/diffbody_notext.py --workdir runs/diffbody_notext

The base model is that of configs/diffbody.py, as are the hours. What comes of it is used without a
text, and without guidance by one.
"""

from configs import diffbody
from osdhuman_jax.config import Config, SampleConfig


def get_config() -> Config:
    config = diffbody.get_config()
    config.data.captions = ()
    config.run.eval_captions = ()
    config.use.sample = SampleConfig(cfg=1.0, negative="")
    return config
