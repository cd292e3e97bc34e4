"""Compare every network with an independent PyTorch implementation on the same random weights.

    python -m benchmarks.fidelity                              # small networks, a minute or two
    python -m benchmarks.fidelity --size full                  # the paper's sizes
    python -m benchmarks.fidelity --size full --only unet lpips
    python -m benchmarks.fidelity --only cleaner --blazepose mediapipe-0.10.21-cp311-..whl

A line a component: the largest error, the error's L2 norm over the reference's, and the budget. A
broken budget is the exit status 1. At full size every component has a process of its own, whose
memory comes back; after its lines stands the most that it had.

The bf16 lines compare this project with itself: what the policy (networks compute in bfloat16,
Eq. 2 in float32) costs. Of the one step the budget is a relative error of 6 %, which in pictures of
a photograph's contrast is 36 dB: a hundred random layers round to 8 bits each, and none contracts
the error. In Eq. 2 of a random network nothing cancels; a trained U-Net's eps is close to the
latent, so there the same error of eps weighs more in z0.

The module is long because each network has a function of its own in it, and nothing else.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks import haodiff_torch, references, swinir_torch
from benchmarks.convert import abstract, assign, call, from_torch, nchw, normal, randomise
from benchmarks.guided_step import GuidedStep
from benchmarks.published import ALPHA, RANK, adapt_all, hfie_plan, publish, reference_restorer
from configs.models import tiny_dual, tiny_swinir
from osdhuman_jax.config import ModelConfig
from osdhuman_jax.inference.poses import checked_files
from osdhuman_jax.methods import lora, losses
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.dual_prompts import DualPrompter
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import HFIE
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.blazepose import run
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.configs import (
    CLIPConfig,
    ControlNetConfig,
    DualPromptConfig,
    HFIEConfig,
    LPIPSConfig,
    SwinConfig,
    SwinIRConfig,
    TaggerConfig,
    UNetConfig,
    VAEConfig,
)
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.performer import orthogonal_features
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.swinir_restorer import SwinIR
from osdhuman_jax.networks.tagger import Tagger
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL
from osdhuman_jax.weights import load_model, random_restorer
from osdhuman_jax.weights.haodiff import IGNORE, TABLE
from osdhuman_jax.weights.importer import import_model
from osdhuman_jax.weights.model_folder import fill, shapes
from osdhuman_jax.weights.name_tables import convert
from osdhuman_jax.weights.tflite import read_tflite
from osdhuman_jax.weights.torch_files import Tensor


@dataclass(frozen=True)
class Size:
    """How large everything is, and the largest error that a network's float32 output may have."""

    model: ModelConfig
    clip: CLIPConfig
    tagger: TaggerConfig
    dual: DualPromptConfig
    cleaner: SwinIRConfig
    narrow: int  # VGG16's widths are divided by this
    side: int  # of the pictures, in pixels
    budget: float


TINY = Size(
    model=ModelConfig(
        vae=replace(VAEConfig.sd21(), block_out_channels=(16, 24, 32, 32), norm_num_groups=8),
        unet=replace(
            UNetConfig.sd21(),
            block_out_channels=(32, 64, 128, 128),
            num_attention_heads=(1, 2, 4, 4),
            cross_attention_dim=32,
            norm_num_groups=8,
        ),
        swin=SwinConfig(64, 4, 16, (2, 2, 2), (1, 2, 4), 4, 4.0, image_proj_dim=24),
        hfie=HFIEConfig(num_queries=5, num_heads=4),
    ),
    clip=CLIPConfig(60, 9, 32, 3, 4, 48),
    tagger=TaggerConfig(11, 20, 24, 2, 3, 40),
    dual=tiny_dual(),
    cleaner=tiny_swinir(),
    narrow=16,
    side=64,
    budget=1e-4,
)
# Longer sums round more.
FULL = Size(
    model=ModelConfig(),
    clip=CLIPConfig.sd21(),
    tagger=TaggerConfig.ram(),
    dual=DualPromptConfig.haodiff(),
    cleaner=SwinIRConfig.diffbir(),
    narrow=1,
    side=512,
    budget=5e-4,
)
SIZES = {"tiny": TINY, "full": FULL}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    component: str
    largest: float
    relative: float
    budget: str
    kept: bool


