"""Sampling in many steps: from noise to a latent, by DDPM or DDIM, and guidance on the way.

The networks know 1000 timesteps; a sampler visits S of them, t_1 > ... > t_S. With a = abar at the
present one and a' = abar at the next (1 after the last), each step makes, of the noise eps that a
network sees in z,

    z_0 = (z - sqrt(1 - a) eps) / sqrt(a)                                 (DiffBody's Eq. 5)
    DDPM:  z' = sqrt(a') b / (1 - a) z_0 + sqrt(a / a') (1 - a') / (1 - a) z + sigma n
    DDIM:  z' = sqrt(a') z_0 + sqrt(1 - a') eps

where b = 1 - a / a' is the respaced beta, n is noise, and sigma^2 = b (1 - a') / (1 - a) (Ho et al.
2020, Eq. 7, by the spacing of Nichol & Dhariwal 2021; Song et al. 2021, Eq. 12 with eta = 0). The
last step has a' = 1 and gives z_0 itself.

Guidance (DiffBody's Algorithm 1) moves the mean of DDPM against the gradient of a loss of z_0.

Everything is float32 outside the networks, and pure. Every picture has a key of its own, so that
what is made of it does not depend on the pictures beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.types import Latent, Scalar, Timestep

Spacing = Literal["linspace", "leading"]
Index = Int[Array, ""] | int
Keys = Key[Array, " b"]
Noise = Float[Array, "b zh zw zc"]
# The noise that networks see in latents at a timestep, and a loss of each picture by its z_0.
Predict = Callable[[Latent, Timestep], Latent]
LatentLoss = Callable[[Latent], Float[Array, " b"]]

# What a picture's key is folded with for the noise that sampling starts with; steps fold their own
# number, and have at most a thousand.
START = 2**31 - 1

# Timesteps (T_STOP, T_START] are guided by default: above them, what is decoded is still noise.
T_START, T_STOP = 700, 0


class Steps(NamedTuple):
    """The S timesteps of a sampler and their coefficients, from the first step to the last."""

    t: Int[Array, " s"]
    signal: Float[Array, " s"]  # sqrt(a)
    sigma: Float[Array, " s"]  # sqrt(1 - a)
    of_clean: Float[Array, " s"]  # what z_0, z, eps and noise are multiplied by in the sum z'
    of_noisy: Float[Array, " s"]
    of_eps: Float[Array, " s"]
    of_noise: Float[Array, " s"]
    spread: Float[Array, " s"]  # DDPM's sigma, by which guidance is measured in DDIM too


def timesteps(steps: int, spacing: Spacing = "linspace") -> Int[np.ndarray, " s"]:
    """The timesteps of `steps` steps, descending.

    "linspace" has the first and the last one, 999 and 0 (DiffBIR's, and diffusers' of that name);
    "leading" has multiples of a whole number, and 1 more (Stable Diffusion's `steps_offset`). One
    step is at 999. Raises ValueError where there are fewer than one or more than 1000.
    """
    total = Schedule.num_train_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be 1 to {total}, got {steps}")
    if spacing == "linspace" or steps == 1:
        return np.linspace(total - 1, 0, steps).round().astype(np.int32)
    # A thousand of them leave no room for the offset.
    ascending = np.arange(steps) * (total // steps) + 1
    return np.minimum(ascending, total - 1)[::-1].astype(np.int32)


def make_steps(
    steps: int, kind: Literal["ddpm", "ddim"] = "ddpm", spacing: Spacing = "linspace"
) -> Steps:
    """The coefficients of a sampler, computed in float64. Raises ValueError as `timesteps`."""
    t = timesteps(steps, spacing)
    a = Schedule().products[t]
    after = np.append(a[1:], 1.0)
    beta = 1.0 - a / after
    spread = np.sqrt(beta * (1.0 - after) / (1.0 - a))
    zero = np.zeros(steps)
    if kind == "ddpm":
        of_clean = np.sqrt(after) * beta / (1.0 - a)
        of_noisy = np.sqrt(a / after) * (1.0 - after) / (1.0 - a)
        factors = (of_clean, of_noisy, zero, spread)
    else:
        factors = (np.sqrt(after), zero, np.sqrt(1.0 - after), zero)
    values = (np.sqrt(a), np.sqrt(1.0 - a), *factors, spread)
    return Steps(jnp.asarray(t), *(jnp.asarray(value, jnp.float32) for value in values))


# One step ----------------------------------------------------------------------------------------


def noise(keys: Keys, number: Index, shape: tuple[int, ...]) -> Noise:
    """N(0, 1) of latents of `shape`, for each picture by its key and by the number of the step."""

    def one(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape[1:], jnp.float32)

    return jax.vmap(one)(keys)  # [B, h, w, C]


def start_latent(
    steps: Steps, keys: Keys, shape: tuple[int, ...], condition: Latent | None = None
) -> Latent:
    """The latent of the first step: noise, or with `condition` this latent with noise added."""
    drawn = noise(keys, START, shape)
    if condition is None:
        return drawn
    return steps.signal[0] * condition.astype(jnp.float32) + steps.sigma[0] * drawn


def clean(steps: Steps, i: Index, z: Latent, eps: Latent) -> Latent:
    """Eq. 5: the estimate of z_0 at step `i`."""
    return (z - steps.sigma[i] * eps.astype(jnp.float32)) / steps.signal[i]


def step(
    steps: Steps, i: Index, z: Latent, eps: Latent, keys: Keys, shift: Latent | None = None
) -> Latent:
    """The latent of step `i + 1` from that of step `i` (both from 0) and the noise seen in it.

    `shift` is subtracted from the mean. Of the last step the result is z_0.
    """
    eps = eps.astype(jnp.float32)
    mean = steps.of_clean[i] * clean(steps, i, z, eps) + steps.of_noisy[i] * z
    mean = mean + steps.of_eps[i] * eps
    if shift is not None:
        mean = mean - shift
    return mean + steps.of_noise[i] * noise(keys, i, z.shape)


# Guidance ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guidance:
    """By what and how far the mean of each step is moved. At a scale of 0 there is none.

    The gradient is that of `loss` by z_0, eps being constant ("decoder", as DiffBIR's), or by the
    noisy latent, through the networks ("unet", Algorithm 1 to the letter, and twice as slow).
    The paper does not say how large s is, and a gradient's size changes with the picture's and with
    t: by "sigma" the shift has the root mean square s sigma_t in each picture. "none" is s g.
    """

    loss: LatentLoss
    scale: float | Scalar  # s
    through: Literal["decoder", "unet"] = "decoder"
    normalize: Literal["sigma", "none"] = "sigma"
    t_start: int = T_START
    t_stop: int = T_STOP

    def shift(self, gradient: Latent, spread: Scalar) -> Latent:
        """What a step's mean is moved against, of the gradient and DDPM's sigma_t."""
        if self.normalize == "none":
            return self.scale * gradient
        square = jnp.mean(jnp.square(gradient), axis=(1, 2, 3), keepdims=True)  # [B, 1, 1, 1]
        # Where nothing is to be gained the gradient is zero, and stays so.
        rms = jnp.sqrt(jnp.maximum(square, jnp.finfo(jnp.float32).tiny))
        return self.scale * spread * gradient / rms


def in_window(t: Index, start: int = T_START, stop: int = T_STOP) -> Bool[Array, ""] | bool:
    """Whether a step at timestep `t` is guided."""
    return (stop < t) & (t <= start)


def predicted(steps: Steps, i: Index, z: Latent, predict: Predict) -> Latent:
    """The noise that `predict` sees at step `i`, float32."""
    t = jnp.broadcast_to(steps.t[i], z.shape[:1])  # [B]
    return predict(z, t).astype(jnp.float32)


def by_clean(z0: Latent, guidance: Guidance) -> Latent:
    """The gradient of the loss by z_0."""
    # A sum over pictures: each one's gradient is its own.
    return jax.grad(lambda z0: jnp.sum(guidance.loss(z0)))(z0)


def by_noisy(
    steps: Steps, i: Index, z: Latent, predict: Predict, guidance: Guidance
) -> tuple[Latent, Latent]:
    """(gradient of the loss by z at step `i`, eps), through the networks."""

    def loss(z: Latent) -> tuple[Scalar, Latent]:
        eps = predicted(steps, i, z, predict)
        return jnp.sum(guidance.loss(clean(steps, i, z, eps))), eps

    return jax.grad(loss, has_aux=True)(z)


def led(
    steps: Steps, i: Index, z: Latent, predict: Predict, guidance: Guidance
) -> tuple[Latent, Latent]:
    """(eps, shift) of step `i`, which is guided whatever its timestep is."""
    if guidance.through == "decoder":
        eps = predicted(steps, i, z, predict)
        found = by_clean(clean(steps, i, z, eps), guidance)
    else:
        found, eps = by_noisy(steps, i, z, predict, guidance)
    return eps, guidance.shift(found, steps.spread[i])


def guided(
    steps: Steps, i: Index, z: Latent, predict: Predict, guidance: Guidance
) -> tuple[Latent, Latent]:
    """(eps, shift) of step `i`; outside the window, and at the last step, the shift is zero."""
    inside = in_window(steps.t[i], guidance.t_start, guidance.t_stop)
    active = inside & (jnp.asarray(i) < len(steps.t) - 1)
    zeros = jnp.zeros(z.shape, jnp.float32)
    if guidance.through == "decoder":
        # Networks are asked in any case, and stand in the program once.
        eps = predicted(steps, i, z, predict)
        z0 = clean(steps, i, z, eps)
        found = lax.cond(active, lambda z0: by_clean(z0, guidance), lambda _: zeros, z0)
    else:
        found, eps = lax.cond(
            active,
            lambda z: by_noisy(steps, i, z, predict, guidance),
            lambda z: (zeros, predicted(steps, i, z, predict)),
            z,
        )
    return eps, guidance.shift(found, steps.spread[i])


# All steps ---------------------------------------------------------------------------------------


def sample(
    steps: Steps, z: Latent, keys: Keys, predict: Predict, guidance: Guidance | None = None
) -> Latent:
    """z_0 (B, h, w, C) from the first step's latent, in one loop that is compiled once.

    `predict` is asked at every step; `guidance` of a scale of 0 is as none.
    """
    used = guidance if guidance is not None and guidance.scale else None

    def body(i: Array, z: Array) -> Array:
        if used is None:
            return step(steps, i, z, predicted(steps, i, z, predict), keys)
        eps, shift = guided(steps, i, z, predict, used)
        return step(steps, i, z, eps, keys, shift)

    return lax.fori_loop(0, len(steps.t), body, z.astype(jnp.float32))
