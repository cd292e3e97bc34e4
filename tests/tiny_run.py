"""`configs/debug.py` in small, for the tests of `train.py`: a tiny model and few pixels."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tiny_models import DEEP  # noqa: E402

from configs import debug  # noqa: E402
from osdhuman_jax.config import Config  # noqa: E402


def get_config() -> Config:
    config = debug.get_config()
    config.model = DEEP
    config.data.crop = config.run.eval_crop = 32
    config.data.batch_size = 2
    # A shorter way back, to compile.
    config.lora.vae_encoder, config.loss.reg_lora_scope = False, "mid"
    return config
