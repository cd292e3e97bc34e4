"""LoRA against peft on diffusers' networks, and its contract: tree, neutrality, merge."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import (
    abstract,
    assign,
    call,
    close,
    convert,
    count,
    filled,
    nchw,
    normal,
    params,
    randomise,
)
from flax import nnx
from peft.tuners.lora import LoraLayer

from benchmarks import references
from osdhuman_jax.methods import lora
from osdhuman_jax.networks.configs import UNetConfig, VAEConfig
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL

UNET = {
    "in_channels": 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
    "num_attention_heads": (1, 2),
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
TINY = {**UNET, "block_out_channels": (8,), "num_attention_heads": (2,)}
TINY["down_block_types"] = ("DownBlock2D",)
VAE = {"latent_channels": 4, "block_out_channels": (16, 24), "layers_per_block": 1}
VAE |= {"norm_num_groups": 8, "scaling_factor": 0.18215, "mid_block_add_attention": True}
SIZE = {"rank": 4, "alpha": 8.0}


def draws() -> np.random.Generator:
    return np.random.default_rng(0)


def unet(rngs, dtype=jnp.float32, param_dtype=jnp.float32, **kw) -> UNet2DConditionModel:
    config = UNetConfig(**{**UNET, **kw})
    return UNet2DConditionModel(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def vae(rngs, **kw) -> AutoencoderKL:
    return AutoencoderKL(VAEConfig(**{**VAE, **kw}), rngs=rngs)


def adapted(make, targets, *, seed: int = 0):
    """A network with LoRA, every weight random, B included."""

    def build(rngs):
        net = make(rngs)
        lora.inject(net, targets(net), **SIZE, rng=draws())
        return net

    return filled(build, seed)


NETWORKS = {
    "unet": (references.unet, UNET, unet, lora.unet_targets),
    "vae": (references.vae, VAE, vae, lora.vae_encoder_targets),
}


@pytest.fixture(scope="module", params=["unet", "vae"])
def pair(request):
    """(kind, diffusers' network with peft's adapters, ours with the same weights)."""
    reference, plan, make, targets = NETWORKS[request.param]
    theirs = reference(plan)
    names = references.adapted_names(theirs)
    torch.manual_seed(0)
    theirs = references.adapt(theirs, rank=4, alpha=8)
    adapters = [n for n, m in theirs.named_modules() if isinstance(m, LoraLayer)]
    assert sorted(adapters) == sorted(names)
    spread = [
        m.lora_A["default"].weight.data.std() for m in theirs.modules() if isinstance(m, LoraLayer)
    ]
    assert abs(float(torch.stack(spread).mean()) - 0.25) < 0.02
    randomise(theirs)
    mine = adapted(make, targets)
    assign(mine, dict(references.from_peft(*item) for item in theirs.state_dict().items()))
    return request.param, theirs, mine


def outputs(kind: str, theirs, mine):
    """One forward pass through everything that carries LoRA."""
    if kind == "vae":
        x = normal(2, 14, 11, 3).clip(-1, 1)
        return theirs.encode(nchw(x)).latent_dist.mean, call(mine, x, method="encode")[0]
    z, context, t = normal(2, 6, 5, 4), normal(2, 3, 24, seed=1), np.asarray([999, 7], np.int32)
    want = theirs(nchw(z), torch.from_numpy(t), torch.from_numpy(context)).sample
    return want, call(mine, z, t, context)


def test_targets_are_osediffs(pair):
    kind, theirs, mine = pair
    ours = {".".join(map(str, path[:-1])) for path in params(mine, lora.LoRAParam)}
    assert ours == {n for n, m in theirs.named_modules() if isinstance(m, LoraLayer)}


def test_adapter_and_merged_weights_match_peft(pair):
    kind, theirs, mine = pair
    want, got = outputs(kind, theirs, mine)
    close(got, want, 1e-4)

    merged = nnx.clone(mine)
    lora.merge(merged)
    assert not params(merged, lora.LoRAParam)
    close(outputs(kind, theirs, merged)[1], want, 1e-4)
    kernels = params(merged)
    for name, module in theirs.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight("default") + module.get_base_layer().weight
            path, array = convert(f"{name}.weight", delta)
            np.testing.assert_allclose(kernels[path][...], array, atol=1e-5)


def test_initial_factors():
    """A ~ N(0, 1 / rank), B = 0, both float32 whatever the base's dtype."""
    base = nnx.Linear(64, 8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer = lora.LoRA(base, 8, 8.0, rng=np.random.default_rng(1))
    assert abs(float(layer.lora_A[...].std()) * 8 - 1) < 0.1
    assert not layer.lora_B[...].any()
    assert layer.lora_A.dtype == layer.lora_B.dtype == jnp.float32


def test_injected_then_trained_then_disabled_network():
    """B = 0: the base, bit for bit, merged too. Random B: another result."""
    x = jnp.asarray(normal(1, 6, 5, 3))

    def mean(net):
        return np.asarray(call(net, x, method="encode")[0])

    def uncompiled(net):  # the compiler sums in another order once there is more to fuse
        return np.asarray(net.encode(x)[0])

    net = filled(lambda rngs: vae(rngs, block_out_channels=(8, 8), mid_block_add_attention=False))
    base, plain = mean(net), uncompiled(net)
    lora.inject(net, lora.vae_encoder_targets(net), **SIZE, rng=draws())
    np.testing.assert_array_equal(uncompiled(net), plain)
    for i, (path, value) in enumerate(params(net, lora.LoRAParam).items()):
        if path[-1] == "lora_B":
            value[...] = jnp.asarray(normal(*value.shape, seed=i))
    trained = mean(net)
    assert np.abs(trained - base).max() > 0.1
    for path, value in params(net, lora.LoRAParam).items():
        if path[-1] == "lora_B":
            value[...] = jnp.zeros(value.shape)
    lora.merge(net)
    np.testing.assert_array_equal(mean(net), base)


def test_merge_keeps_the_kernels_dtype():
    base = nnx.Linear(4, 4, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    net = nnx.List([lora.LoRA(base, **SIZE, rng=np.random.default_rng(1))])
    lora.merge(net)
    assert net[0].kernel.dtype == jnp.bfloat16


@pytest.mark.parametrize("search_again", [True, False])
def test_injecting_twice_raises(search_again):
    net = abstract(vae)
    targets = lora.vae_encoder_targets(net)
    with pytest.raises(ValueError, match="encoder.conv_in.*has LoRA already"):
        for _ in range(2):
            lora.inject(net, targets, **SIZE, rng=draws())
            targets = lora.vae_encoder_targets(net) if search_again else targets


RESNET = {"conv1": ((3, 3, 8, 4), (4, 8)), "conv2": ((3, 3, 8, 4), (4, 8))}
UP_RESNET = {**RESNET, "conv1": ((3, 3, 16, 4), (4, 8)), "conv_shortcut": ((1, 1, 16, 4), (4, 8))}
SQUARE = ((8, 4), (4, 8))
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
UNET_TREE = {
    "conv_in": ((3, 3, 4, 4), (4, 8)),
    **{f"down_blocks.0.resnets.0.{k}": v for k, v in RESNET.items()},
    **{f"mid_block.resnets.0.{k}": v for k, v in RESNET.items()},
    "mid_block.attentions.0.proj_in": SQUARE,
    **{f"{BLOCK}.attn1.{k}": SQUARE for k in ("to_q", "to_k", "to_v", "to_out.0")},
    **{f"{BLOCK}.attn2.{k}": SQUARE for k in ("to_q", "to_out.0")},
    **{f"{BLOCK}.attn2.{k}": ((24, 4), (4, 8)) for k in ("to_k", "to_v")},
    f"{BLOCK}.ff.net.0.proj": ((8, 4), (4, 64)),
    f"{BLOCK}.ff.net.2": ((32, 4), (4, 8)),
    "mid_block.attentions.0.proj_out": SQUARE,
    **{f"mid_block.resnets.1.{k}": v for k, v in RESNET.items()},
    **{f"up_blocks.0.resnets.0.{k}": v for k, v in UP_RESNET.items()},
    **{f"up_blocks.0.resnets.1.{k}": v for k, v in UP_RESNET.items()},
    "conv_out": ((3, 3, 8, 4), (4, 4)),
}


def test_whole_tree():
    net = abstract(lambda rngs: unet(rngs, **TINY))
    lora.inject(net, lora.unet_targets(net), **SIZE, rng=draws())
    found = {".".join(map(str, p)): v.shape for p, v in params(net, lora.LoRAParam).items()}
    want = {}
    for path, (a, b) in UNET_TREE.items():
        want |= {f"{path}.lora_A": a, f"{path}.lora_B": b}
    assert found == want


def test_adapters_of_stable_diffusion(sd21):
    """258 layers and 4,055,712 parameters in the U-Net, 32 and 369,356 in the VAE's encoder."""
    layers, sizes = {}, {}
    for path, value in params(sd21.unet, lora.LoRAParam).items():
        part = {"conv_in": "down_blocks", "conv_out": "up_blocks"}.get(path[0], path[0])
        layers[part] = layers.get(part, 0) + (path[-1] == "lora_A")
        sizes[part] = sizes.get(part, 0) + int(np.prod(value.shape))
    assert layers == {"down_blocks": 94, "up_blocks": 148, "mid_block": 16}
    assert sizes == {"down_blocks": 1_253_776, "up_blocks": 2_425_104, "mid_block": 376_832}
    assert sum(sizes.values()) == 4_055_712
    assert len(params(sd21.vae, lora.LoRAParam)) == 2 * 32
    assert count(sd21.vae, lora.LoRAParam) == 369_356
