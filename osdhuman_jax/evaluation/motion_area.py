"""How much human motion blur restoration leaves, by a network that marks it: `hmb-area`.

HAODiff's stage 1 learns, in its third branch, a mask of what moved (networks/swinir.py). The metric
is the mean area of that mask over the restored pictures, divided by that over the degraded ones: 0
where no blur is seen any more, 1 where it is all still there, above 1 where restoration added some.
It is a ratio of means, since a picture without blur has no ratio of its own.

HAODiff's HMB-R is another number, of a detector of boxes that is not published: values of the two
do not compare, nor do those of two networks.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, UInt8

from osdhuman_jax.images.codec import to_float
from osdhuman_jax.networks.swinir import BranchedSwinIR
from osdhuman_jax.weights import WeightsError, load_model

Logits = Float[Array, "b rows columns 1"] | Float[np.ndarray, "b rows columns 1"]
Areas = Float64[np.ndarray, " b"]
# Pictures of one size to logits of any size.
Detector = Callable[[UInt8[np.ndarray, "b h w 3"]], Logits]


def blurred_area(logits: Logits) -> Areas:
    """Share of each picture, in [0, 1], where blur is more likely than not: sigmoid > 0.5."""
    return (np.asarray(logits) > 0).mean(axis=(1, 2, 3), dtype=np.float64)


def remaining_area(restored: Areas, degraded: Areas) -> Areas:
    """Each restored picture's area / mean area of all degraded ones; its mean is the metric.

    Raises ValueError where the degraded ones show no blur.
    """
    if not degraded.any():
        raise ValueError("the detector sees no motion blur in any of --degraded")
    return restored / degraded.mean()


def area_ratio(restored: Logits, degraded: Logits) -> float:
    """The metric of the logits of all pictures. Raises ValueError without blur to begin with."""
    return float(remaining_area(blurred_area(restored), blurred_area(degraded)).mean())


def motion_logits(network: BranchedSwinIR, side: int) -> Detector:
    """Pictures -> logits (B, side, side, 1) of a network that reconstructs.

    A picture is squashed to the network's square, as it is where prompts are made of it.
    """
    graphdef, state = nnx.split(network)

    # The weights are an argument: closed over, they would become constants of the program.
    @jax.jit
    def detect(state: nnx.State, x: Float[Array, "b s s 3"]) -> Float[Array, "b s s 1"]:
        return nnx.merge(graphdef, state).reconstruct(x).motion

    def logits(pixels: UInt8[np.ndarray, "b h w 3"]) -> Logits:
        x = jnp.asarray(to_float(pixels))
        # Outside of the program, which would otherwise be compiled for every size of picture.
        x = jax.image.resize(x, (len(pixels), side, side, 3), "linear", antialias=False)
        return detect(state, x)

    return logits


def load_motion_detector(folder: Path) -> Detector:
    """The detector of a model folder that HAODiff's stage 1 has trained.

    Raises WeightsError (a ValueError) where the model has not two prompts, or no upsamplers.
    """
    extractor = getattr(load_model(folder).restorer.prompter, "feature_extractor", None)
    if not isinstance(extractor, BranchedSwinIR) or not extractor.upsamplers:
        text = (
            "needed is what configs/haodiff_dpg.py trains, a model of two prompts with upsamplers"
        )
        raise WeightsError(f"{folder}: shows no motion blur: {text}")
    return motion_logits(extractor, extractor.image_size)
