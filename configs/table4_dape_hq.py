"""Table 4: tags of the HQ picture by DAPE, bare in training as OSEDiff's.

    python train.py --config configs/table4_dape_hq.py --workdir runs/dape_hq

models/sd21 needs DAPE, the text encoder and the tags too (`weights import --dape --clip --tags`).
The tags are of the HQ picture in training, of the LQ one in use. It has not been run, and how long
a step takes beside one of configs/base.py is not measured.

| PERSONA-Test, from the paper | CLIPIQA | MANIQA | MUSIQ | NIQE |
|---|---|---|---|---|
| DAPE of HQ | 0.6625 | 0.7014 | 72.31 | 4.946 |
| HFIE of LQ | 0.7155 | 0.6977 | 73.77 | 4.129 |
"""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.prompt.kind = "dape"
    config.prompt.source = "hq"
    return config
