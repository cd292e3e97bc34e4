"""The bundled model, HAODiff in small: stage 2, by two prompts, and with motion blur.

    python train.py --config configs/nano_haodiff.py --workdir runs/nano_haodiff

It starts from the model that configs/nano_haodiff_dpg.py left. All is as in configs/small.py, but
for the prompts, the dual-prompt generator's branches, which are frozen, and a share of pictures in
which people move. A step takes 1.8 times as long as one of configs/small.py. `l1` and `gradient`
go on from where configs/small.py left them; `grad_norm_prompter` says whether the prompts matter.
"""

from configs.models import small_dual
from configs.small import get_config as one_prompt
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = one_prompt()
    config.model.dual = small_dual()
    config.prompt.kind = "dual"
    config.data.parts = ("data/parts",)
    # Of what no teacher has labelled half is degraded heavily: without a first order, or by motion
    # blur in its place. The labelled ones have Real-ESRGAN's first order.
    config.data.kinds = (0.5, 0.15, 0.1, 0.1, 0.15)
    config.data.degradation.first_order = (0.1, 0.9, 0.0)
    # Most of the steps from 250 to 500 were at it: NIQE fell by 0.4, and PSNR by 0.03 dB.
    config.loss.adversarial = 0.08
    config.run.init = "runs/nano_haodiff_dpg/model"
    return config
