"""ControlNet (Zhang et al. 2023) as DiffBIR and DiffBody have it: conditions are latents.

A trainable copy of a U-Net's encoder sees the noised latent z beside the conditions ("hint"), at
the latent's size. What it makes of each skip and of the middle block goes through a pointwise
convolution that begins as zero, and is added to the frozen U-Net's own:

    eps = unet(z, t, context, controlnet(z, t, context, hint))

DiffBody's hint (its section 3.2) is [E(I_reg) | E(I_pose) | I_attn], of 4 + 4 + 1 channels;
DiffBIR's is E(I_reg) alone. Attribute names are those of diffusers' ControlNetModel, whose encoder
of pixel hints there is none of.
"""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from osdhuman_jax.networks.configs import ControlNetConfig
from osdhuman_jax.networks.layers import conv1x1
from osdhuman_jax.networks.types import Latent, LayerOptions, Timestep, Tokens
from osdhuman_jax.networks.unet import Control, UNet2DConditionModel, UNetEncoder

Hint = Float[Array, "b zh zw hc"]


class ControlNet(UNetEncoder):
    """Noised latent, timestep, prompt and conditions -> what is added to the U-Net's features."""

    def __init__(
        self,
        config: ControlNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config.unet, config.in_channels, **kw)
        # A skip of conv_in's, then those of each level: its resnets, and its halving but the last.
        widths, layers = config.unet.block_out_channels, config.unet.layers_per_block
        skips = [width for width in widths for _ in range(layers + 1)][:-1]
        self.controlnet_down_blocks = nnx.List(
            _zero_conv(width, **kw) for width in (widths[0], *skips)
        )
        self.controlnet_mid_block = _zero_conv(widths[-1], **kw)

    def __call__(
        self,
        z: Latent,
        t: Timestep,
        context: Tokens,
        hint: Hint,
        scale: float | Float[Array, ""] = 1.0,
    ) -> Control:
        """`control` of the U-Net, times `scale`: one array for each skip, the middle block's last.

        `hint` is (B, h, w, `hint_channels`) at the latent's size, in the order of the config's
        fields: the restored picture's latent, the pose's, the attention in [0, 1].
        """
        _, x, skips = self.encode(jnp.concatenate([z, hint], axis=-1), t, context)
        convs = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        made = [conv(y) for conv, y in zip(convs, [*skips, x], strict=True)]
        return tuple(jnp.asarray(scale, y.dtype) * y for y in made)

    def copy_from(self, unet: UNet2DConditionModel) -> None:
        """Begin as DiffBIR's do, in place: with the U-Net's weights, and zeros where it has none.

        The U-Net then computes what it does without the ControlNet. The weights are copies in this
        network's own dtype, so that a training step may donate them. Raises KeyError where the
        U-Net has LoRA, which is to be merged before.
        """
        source = {path: p for path, p in nnx.iter_graph(unet) if isinstance(p, nnx.Param)}
        for path, variable in nnx.iter_graph(self):
            if not isinstance(variable, nnx.Param):
                continue
            # The convolutions to the U-Net are ControlNet's own.
            if str(path[0]).startswith("controlnet_"):
                variable.set_value(jnp.zeros(variable.shape, variable.dtype))
                continue
            value = jnp.array(source[path][...], variable.dtype)
            # conv_in's kernel alone differs: it has inputs for the conditions, behind the latent's.
            more = [(0, n - m) for n, m in zip(variable.shape, value.shape, strict=True)]
            variable.set_value(jnp.pad(value, more) if any(end for _, end in more) else value)


def _zero_conv(width: int, **kw: Unpack[LayerOptions]) -> nnx.Conv:
    """A pointwise convolution that begins as zero."""
    return conv1x1(width, width, kernel_init=nnx.initializers.zeros_init(), **kw)