def errors(got: Any, want: Any) -> tuple[float, float]:
    """(largest absolute error, L2 norm of the error over that of `want`); NCHW if from PyTorch."""
    reference = np.asarray(want, np.float64)
    if isinstance(want, torch.Tensor) and reference.ndim == 4:
        reference = reference.transpose(0, 2, 3, 1)
    error = np.asarray(got, np.float64) - reference
    return float(np.abs(error).max()), float(np.linalg.norm(error) / np.linalg.norm(reference))


def compare(component: str, got: Any, want: Any, budget: float) -> Row:
    """A row whose largest error must not exceed `budget` (nan does)."""
    largest, relative = errors(got, want)
    return Row(component, largest, relative, f"largest <= {budget:.1e}", largest <= budget)


def picture(size: Size, seed: int = 0) -> np.ndarray:
    """Smooth colours and some noise, (1, side, side, 3) in [-1, 1]."""
    y, x = np.mgrid[: size.side, : size.side] / size.side
    phases = np.arange(3) + seed
    waves = np.sin(5 * x[..., None] + phases) * np.cos(4 * y[..., None] - phases)
    return (0.7 * waves + 0.1 * normal(1, size.side, size.side, 3, seed=seed)).astype("f4")


def denoiser_inputs(size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latent, timestep, prompt."""
    side = size.side // 2 ** (len(size.model.vae.block_out_channels) - 1)
    z = normal(1, side, side, size.model.unet.in_channels)
    width = size.model.unet.cross_attention_dim
    prompt = normal(1, size.model.hfie.num_queries, width, seed=1)
    return z, np.asarray([size.model.timestep], np.int32), prompt


def run_unet(theirs: Any, z: np.ndarray, t: np.ndarray, prompt: np.ndarray) -> torch.Tensor:
    """eps of diffusers' U-Net."""
    return theirs(nchw(z), torch.from_numpy(t), torch.from_numpy(prompt)).sample


def unet(size: Size) -> Iterator[Row]:
    config, inputs = size.model.unet, denoiser_inputs(size)
    theirs = randomise(references.unet(asdict(config)))
    mine = from_torch(lambda rngs: UNet2DConditionModel(config, rngs=rngs), theirs)
    want = run_unet(theirs, *inputs)
    yield compare("U-Net", call(mine, *inputs), want, size.budget)


def control(size: Size) -> Iterator[Row]:
    """DiffBody's ControlNet, and the U-Net with what it adds."""
    config = ControlNetConfig(size.model.unet, pose=True, attention=True)
    plan, (z, t, prompt) = asdict(config.unet), denoiser_inputs(size)
    hint = normal(*z.shape[:3], config.hint_channels, seed=2)
    theirs = randomise(references.controlnet(plan, config.in_channels), 1)
    state = references.controlnet_state(theirs)
    mine = from_torch(lambda rngs: ControlNet(config, rngs=rngs), state)
    got, made = call(mine, z, t, prompt, hint), references.control(theirs, z, t, prompt, hint)
    pairs = zip(got, [*made[0], made[1]], strict=True)
    rows = [compare("ControlNet, largest of its outputs", *pair, size.budget) for pair in pairs]
    yield max(rows, key=lambda row: row.largest)
    # The two networks that are done with make room for the next two.
    del theirs, state, mine
    theirs = randomise(references.unet(plan))
    unet = from_torch(lambda rngs: UNet2DConditionModel(config.unet, rngs=rngs), theirs)
    want = references.controlled(theirs, made, z, t, prompt)
    yield compare("U-Net with ControlNet", call(unet, z, t, prompt, got), want, size.budget)


def guided(size: Size) -> Iterator[Row]:
    """A whole step of DiffBody's sampler, from one latent to the next; and what bfloat16 costs.

    The latent itself and the step's noise, which are most of the next latent, are never rounded.
    So the budget is 1e-4 at full size too: with Stable Diffusion's networks and pictures of 128
    pixels the largest error was 2e-6, and what bfloat16 cost 4e-3 of the latent.
    """
    step = GuidedStep(size.model, size.side)
    exact = step.ours()
    yield compare("DiffBody, a guided step", exact, step.theirs(), 1e-4)
    largest, relative = errors(step.ours(jnp.bfloat16), exact)
    yield Row("bf16 policy, a guided step", largest, relative, "relative <= 0.01", relative <= 0.01)


def vae(size: Size) -> Iterator[Row]:
    config, image = size.model.vae, picture(size)
    theirs: Any = randomise(references.vae(asdict(config)))
    mine = from_torch(lambda rngs: AutoencoderKL(config, rngs=rngs), theirs)
    want = theirs.encode(nchw(image)).latent_dist.mean
    yield compare("VAE encode", call(mine, image, method="encode")[0], want, size.budget)
    z = denoiser_inputs(size)[0]
    want = theirs.decode(nchw(z)).sample
    yield compare("VAE decode", call(mine, z, method="decode"), want, size.budget)


def swin(size: Size) -> Iterator[Row]:
    config, image = size.model.swin, picture(size)
    theirs: Any = randomise(references.RAM(asdict(config)))
    mine = from_torch(lambda rngs: RAMEncoder(config, rngs=rngs), theirs.state())
    got, want = call(mine, image), theirs(nchw(image))
    yield compare("Swin, pooled token", got[:, :1], want[:, :1], size.budget)
    yield compare("Swin, all tokens", got, want, size.budget)


def dual_prompts(size: Size) -> Iterator[Row]:
    """HAODiff's prompts of a picture, at the size that its classes have by default."""
    config, width = size.dual, size.model.unet.cross_attention_dim
    sizes = asdict(config) | {"img_size": config.image_size}
    theirs = randomise(haodiff_torch.Generator(sizes, {**sizes, "embed_dim": width}))
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("embedding_changer")}
    mine = abstract(lambda rngs: DualPrompter(config, width=width, rngs=rngs))
    targets = {f"prompter.{name}": shape for name, shape in shapes(mine).items()}
    rng = np.random.default_rng(0)
    for name, value in state.items():
        if name.endswith("projection_matrix") and "updater" not in name:
            value.copy_(torch.from_numpy(orthogonal_features(*value.shape, rng)))
    tensors = {name: Tensor.of(value.numpy()) for name, value in state.items()}
    found = convert(tensors, TABLE, targets, "reference", ignore=IGNORE)
    values = {name.removeprefix("prompter."): tensor.read() for name, tensor in found.items()}
    fill(mine, values, set(values), "reference")
    image = np.clip(0.5 * normal(1, config.image_size, config.image_size, 3), -1, 1)
    got, want = np.asarray(call(mine, image)), theirs(nchw(image))
    half = got.shape[1] // 2
    yield compare("dual prompts, negative", got[:, :half], want[0], size.budget)
    yield compare("dual prompts, positive", got[:, half:], want[1], size.budget)


