"""The paper's run (section 4.1): every value is `Config`'s default but for where the data are.

    python train.py --config configs/base.py --workdir runs/base

| setting | value | source |
|---|---|---|
| base model | Stable Diffusion 2.1-base, T_L = 999 | paper |
| prompt | HFIE of the LQ picture, 77 tokens | paper; the length is CLIP's |
| LoRA of VAE encoder, U-Net, regularizer | rank 4, alpha 8 | paper; alpha: OSEDiff |
| optimizer | AdamW, rate 5e-5; decay 0.01, clipped to norm 1 | paper; OSEDiff |
| loss | MSE + 2 LPIPS + 1 VSD, t of VSD from 20 to 980 | paper |
| batch, steps | 16 pictures of 512 x 512, 35,000 | paper, on four A800 |
| data | PERSONA, 109,053 pictures, degraded as Real-ESRGAN's x4plus | paper |

What the paper reports of it (Table 2), by `osdhuman evaluate`:

| | DISTS | LPIPS | PSNR | SSIM | FID | CLIPIQA | MANIQA | MUSIQ | NIQE |
|---|---|---|---|---|---|---|---|---|---|
| PERSONA-Val | 0.1414 | 0.2627 | 22.41 | 0.6363 | 16.60 | 0.7295 | 0.6934 | 76.13 | 3.575 |
| PERSONA-Test | | | | | | 0.7155 | 0.6977 | 73.77 | 4.129 |

This run has not been made: nothing here says that these are reached, or in how many hours. A step
is 198 TFLOP and takes 48.8 GB by the compiler for an H200 (docs/training.md). `vsd` starts at 0
and oscillates; `val_psnr_y` and `val_ssim_y` rise and settle.
"""

from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.run.init = "models/sd21"  # Stable Diffusion 2.1-base and RAM as a model folder
    config.data.sources = ("data/persona/train",)
    config.run.eval_sources = ("data/persona/val",)
    return config
