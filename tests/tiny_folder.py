"""The thinnest model that is a whole one, and a photograph: for tests of commands."""

from dataclasses import replace

import cv2
import jax
import numpy as np
from flax import nnx
from skimage.data import astronaut

from osdhuman_jax.config import ModelConfig
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.networks.configs import HFIEConfig, SwinConfig, UNetConfig, VAEConfig

TINY = ModelConfig(
    vae=replace(
        VAEConfig.sd21(),
        block_out_channels=(2, 2, 2, 2),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    ),
    unet=UNetConfig(
        in_channels=4,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        num_attention_heads=(1, 1),
        cross_attention_dim=4,
        norm_num_groups=2,
    ),
    swin=SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=4,
        depths=(1,),
        num_heads=(1,),
        window_size=4,
        mlp_ratio=1.0,
        image_proj_dim=4,
    ),
    hfie=HFIEConfig(num_queries=2, num_heads=1),
)
PHOTO = cv2.resize(astronaut(), (48, 60), interpolation=cv2.INTER_AREA)  # 60 high, 48 wide


def random_restorer() -> OneStepRestorer:
    """Random weights without compiling their initializers."""
    abstract = nnx.eval_shape(lambda: build_restorer(TINY, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), state)
    return nnx.merge(graphdef, draw)
