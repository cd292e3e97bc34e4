"""HAODiff, stage 2: LoRA, both embedders and a critic of latents, by the generator of stage 1.

    python train.py --config configs/haodiff.py --workdir runs/haodiff

It starts from the model that configs/haodiff_dpg.py left. The authors train for 120,000 steps of
two pictures on two A6000 (Gong et al. 2025), with AdamW at 1e-5; how long that takes elsewhere is
not measured. Memory and operations of a step are, without a device:

    python -m benchmarks.train_step --preset haodiff --precision bf16 --batch 2 --aot
"""

from configs.haodiff_dpg import get_config as stage_1
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = stage_1()
    config.run.kind = "restorer"
    config.run.init = "runs/haodiff_dpg/model"
    config.run.steps = 120_000
    config.data.mask = False
    config.data.batch_size = 2
    # The U-Net alone is adapted, with rank and alpha of 16: scale 1.
    config.lora.rank = 16
    config.lora.alpha = 16.0
    config.lora.vae_encoder = False
    config.loss.mse = 1.0
    config.loss.ea = 1.0
    config.loss.gan = 0.01
    config.loss.dice = 0.0
    config.optim.learning_rate = 1e-5
    config.optim.weight_decay = 1e-2
    return config
