"""Table 3: the paper's run on random crops of a general data set, LSDIR, in PERSONA's place.

    python train.py --config configs/table3_lsdir.py --workdir runs/lsdir

It takes as long as configs/base.py, and like that one it has not been run. The paper reports of
both data sets:

| | Val: DISTS | LPIPS | PSNR | SSIM | FID | Test: CLIPIQA | MANIQA | MUSIQ | NIQE |
|---|---|---|---|---|---|---|---|---|---|
| LSDIR | 0.1521 | 0.2692 | 22.51 | 0.6271 | 17.56 | 0.6781 | 0.6964 | 73.13 | 4.638 |
| PERSONA | 0.1414 | 0.2627 | 22.41 | 0.6363 | 16.60 | 0.7155 | 0.6977 | 73.77 | 4.129 |
"""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.data.sources = ("data/lsdir",)
    return config
