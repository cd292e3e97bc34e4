"""HAODiff's terms by hand, and both of its critics' sides."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import torch
from convert import call, filled, normal
from flax import nnx

from osdhuman_jax.config import LoRAConfig, OptimConfig
from osdhuman_jax.methods import haodiff_training as training
from osdhuman_jax.methods import lora, losses
from osdhuman_jax.networks.judge import Judge
from osdhuman_jax.training.optimizer import make_optimizer


def test_dice_by_hand():
    mask = np.zeros((3, 4, 4), np.float32)
    mask[0, :2] = mask[1, :2] = 1.0
    probability = np.zeros((3, 4, 4), np.float32)
    probability[0, :2], probability[1, 2:] = 1.0, 0.5

    def found(*samples: int) -> float:
        rows = list(samples)
        return float(losses.dice(jnp.asarray(probability[rows]), jnp.asarray(mask[rows])))

    # Right: 1 - 17 / 17; wrong: 1 - 1 / (8 / 4 + 8 + 1); nothing, of which nothing is found: 0.
    assert found(0) == found(2) == pytest.approx(0.0, abs=1e-6)
    assert found(1) == pytest.approx(1 - 1 / 11, abs=1e-6)
    # All together: their sums in one fraction.
    assert found(0, 1, 2) == pytest.approx(1 - 17 / 27, abs=1e-6)


def test_dices_best_constant_is_not_everything():
    # One mask of four is a quarter full: a sixteenth is true.
    mask = np.zeros((4, 8, 8), np.float32)
    mask[0, :4, :4] = 1.0
    slope = jax.grad(lambda p: losses.dice(jnp.full(mask.shape, p), jnp.asarray(mask)))
    assert float(slope(jnp.float32(0.2))) < 0 < float(slope(jnp.float32(0.35)))
    # An empty mask is learnt from, too.
    slopes = jax.grad(lambda p: losses.dice(p, jnp.asarray(mask)))(jnp.full(mask.shape, 0.25))
    assert (np.asarray(slopes)[1:] > 0).all()


def test_edges_are_sobels():
    image = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (1, 9, 11, 3)), jnp.float32)
    gray = torch.tensor(np.asarray(image)) @ torch.tensor([0.2989, 0.587, 0.114])
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gx, gy = (
        torch.nn.functional.conv2d(gray[:, None], k[None, None], padding=1)[:, 0]
        for k in (kernel, kernel.T)
    )
    np.testing.assert_allclose(losses.sobel(image), (gx**2 + gy**2 + 1e-6).sqrt(), atol=1e-5)
    edges = training.edge_picture(2 * image - 1)
    np.testing.assert_allclose((edges[..., 2] + 1) / 2, losses.sobel(image), atol=1e-5)


@pytest.fixture(scope="module")
def judge():
    made = filled(lambda rngs: Judge(tiny.MODEL.unet, rngs=rngs), 2)
    training.inject_judge(made, LoRAConfig(rank=2), np.random.default_rng(0))
    return made


def draws(count: int, seed: int = 0) -> dict[str, jax.Array]:
    return training.draw_gan((count, 16, 16, 4), jax.random.key(seed))


def test_losses_are_dmd2s(judge):
    latent, real = (jnp.asarray(normal(2, 16, 16, 4, seed=s)) for s in (1, 2))
    prompt = jnp.asarray(normal(2, 3, 8, seed=3))
    drawn = draws(2)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bar = np.cumprod(1 - betas)[np.asarray(drawn["gan_t"])][:, None, None, None]

    def logits(z: jax.Array, noise: str) -> np.ndarray:
        noisy = np.sqrt(bar) * z + np.sqrt(1 - bar) * drawn[noise]
        return np.asarray(call(judge, jnp.asarray(noisy, jnp.float32), drawn["gan_t"], prompt))

    def softplus(x: np.ndarray) -> float:
        return float(np.log1p(np.exp(x)).mean())

    found = nnx.jit(training.generator_gan)(judge, latent, prompt, drawn)
    assert float(found) == pytest.approx(softplus(-logits(latent, "gan_noise")), rel=1e-4)
    loss, scalars = nnx.jit(training.judge_loss)(judge, latent, real, prompt, drawn)
    expected = softplus(logits(latent, "gan_noise_fake")) + softplus(
        -logits(real, "gan_noise_real")
    )
    assert float(loss) == pytest.approx(expected, rel=1e-4) == float(scalars["critic_loss"])


def test_the_judge_learns_to_tell_two_kinds_of_latents_apart(judge):
    critic = training.LatentCritic(judge)
    base = lora.leaves_by_name(nnx.state(judge.unet))
    prompt = jnp.zeros((8, 3, 8))
    tx = make_optimizer(OptimConfig(learning_rate=3e-3, weight_decay=0.0), 60)

    def latents(key: jax.Array, centre: float) -> jax.Array:
        return centre + 0.3 * jax.random.normal(key, (8, 16, 16, 4))

    @jax.jit
    def step(params, opt, key):
        keys = jax.random.split(key, 3)
        pair = latents(keys[0], -0.5), latents(keys[1], 0.5)
        drawn = training.draw_gan(pair[0].shape, keys[2])
        # At little noise, where there is something to tell.
        drawn["gan_t"] = drawn["gan_t"] // 5

        def loss(params):
            return training.judge_loss(critic.with_weights(base, params), *pair, prompt, drawn)

        grads, scalars = jax.grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, scalars

    params, opt = critic.params, tx.init(critic.params)
    right = []
    for number in range(60):
        params, opt, scalars = step(params, opt, jax.random.key(number))
        right.append(float(scalars["critic_right"]))
    assert np.mean(right[-10:]) > 0.95
    moved = tiny.changed(critic.params, params)
    assert {name.split(".")[0] for name in moved} == {"unet", "head"}
    assert all("lora_" in name for name in moved if name.startswith("unet."))


def test_a_judge_of_other_weights_is_the_frozen_unets(judge):
    critic = training.LatentCritic(judge)
    other = filled(lambda rngs: Judge(tiny.MODEL.unet, rngs=rngs), 5)
    base = lora.leaves_by_name(nnx.state(other.unet))
    merged = critic.with_weights(base, critic.params)
    kernel = merged.unet.conv_in.base.kernel[...]
    np.testing.assert_array_equal(kernel, other.unet.conv_in.kernel[...])
    np.testing.assert_array_equal(merged.head.conv1.kernel[...], judge.head.conv1.kernel[...])


def test_only_what_it_looks_at_is_adapted(judge):
    adapted = {path[0] for path, m in nnx.iter_modules(judge.unet) if isinstance(m, lora.LoRA)}
    assert adapted == {"conv_in", "down_blocks", "mid_block"}
