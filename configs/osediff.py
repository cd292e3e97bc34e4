"""OSEDiff as its released trainer does it, beside the paper's training: tags, guidance, conv_in.

    python train.py --config configs/osediff.py --workdir runs/osediff

models/sd21 needs the text encoder and the tags too (`weights import --clip --tags`). This run has
not been made. Guidance asks the frozen regularizer twice, so that a step takes more than one of
configs/base.py; how much more, and how many hours that makes, is not measured. `vsd` does not start
at 0, because of the guidance. OSDHuman's paper trained OSEDiff on PERSONA too, and reports on
PERSONA-Val: DISTS 0.1476, LPIPS 0.2756, PSNR 22.23, SSIM 0.6342, FID 17.22.
"""

from configs import base
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.data.sources = ("data/lsdir", "data/ffhq10k")
    config.prompt.kind = "ram"  # bare tags of the HQ picture; DAPE's of the LQ one only in use
    config.prompt.source = "hq"
    config.lora.train_conv_in = True
    config.loss.cfg_vsd = 7.5
    config.loss.negative_prompt = (
        "painting, oil painting, illustration, drawing, art, sketch, cartoon, CG Style, 3D render, "
        "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, "
        "signature, jpeg artifacts, deformed, lowres, over-smooth"
    )
    config.loss.reg_lora_scope = "mid"  # of its three adapters one is active, the middle block's
    return config
