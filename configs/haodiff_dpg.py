"""HAODiff, stage 1: the dual-prompt generator learns the original, the residual and what moved.

    osdhuman weights import --sd stabilityai/stable-diffusion-2-1-base --prompt dual \\
        --lpips vgg16-397923af.pth vgg.pth --dists weights.pt --output models/haodiff_start
    osdhuman parts --pictures data/persona --output data/parts --from blazepose
    python train.py --config configs/haodiff_dpg.py --workdir runs/haodiff_dpg

The authors train for 20,000 steps of 16 pictures on four A6000 (Gong et al. 2025). Their rate of
2e-3 is ten times SwinIR's usual one, which is taken here, with gradients clipped; ten hours or more
on one H100 are a guess, and no run of this size has been made yet. By the compiler for an H200 four
pictures, in bfloat16, are 9.96 TFLOP a step and take 9.8 GB (docs/training.md).
"""

from dataclasses import replace

from osdhuman_jax.config import Config, ModelConfig
from osdhuman_jax.networks.configs import DualPromptConfig


def get_config() -> Config:
    config = Config(model=haodiff())
    config.run.kind = "dpg"
    config.run.init = "models/haodiff_start"
    config.run.steps = 20_000
    config.prompt.kind = "dual"
    config.data.sources = ("data/persona",)
    config.data.parts = ("data/parts",)
    config.data.mask = True
    # Nothing, human motion blur, or Real-ESRGAN's first order; its second order always follows.
    config.data.degradation.first_order = (0.1, 0.4, 0.5)
    config.loss.mse = 0.0
    config.loss.lpips = 0.0
    config.loss.vsd = 0.0
    config.loss.dice = 0.02
    config.optim.learning_rate = 2e-4
    config.optim.weight_decay = 0.0
    return config


def haodiff() -> ModelConfig:
    """Stable Diffusion 2.1-base with two prompts, at the timestep of HAODiff's one step."""
    return ModelConfig(timestep=199, dual=replace(DualPromptConfig.haodiff(), upsamplers=True))
