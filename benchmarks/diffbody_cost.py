"""python -m benchmarks.diffbody_cost [--size 512x1024] [--steps 50]

Operations of what DiffBody does to one picture at Stable Diffusion 2.1-base's sizes, counted from
shapes alone (2 for each multiplication, see training/flops.py): the cleaner, the conditions, and
all steps of its sampler with two prompts, without and with guidance by the parser of parts.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from benchmarks.train_step import diffbody_shapes
from configs import diffbody
from osdhuman_jax.methods.body_parts import parser_loss
from osdhuman_jax.methods.diffbody import DiffBody, Given
from osdhuman_jax.methods.sampler import Guidance, make_steps
from osdhuman_jax.networks.configs import CLIPConfig, PartParserConfig
from osdhuman_jax.networks.part_parser import PartParser
from osdhuman_jax.networks.target import traced_for
from osdhuman_jax.training.flops import operations
from osdhuman_jax.weights.model_folder import abstract


def count(network: nnx.Module, function: Callable[..., Any], *shapes: Any) -> int:
    """Operations of `function` of a network and of arrays of these shapes."""
    graphdef, state = nnx.split(network)

    def pure(state: nnx.State, *arrays: Any) -> Any:
        return function(nnx.merge(graphdef, state), *arrays)

    # On no platform of its own: kernels of one hide products from a count.
    with traced_for("none"):
        return operations(jax.make_jaxpr(pure)(state, *shapes))


def sampled(
    both: nnx.Dict, given: Given, reg: Array, key: Array, steps: int, through: str | None
) -> Array:
    """z_0 in `steps` steps of DDPM, guided in all of them where it is told through what."""
    body, parser = both.body, both.parser
    guidance = None
    if through:
        loss = body.latent_loss(parser_loss(parser, reg))
        guidance = Guidance(loss, 0.2, through, t_start=1000)  # type: ignore[arg-type]
    keys = jax.random.split(key, 1)
    return body.sample(given._replace(cfg=4.0), make_steps(steps), keys, guidance=guidance)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--size", default="512x1024", help="width x height in pixels")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args(argv)
    width, height = map(int, args.size.split("x"))
    body = diffbody_shapes(diffbody.get_config())
    parts = abstract(lambda rngs: PartParser(PartParserConfig.five(), rngs=rngs))
    both = nnx.Dict(body=body, parser=parts)

    def shape(*size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, jnp.float32)

    image, attention = shape(1, height, width, 3), shape(1, height, width, 1)
    tokens = shape(1, 77, CLIPConfig.sd21().hidden_size)
    latent = shape(1, height // 8, width // 8, 9)
    given = Given(latent, tokens, tokens)  # type: ignore[arg-type]
    key = jax.eval_shape(lambda: jax.random.key(0))
    rows = {
        "cleaner": count(body, DiffBody.clean, image),
        "conditions": count(body, DiffBody.conditions, image, image, attention),
        "decoding": count(body, DiffBody.decode, shape(1, height // 8, width // 8, 4)),
    }
    for name, through in (("two prompts", None), ("guided", "decoder"), ("Algorithm 1", "unet")):
        rows[f"{args.steps} steps, {name}"] = count(
            both,
            lambda both, given, reg, key, through=through: sampled(
                both, given, reg, key, args.steps, through
            ),
            given._replace(cfg=1.0, control_scale=1.0),
            image,
            key,
        )
    for name, work in rows.items():
        print(f"{name:22} {work / 1e12:8.2f} TFLOP", flush=True)


if __name__ == "__main__":
    main()
