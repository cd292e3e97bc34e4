"""Table 4: HFIE looks at the LQ picture, as in the paper; the run of configs/base.py by its name.

    python train.py --config configs/table4_hfie_lq.py --workdir runs/hfie_lq

How long it takes, and what the paper reports of it, is in the docstring of configs/base.py.
"""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.prompt.kind = "hfie"
    config.prompt.source = "lq"
    return config
