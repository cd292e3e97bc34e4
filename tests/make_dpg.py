"""HAODiff's extractor with upsamplers, small and random, as its stage 1 leaves it."""

from convert import filled

from osdhuman_jax.networks.configs import DualPromptConfig
from osdhuman_jax.networks.swinir import BranchedSwinIR

DPG = DualPromptConfig(
    image_size=32,
    upscale=4,
    embed_dim=4,
    depths=(1, 1),
    num_heads=(1, 1),
    window_size=4,
    mlp_ratio=2.0,
    ape=True,
    num_branches=3,
    skip_branch=(),
    num_layers=1,
    num_heads_performer=1,
    dim_head=4,
    num_features=4,
    patch_size=8,
    out_tokens=2,
    num_heads_pool=1,
    guidance=3.5,
)


def dpg() -> BranchedSwinIR:
    """Every weight random."""
    return filled(lambda rngs: BranchedSwinIR(DPG, reconstructs=True, rngs=rngs))