def cleaner(size: Size) -> Iterator[Row]:
    """SwinIR as DiffBIR has it, of a small picture whose sides are no whole windows."""
    theirs = randomise(swinir_torch.SwinIR(asdict(size.cleaner)))
    weights = dict(theirs.named_parameters())  # without buffers, which ours computes
    mine = from_torch(lambda rngs: SwinIR(size.cleaner, rngs=rngs), weights)
    image = picture(size)[:, :120, :176]
    want = 2 * theirs(nchw((image + 1) / 2)) - 1
    yield compare("cleaner (SwinIR)", call(mine, image, method="unclamped"), want, size.budget)


def tagger(size: Size) -> Iterator[Row]:
    width = size.model.swin.image_proj_dim
    theirs = randomise(references.Tagger({**asdict(size.tagger), "context_dim": width}))
    mine = from_torch(lambda rngs: Tagger(size.tagger, width, rngs=rngs), theirs)
    embeddings = 3 * normal(1, 145, width)
    want = theirs(torch.from_numpy(embeddings))
    yield compare("tagging head", call(mine, embeddings), want, size.budget)


def clip(size: Size) -> Iterator[Row]:
    config = size.clip
    theirs = randomise(references.clip(asdict(config)))
    state = references.clip_state(theirs)
    mine = from_torch(lambda rngs: CLIPTextModel(config, rngs=rngs), state)
    rng, shape = np.random.default_rng(0), (2, config.max_position_embeddings)
    ids = rng.integers(0, config.vocab_size, shape).astype(np.int32)
    want = theirs(torch.from_numpy(ids).long()).last_hidden_state
    yield compare("CLIP text", call(mine, ids), want, size.budget)


