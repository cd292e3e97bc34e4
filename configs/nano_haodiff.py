"""HAODiff in small: stage 2, by two prompts, and with motion blur.

    python train.py --config configs/nano_haodiff.py --workdir runs/nano_haodiff

It starts from the model that configs/nano_haodiff_dpg.py left. Losses and damage are those of
configs/small.py, but for the prompts, the dual-prompt generator's branches, which are frozen, and
people who move in most of the heavily degraded pictures that are not the teacher's. Guidance asks
the U-Net twice. `grad_norm_prompter` says whether the prompts matter.
"""

from configs.models import small_dual
from configs.small import get_config as one_prompt
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = one_prompt()
    config.model.dual = small_dual()
    config.prompt.kind = "dual"
    config.data.parts = ("data/parts",)
    # Nothing, human motion blur, or Real-ESRGAN's first order; the labelled ones have no motion.
    config.data.degradation.first_order = (0.1, 0.9, 0.0)
    config.use.strength_of = "blend"  # small prompts say little, and guidance by them does little
    config.run.init = "runs/nano_haodiff_dpg/model"
    return config
