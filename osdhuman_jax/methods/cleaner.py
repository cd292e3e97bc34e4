"""DiffBody's first stage, its "cleaner": degraded picture -> I_reg, the picture without its damage.

A network of its own restores the picture before pose, attention and diffusion see it; it is trained
alone, by the squared error (Eq. 2 of DiffBody)

    L_reg = || SwinIR(I_LQ) - I_HQ ||^2

here as the mean over the elements of pictures in [-1, 1], which for Adam is the same as the sum.
The paper's network is SwinIR; RRDBNet, whose released weights are trained with a critic, can stand
in its place. Both take (B, H, W, 3) in [-1, 1] and give `scale` times as large pictures.
"""

from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.config import from_dict
from osdhuman_jax.methods import losses
from osdhuman_jax.networks.configs import RRDBNetConfig, SwinIRConfig
from osdhuman_jax.networks.rrdbnet import RRDBNet
from osdhuman_jax.networks.swinir_restorer import SwinIR
from osdhuman_jax.networks.types import Image, Scalar

CleanerNetwork = RRDBNet | SwinIR
CleanerSizes = RRDBNetConfig | SwinIRConfig
MOST = 1000  # blocks; a file that claims more is not taken at its word


def build_cleaner(sizes: CleanerSizes, *, dtype: DTypeLike, rngs: nnx.Rngs) -> CleanerNetwork:
    """The network of these sizes. Raises ValueError where they make none."""
    # A block is hundreds of objects even without arrays, and sizes may be a stranger's.
    blocks = sizes.num_block if isinstance(sizes, RRDBNetConfig) else sum(sizes.depths)
    if not 0 < blocks <= MOST:
        raise ValueError(f"{blocks} blocks")
    if isinstance(sizes, RRDBNetConfig):
        return RRDBNet(sizes, dtype=dtype, rngs=rngs)
    return SwinIR(sizes, dtype=dtype, rngs=rngs)


def cleaner_sizes(values: object) -> CleanerSizes:
    """Sizes from a table of a model folder. Raises ConfigError where they are of neither."""
    # RRDBNet alone has blocks in one row.
    swinir = isinstance(values, dict) and "depths" in values
    return from_dict(SwinIRConfig, values) if swinir else from_dict(RRDBNetConfig, values)


def cleaner_loss(network: CleanerNetwork, lq: Image, hq: Image) -> Scalar:
    """Eq. 2, of outputs that are not clamped: beyond white a clamp has no gradient."""
    return losses.mse(network.unclamped(lq), hq)