def hfie(size: Size) -> Iterator[Row]:
    plan = hfie_plan(size.model)
    theirs: Any = randomise(references.HFIE(**plan))
    make = partial(HFIE, size.model.hfie, dim=plan["dim"], kv_dim=plan["kv_dim"])
    mine = from_torch(lambda rngs: make(rngs=rngs), theirs.state())
    embeddings = normal(1, 145, plan["kv_dim"])
    want = theirs(torch.from_numpy(embeddings))
    yield compare("HFIE", call(mine, embeddings), want, size.budget)


def with_lora(make: Callable[..., Any], find: Callable[..., Any], theirs: torch.nn.Module) -> Any:
    """Our network with the weights of peft's."""

    def build(rngs: nnx.Rngs) -> Any:
        net = make(rngs)
        rng = np.random.default_rng(0)
        lora.inject(net, find(net), rank=RANK, alpha=float(ALPHA), rng=rng)
        return net

    mine = abstract(build)
    assign(mine, dict(references.from_peft(*item) for item in theirs.state_dict().items()))
    return mine


def unet_lora(size: Size) -> Iterator[Row]:
    config, inputs = size.model.unet, denoiser_inputs(size)
    theirs = randomise(references.adapt(references.unet(asdict(config)), RANK, ALPHA))
    make = lambda rngs: UNet2DConditionModel(config, rngs=rngs)  # noqa: E731
    mine, want = with_lora(make, lora.unet_targets, theirs), run_unet(theirs, *inputs)
    yield compare("U-Net, LoRA beside", call(mine, *inputs), want, size.budget)
    lora.merge(mine)
    yield compare("U-Net, LoRA merged", call(mine, *inputs), want, size.budget)


def vae_lora(size: Size) -> Iterator[Row]:
    config, image = size.model.vae, picture(size)
    theirs: Any = randomise(references.adapt(references.vae(asdict(config)), RANK, ALPHA))
    make = lambda rngs: AutoencoderKL(config, rngs=rngs)  # noqa: E731
    mine = with_lora(make, lora.vae_encoder_targets, theirs)
    want = theirs.encode(nchw(image)).latent_dist.mean
    got = call(mine, image, method="encode")[0]
    yield compare("VAE encoder, LoRA beside", got, want, size.budget)
    lora.merge(mine)
    got = call(mine, image, method="encode")[0]
    yield compare("VAE encoder, LoRA merged", got, want, size.budget)


