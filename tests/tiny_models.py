"""Sizes of the tiny restorers; free of PyTorch, so that a run of `train.py` starts fast."""

from dataclasses import replace

from configs.models import tiny_dual
from osdhuman_jax.config import ModelConfig
from osdhuman_jax.networks.configs import HFIEConfig, SwinConfig, UNetConfig, VAEConfig

MODEL = ModelConfig(
    vae=replace(
        VAEConfig.sd21(),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    ),
    unet=UNetConfig(
        in_channels=4,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        layers_per_block=1,
        num_attention_heads=(2,),
        cross_attention_dim=8,
        norm_num_groups=2,
    ),
    swin=SwinConfig(16, 4, 4, (1,), (1,), 2, 4.0, image_proj_dim=8),
    hfie=HFIEConfig(num_queries=3, num_heads=2),
    timestep=399,  # at 999 nearly every pixel of a random network is clamped
)
# HAODiff's prompts: as many tokens for each of the two as the one-prompt model has.
DUAL = tiny_dual()
DUAL_MODEL = replace(MODEL, dual=DUAL, timestep=199)
# The model of one prompt with two levels, for photographs: one level has too many tokens for them.
DEEP = replace(
    MODEL,
    vae=replace(MODEL.vae, block_out_channels=(4, 8)),
    unet=replace(
        MODEL.unet,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        num_attention_heads=(1, 2),
    ),
)
# The same told by two prompts.
DUAL_DEEP = replace(DEEP, dual=DUAL, timestep=199)
