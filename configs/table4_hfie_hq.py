"""Table 4: HFIE looks at the HQ picture in training, at the LQ one in use.

    python train.py --config configs/table4_hfie_hq.py --workdir runs/hfie_hq

It takes as long as configs/base.py, and like that one it has not been run.

| PERSONA-Test, from the paper | CLIPIQA | MANIQA | MUSIQ | NIQE |
|---|---|---|---|---|
| HFIE of HQ | 0.7111 | 0.6747 | 70.00 | 5.503 |
| HFIE of LQ | 0.7155 | 0.6977 | 73.77 | 4.129 |
"""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.prompt.kind = "hfie"
    config.prompt.source = "hq"
    return config