def lpips(size: Size) -> Iterator[Row]:
    theirs = randomise(references.LPIPS(size.narrow))
    for weight in theirs.lin.parameters():
        weight.data = weight.data.abs()
    config = LPIPSConfig.vgg16(size.narrow)
    mine = from_torch(lambda rngs: LPIPS(config, rngs=rngs), theirs)
    a, b = picture(size), picture(size, seed=1)
    yield compare("LPIPS-VGG", call(mine, a, b), theirs(nchw(a), nchw(b)), 1e-5)


def equation_2(size: Size) -> Iterator[Row]:
    """The latent is some 15 large: float32 resolves it to 1e-6."""
    z, t, _ = denoiser_inputs(size)
    eps = normal(*z.shape, seed=2)
    want = references.one_step(nchw(eps), nchw(z), size.model.timestep)
    got = Schedule().eps_to_x0(*map(jnp.asarray, (z, eps, t)))
    yield compare("Eq. 2", got, want, 5e-5)


def vsd(size: Size) -> Iterator[Row]:
    """Eq. 6 where OSEDiff computes it, among estimates of x0, by PyTorch in float64; at the ends of
    the range of t, where signal and noise are most unlike.
    """
    z, _, _ = denoiser_inputs(size)
    latent, noise, frozen, finetuned = (normal(2, *z.shape[1:], seed=i) for i in range(4))
    t = torch.tensor([20, 979])
    four = (nchw(x).double() for x in (latent, noise, frozen, finetuned))
    want, slope = references.vsd(*four, t)
    got = losses.vsd_gradient(*map(jnp.asarray, (noise, frozen, finetuned)))
    yield compare("VSD gradient, Eq. 6", got, want, 1e-5)
    slope_of_ours = jax.grad(losses.vsd)(jnp.asarray(latent), got)
    per_element = latent.size / 2  # PyTorch's mean and the square's two, taken out again
    yield compare("VSD loss, its slope", per_element * slope_of_ours, per_element * slope, 1e-5)


def restoration(size: Size) -> Iterator[Row]:
    """A picture through PyTorch with adapters, and through an imported model folder."""
    theirs, image = reference_restorer(size.model), picture(size)
    with tempfile.TemporaryDirectory() as folder:
        sd, ram = publish(theirs, Path(folder))
        generator = adapt_all(theirs, size.model)
        want = theirs(image).permute(0, 2, 3, 1).numpy()
        del theirs
        import_model(sd, ram, Path(folder) / "model", generator=generator)
        restorer = load_model(Path(folder) / "model").restorer
    got = call(restorer, image)
    clamped = f"{100 * np.mean(np.abs(want) == 1):.0f} % clamped"
    yield compare(f"restoration, [0, 1] ({clamped})", got / 2, want / 2, 1 / 255)


def in_bfloat16(model: ModelConfig, restorer: OneStepRestorer) -> OneStepRestorer:
    """The same weights, networks computing in bfloat16."""
    half = abstract(lambda rngs: build_restorer(model, dtype=jnp.bfloat16, rngs=rngs))
    return nnx.merge(nnx.split(half)[0], nnx.split(restorer)[1])


def give_contrast(restorer: OneStepRestorer, image: np.ndarray) -> None:
    """Scale the last layer so that what it makes of `image` has a photograph's contrast."""
    latent = call(restorer, image, method="encode") / restorer.vae.scaling_factor
    std = jnp.std(call(restorer.vae, latent, method="decode"))
    restorer.vae.decoder.conv_out.kernel[...] *= 0.5 / std


def bfloat16(size: Size) -> Iterator[Row]:
    exact, image = random_restorer(size.model, 0), picture(size)
    give_contrast(exact, image)
    latents, pixels = [], []
    for model in (exact, in_bfloat16(size.model, exact)):
        prompt = call(model.prompter, image)
        latents.append(call(model, call(model, image, method="encode"), prompt, method="denoise"))
        pixels.append(np.asarray(call(model, latents[-1], method="decode")) / 2)
    largest, relative = errors(latents[1], latents[0])
    yield Row("bf16 policy, latent z0", largest, relative, "relative <= 0.06", relative <= 0.06)
    largest, relative = errors(pixels[1], pixels[0])
    psnr = float(-10 * np.log10(np.mean(np.square(pixels[1] - pixels[0]))))
    budget = f"PSNR >= 36 dB ({psnr:.1f})"
    yield Row("bf16 policy, pixels in [0, 1]", largest, relative, budget, psnr >= 36)


