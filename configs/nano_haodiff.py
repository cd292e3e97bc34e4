"""The bundled model, HAODiff in small: stage 2, by two prompts, and with motion blur.

    python train.py --config configs/nano_haodiff.py --workdir runs/nano_haodiff

It starts from the model that configs/nano_haodiff_dpg.py left. Losses and damage are those of
configs/small.py, but for the prompts, the dual-prompt generator's branches, which are frozen, and a
share of pictures in which people move. It is for a GPU: an H200 takes 0.1 s a step with 15 workers,
and 6,500 steps with 9,500 labels made the bundled model. Two CPU cores take 3 s for 8 pictures of
128 pixels. `grad_norm_prompter` says whether the prompts matter.
"""

from configs.models import small_dual
from configs.small import get_config as one_prompt
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = one_prompt()
    config.model.dual = small_dual()
    config.prompt.kind = "dual"
    config.data.parts = ("data/parts",)
    # Twice the side of configs/small.py, so that a face and what is around it are seen at once.
    config.data.crop = 256
    config.data.batch_size = 32
    # What is heavily degraded is the teacher's, all of it. Its output is a function of the picture,
    # and can be learned without a blur; the original, the target of the others, cannot. Motion
    # blur is in nine of ten of the heavily degraded others: the labelled ones have no motion.
    config.data.labelled_share = 0.65
    config.data.teacher_share = 1.0
    config.data.kinds = (0.15, 0.3, 0.2, 0.15, 0.2)
    config.data.degradation.first_order = (0.1, 0.9, 0.0)
    config.loss.adversarial = 0.08
    config.loss.features = 0.2
    config.optim.schedule = "constant"
    config.optim.ema = 0.999
    config.use.keep_faces = 0.9
    config.use.strength_of = "blend"  # its prompts say next to nothing
    config.use.blend = 0.9
    config.run.init = "runs/nano_haodiff_dpg/model"
    return config
