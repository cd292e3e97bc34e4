"""One whole step of DiffBody's sampler, with two prompts and guidance, by diffusers and by us.

The noise of U-Net and ControlNet under two prompts, guided by their difference; Eq. 5; the gradient
of Eq. 6 through the VAE's decoder; DDPM's mean, moved against it. In the place of the parser of
parts stands a linear one of squares of 4 x 4 pixels: parsers have tests of their own.
"""

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax.typing import DTypeLike

from benchmarks import references
from benchmarks.convert import from_torch, nchw, normal, randomise
from osdhuman_jax.config import ModelConfig
from osdhuman_jax.methods import sampler
from osdhuman_jax.methods.body_parts import parser_loss
from osdhuman_jax.methods.diffbody import DiffBody, Given
from osdhuman_jax.methods.sampler import Guidance, make_steps
from osdhuman_jax.networks.configs import ControlNetConfig
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL

STEPS, NUMBER, CFG, SCALE, SQUARE = 50, 30, 4.0, 0.3, 4


class GuidedStep:
    """Both compositions of the same random weights, and what they are asked."""

    def __init__(self, model: ModelConfig, side: int) -> None:
        """`side` of the picture in pixels."""
        self.model = model
        self.control = ControlNetConfig(model.unet, pose=True, attention=True)
        plan = asdict(model.unet)
        self.networks: tuple[Any, Any, Any] = (
            randomise(references.unet(plan)),
            randomise(references.controlnet(plan, self.control.in_channels), 1),
            randomise(references.vae(asdict(model.vae)), 2),
        )
        small = side // 2 ** (len(model.vae.block_out_channels) - 1)
        self.z = normal(1, small, small, model.unet.in_channels)
        self.hint = normal(1, small, small, self.control.hint_channels, seed=1)
        width = model.unet.cross_attention_dim
        self.prompt, self.negative = (normal(1, 5, width, seed=i) for i in (2, 3))
        self.reference = np.tanh(normal(1, side, side, 3, seed=4))
        self.parser = normal(SQUARE, SQUARE, 3, 6, seed=5)
        self.keys = jax.random.split(jax.random.key(0), 1)
        self.noise = np.asarray(sampler.noise(self.keys, NUMBER, self.z.shape))

    def theirs(self) -> torch.Tensor:
        """The next latent, NCHW."""
        unet, controlnet, vae = self.networks
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        products = torch.cumprod(1 - betas, 0)
        t = [round(i * 999 / (STEPS - 1)) for i in reversed(range(STEPS))]
        now, after = products[t[NUMBER]], products[t[NUMBER + 1]]
        beta = 1 - now / after
        # The noise under either prompt, and beyond the one away from the other.
        asked = np.asarray([t[NUMBER]], np.int32)
        base, prompted = (
            references.controlled(
                unet,
                references.control(controlnet, self.z, asked, text, self.hint),
                *(self.z, asked, text),
            )
            for text in (self.negative, self.prompt)
        )
        eps = base + CFG * (prompted - base)
        z = nchw(self.z)
        clean = ((z - (1 - now) ** 0.5 * eps) / now**0.5).float().requires_grad_()
        # The gradient of the parts' cross-entropy by what is restored so far.
        kernel = torch.from_numpy(self.parser.transpose(3, 2, 0, 1).copy())
        with torch.enable_grad():
            image = vae.decode(clean / self.model.vae.scaling_factor).sample
            seen, wanted = (
                torch.nn.functional.conv2d(x, kernel, stride=SQUARE)
                for x in (image, nchw(self.reference))
            )
            loss = -(wanted.softmax(1) * seen.log_softmax(1)).sum(1).mean()
            (gradient,) = torch.autograd.grad(loss, clean)
        spread = (beta * (1 - after) / (1 - now)) ** 0.5
        shift = SCALE * spread * gradient / gradient.square().mean() ** 0.5
        mean = after**0.5 * beta / (1 - now) * clean
        mean = mean + (now / after) ** 0.5 * (1 - after) / (1 - now) * z - shift
        return (mean + spread * nchw(self.noise)).detach()

    def ours(self, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """The same, NHWC, networks computing in `dtype`."""
        unet, controlnet, vae = self.networks
        sizes, kernel, reference = self.model, jnp.asarray(self.parser), jnp.asarray(self.reference)
        body = DiffBody(
            from_torch(lambda rngs: AutoencoderKL(sizes.vae, dtype=dtype, rngs=rngs), vae),
            from_torch(lambda rngs: UNet2DConditionModel(sizes.unet, dtype=dtype, rngs=rngs), unet),
            from_torch(
                lambda rngs: ControlNet(self.control, dtype=dtype, rngs=rngs),
                references.controlnet_state(controlnet),
            ),
            cleaner=lambda lq: lq,  # type: ignore[arg-type]  # I_reg is given
        )

        def parse(image: jax.Array) -> jax.Array:
            b, h, w, _ = image.shape
            squares = image.reshape(b, h // SQUARE, SQUARE, w // SQUARE, SQUARE, 3)
            return jnp.einsum("bhiwjc,ijck->bhwk", squares, kernel)

        @nnx.jit
        def step(body: DiffBody, z: jax.Array, given: Given) -> jax.Array:
            steps, guidance = make_steps(STEPS), Guidance(body.latent_loss(loss), SCALE)
            eps, shift = sampler.led(steps, NUMBER, z, body.predict(given), guidance)
            return sampler.step(steps, NUMBER, z, eps, self.keys, shift)

        loss = parser_loss(parse, reference)
        hint, prompt, negative = map(jnp.asarray, (self.hint, self.prompt, self.negative))
        return step(body, jnp.asarray(self.z), Given(hint, prompt, negative, CFG))