def blazepose(source: Path) -> Iterator[Row]:
    """BlazePose's networks of a wheel on noise, beside TensorFlow Lite's own interpreter.

    Its masks are logits in the hundreds: their budget is relative.
    """
    # Not of this package's dependencies: pip install ai-edge-litert
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]

    for name, data in checked_files(source).items():
        graph, weights = read_tflite(data, name)
        image = np.random.default_rng(0).random(graph.shapes[graph.input], np.float32)
        theirs = Interpreter(model_content=data)
        theirs.allocate_tensors()
        theirs.set_tensor(theirs.get_input_details()[0]["index"], image)
        theirs.invoke()
        wanted = [theirs.get_tensor(entry["index"]) for entry in theirs.get_output_details()]
        made = jax.jit(partial(run, graph))(weights, image)
        pairs = [errors(*pair) for pair in zip(made, wanted, strict=True)]
        largest, relative = (max(column) for column in zip(*pairs, strict=True))
        component = f"BlazePose, {name.removesuffix('.tflite').removeprefix('pose_')}"
        yield Row(component, largest, relative, "relative <= 1e-03", relative <= 1e-3)


ROWS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "unet": unet,
    "control": control,
    "guided": guided,
    "vae": vae,
    "swin": swin,
    "tagger": tagger,
    "clip": clip,
    "hfie": hfie,
    "dual": dual_prompts,
    "cleaner": cleaner,
    "unet_lora": unet_lora,
    "vae_lora": vae_lora,
    "lpips": lpips,
    "eq2": equation_2,
    "vsd": vsd,
    "restoration": restoration,
    "bf16": bfloat16,
}


def measure(name: str, size: str) -> list[Row]:
    """The rows of one component, with products as exact as the platform has them."""
    jax.config.update("jax_default_matmul_precision", "highest")
    # compiling a small network takes longer than running it; the full ones run as they would
    jax.config.update("jax_disable_most_optimizations", size == "tiny")
    with torch.no_grad():
        return list(ROWS[name](SIZES[size]))


def measure_weighed(name: str, size: str) -> tuple[list[Row], float]:
    """The same, and the most memory that this process ever had, in GiB."""
    rows = measure(name, size)
    return rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def measure_apart(name: str, size: str) -> tuple[list[Row], float]:
    """The same in a process of its own, whose memory comes back."""
    context, nan = multiprocessing.get_context("spawn"), float("nan")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure_weighed, name, size).result()
        except BrokenProcessPool:
            return [Row(name, nan, nan, "its process was killed (memory?)", False)], nan


def line(row: Row) -> str:
    """A line of the table."""
    verdict = "kept" if row.kept else "BROKEN"
    return f"{row.component:38}{row.largest:12.2e}{row.relative:12.2e}  {row.budget:28}{verdict}"


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 where a budget is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--blazepose", type=Path, help="wheel of mediapipe 0.10: two rows more")
    flags = parser.parse_args(argv)
    print(f"{'component':38}{'largest':>12}{'relative':>12}  {'budget':28}", flush=True)
    kept = True
    for name in flags.only:
        full = flags.size == "full"
        rows, peak = measure_apart(name, "full") if full else (measure(name, "tiny"), 0.0)
        for row in rows:
            print(line(row), flush=True)
            kept &= row.kept
        if full:
            print(f"  {name}: at most {peak:.1f} GiB of memory", flush=True)
    for row in blazepose(flags.blazepose) if flags.blazepose else ():
        print(line(row), flush=True)
        kept &= row.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
