"""Table 4: the null prompt, a single space.

    python train.py --config configs/table4_null.py --workdir runs/null

models/sd21 needs the text encoder too (`weights import --clip`). The space is the same for every
picture, and no prompt is trained: a step takes less than one of configs/base.py. How much less is
not measured, for it has not been run.

| PERSONA-Test, from the paper | CLIPIQA | MANIQA | MUSIQ | NIQE |
|---|---|---|---|---|
| null | 0.7016 | 0.7226 | 73.17 | 5.065 |
| HFIE of LQ | 0.7155 | 0.6977 | 73.77 | 4.129 |
"""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.prompt.kind = "null"
    config.prompt.source = "lq"
    return config
