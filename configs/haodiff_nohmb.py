"""HAODiff's ablation without human motion blur: Real-ESRGAN's degradations alone.

    python train.py --config configs/haodiff_nohmb.py --workdir runs/haodiff_nohmb

As configs/haodiff.py, whose stage 1 is to be trained with `first_order` of (0, 0, 1) as well.
"""

from configs.haodiff import get_config as haodiff
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = haodiff()
    config.data.parts = ()
    config.data.degradation.first_order = (0.0, 0.0, 1.0)
    return config
