"""Sizes of the small models; `ModelConfig()` itself is Stable Diffusion 2.1-base with RAM."""

from dataclasses import replace

from osdhuman_jax.config import ModelConfig
from osdhuman_jax.networks.configs import (
    DualPromptConfig,
    HFIEConfig,
    SwinConfig,
    SwinIRConfig,
    UNetConfig,
    VAEConfig,
)

PLAIN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"


def nano() -> ModelConfig:
    """The paper's chain in small: levels so thin that two CPU cores can train and run it."""
    return ModelConfig(
        vae=VAEConfig(
            latent_channels=16,
            block_out_channels=(16, 24, 48),
            layers_per_block=1,
            norm_num_groups=2,  # a group's mean is lost, and with it colour where groups are small
            scaling_factor=1.0,
            mid_block_add_attention=False,
        ),
        unet=UNetConfig(
            in_channels=16,
            block_out_channels=(64, 64, 96),
            down_block_types=(PLAIN, PLAIN, CROSS),
            layers_per_block=1,
            num_attention_heads=(1, 1, 2),
            cross_attention_dim=64,
            norm_num_groups=8,
        ),
        swin=SwinConfig(
            image_size=96,
            patch_size=4,
            embed_dim=32,
            depths=(2, 2, 2),
            num_heads=(1, 2, 4),
            window_size=6,
            mlp_ratio=4.0,
            image_proj_dim=64,
        ),
        hfie=HFIEConfig(num_queries=16, num_heads=1),
        timestep=399,  # as OSDFace; Eq. 2 then multiplies eps's error by 1.2, not by 14.6
    )


def small() -> ModelConfig:
    """The bundled model: nearly all its layers work at a quarter of the side.

    What is left of a heavily degraded picture has that size, and two CPU cores can train and run
    many channels there.
    """
    return ModelConfig(
        vae=VAEConfig(
            latent_channels=48,
            block_out_channels=(64,),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=1.0,
            mid_block_add_attention=False,
            stem=4,
        ),
        unet=UNetConfig(
            in_channels=48,
            block_out_channels=(128, 128, 96),
            down_block_types=(PLAIN, PLAIN, CROSS),
            layers_per_block=3,
            num_attention_heads=(1, 1, 2),
            cross_attention_dim=64,
            norm_num_groups=8,
        ),
        swin=nano().swin,
        hfie=nano().hfie,
        # HAODiff's: Eq. 2 multiplies the U-Net's output by 0.57. At 20, where it is 0.14, the
        # autoencoder learnt to do nearly all of the work. The U-Net must be there from the first
        # step on: one that joins a trained autoencoder learns next to nothing at any timestep.
        timestep=199,
    )


def small_dual() -> DualPromptConfig:
    """HAODiff's prompts for `small`, which attends to as many tokens of each as to HFIE's."""
    return replace(
        DualPromptConfig.haodiff(),
        image_size=128,  # a training crop as it is
        embed_dim=32,
        depths=(2, 2, 1, 1),
        num_heads=(2, 2, 2, 2),
        num_layers=1,
        num_heads_performer=2,
        dim_head=16,
        num_features=44,  # int(16 ln 16)
        out_tokens=16,
        num_heads_pool=1,
        guidance=2.0,  # the U-Net learns with it; in use as in training
        upsamplers=True,
    )


def tiny_dual() -> DualPromptConfig:
    """HAODiff's prompts with every kind of layer, as small as they come: tests and benchmarks."""
    return replace(
        DualPromptConfig.haodiff(),
        image_size=64,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(2, 1),
        num_layers=2,
        num_heads_performer=2,
        dim_head=4,
        num_features=5,
        out_tokens=3,
        num_heads_pool=2,
    )


def tiny_swinir() -> SwinIRConfig:
    """DiffBIR's first stage as small as it comes, its groups unlike each other."""
    return replace(
        SwinIRConfig.diffbir(),
        embed_dim=12,
        depths=(2, 3),
        num_heads=(2, 3),
        window_size=4,
        num_feat=8,
    )


def tiny() -> ModelConfig:
    """Every kind of layer, in a second: tests and `debug.py`."""
    return ModelConfig(
        vae=VAEConfig(
            latent_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=1.0,
            mid_block_add_attention=True,
        ),
        unet=UNetConfig(
            in_channels=4,
            block_out_channels=(8, 16),
            down_block_types=(CROSS, PLAIN),
            layers_per_block=1,
            num_attention_heads=(1, 2),
            cross_attention_dim=16,
            norm_num_groups=4,
        ),
        swin=SwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=(2, 2),
            num_heads=(1, 2),
            window_size=4,
            mlp_ratio=4.0,
            image_proj_dim=16,
        ),
        hfie=HFIEConfig(num_queries=5, num_heads=2),
    )
