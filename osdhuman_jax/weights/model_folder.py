"""A model on disk: a folder with three files.

    config.json            architecture, LoRA, digests of the two below, provenance
    base.safetensors       the frozen networks, named by nnx path ("vae.encoder.conv_in.kernel")
    generator.safetensors  what training the restorer changed: LoRA factors and HFIE; may be absent

Another kind of network says so by "kind" in config.json and has no generator (see cleaners.py).
A folder that lacks a tensor, has one too many or one of another shape, or whose bytes do not match
their digest, is refused with one error.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.config import (
    ConfigError,
    Json,
    LoRAConfig,
    ModelConfig,
    UseConfig,
    read_folder_table,
    to_dict,
    use_of,
)
from osdhuman_jax.disk import copy_file, file_digest, parse_json, write_json
from osdhuman_jax.methods import lora
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import HFIEPrompter
from osdhuman_jax.networks.performer import FixedParam, orthogonal_features
from osdhuman_jax.weights.abilities import model_of
from osdhuman_jax.weights.torch_files import (
    Tensor,
    WeightsError,
    complain,
    write_safetensors,
)

FORMAT = 1
# What a folder's network is, by "kind" in config.json; folders without it are restorers.
RESTORER, CLEANER = "restorer", "cleaner"
DIFFBODY = "diffbody"  # a restorer's folder with a ControlNet (see diffbody.py): nowhere on disk
KINDS = {
    RESTORER: ("a restorer of one diffusion step", {"model", "lora", "digests"}),
    CLEANER: ("a cleaner, which restores by itself (RRDBNet, SwinIR)", {"model", "digests"}),
}
# Names on disk, which no version may change.
BASE, GENERATOR, CONFIG = "base.safetensors", "generator.safetensors", "config.json"
# Modules by which a prompter learns; all else of it is frozen.
OWN_PROMPTS = ("hfie", "dual")  # kinds of prompts that a restorer makes itself
EMBEDDERS = {"hfie", "main_performer", "aux_performer"}
# What building a network raises where its sizes, read from a file, make no sense.
IMPOSSIBLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
# In which the frozen networks compute; the parameters that are trained stay float32.
DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}


@dataclass
class Model:
    """A loaded restorer (LoRA merged) and what it is."""

    restorer: OneStepRestorer
    config: ModelConfig
    digest: str  # sha256 of config.json, which holds the digests of the weights
    name: str
    use: UseConfig = field(default_factory=UseConfig)


M = TypeVar("M", bound=nnx.Module)


class _OneKey(nnx.Rngs):
    """Gives every layer the same key: counting keys while tracing shapes is quadratic in layers."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _build(
    config: ModelConfig, dtype: DTypeLike, adapters: LoRAConfig | None, rngs: nnx.Rngs
) -> OneStepRestorer:
    restorer = build_restorer(config, dtype=dtype, rngs=rngs)
    if adapters:
        add_lora(restorer, adapters, np.random.default_rng(0))
    return restorer


def random_restorer(config: ModelConfig, seed: int, *, precision: str = "fp32") -> OneStepRestorer:
    """A restorer with random weights that computes in `precision`.

    Kernels are normal with variance 1 / fan-in. NumPy draws them: to compile an initializer for
    each of hundreds of shapes takes longer than a short run.
    """
    # Parameters come in the order of their names, so that a seed means one model.
    rng = np.random.default_rng(seed)
    restorer, _ = abstract_restorer(config, precision=precision)
    draw_parameters(restorer, rng)
    if restorer.vae.residual:
        # It begins as the identity: nothing is added by either half, or taken away by the U-Net.
        for layer in (restorer.vae.encoder, restorer.vae.decoder, restorer.unet):
            begin_at_zero(layer.conv_out)
    if isinstance(restorer.prompter, HFIEPrompter):
        # Learnt queries have no fan-in: their size at the start is a setting of its own.
        query = restorer.prompter.hfie.query
        query.set_value(config.hfie.query_init_std * query.get_value())
    return restorer


def draw_parameters(network: nnx.Module, rng: np.random.Generator) -> None:
    """Random values of all parameters of an abstract network, in place; see `initial_values`."""
    for name, variable in parameters(network).items():
        variable.set_value(jnp.asarray(initial_values(name, variable.shape, rng), variable.dtype))


def begin_at_zero(layer: nnx.Conv) -> None:
    """Make a convolution's kernel zero, in place: only its bias, drawn as zero, is left."""
    layer.kernel.set_value(jnp.zeros_like(layer.kernel[...]))


def initial_values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random values of a parameter, float32: kernels normal with variance 1 / fan-in."""
    # By the parameter's name, whose last part says what it is.
    kind = name.rsplit(".", 1)[-1]
    if name == "vae.quant_conv.bias":  # log-variances start low: wide posteriors drown colour
        return np.repeat(np.array([0.0, -6.0], np.float32), shape[0] // 2)
    if kind in ("bias", "scale"):
        return np.full(shape, kind == "scale", np.float32)
    if kind in ("relative_position_bias_table", "pos_embed", "absolute_pos_embed"):
        # Swin's own (Liu et al. 2021).
        return 0.02 * rng.standard_normal(shape, np.float32)
    if kind == "projection_matrix":
        count, dim = shape
        return orthogonal_features(count, dim, rng)
    fan_in = 1 if kind == "query" else np.prod(shape[:-1])
    return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan_in))


def add_lora(restorer: OneStepRestorer, config: LoRAConfig, rng: np.random.Generator) -> None:
    """Inject the generator's adapters, in place."""
    # In this order, so that a seed means one set of adapters.
    inject = partial(lora.inject, rank=config.rank, alpha=config.alpha, rng=rng)
    if config.vae_encoder:
        inject(restorer.vae, lora.vae_encoder_targets(restorer.vae))
    if config.unet:
        inject(restorer.unet, lora.unet_targets(restorer.unet))


def is_generator(config: LoRAConfig, path: lora.Path, value: object) -> bool:
    """nnx filter (after `partial`) of what the restorer's training changes.

    That is LoRA, HFIE or HAODiff's embedders, and conv_in where it is asked for.
    """
    conv_in = config.train_conv_in and path[:2] == ("unet", "conv_in")
    prompts = not EMBEDDERS.isdisjoint(path) and not isinstance(value, FixedParam)
    return isinstance(value, lora.LoRAParam) or prompts or conv_in


def parameters(module: nnx.Module) -> dict[str, nnx.Param]:
    """Every parameter by its name on disk; filling these variables fills the module."""
    leaves = nnx.iter_graph(module)
    return {lora.leaf_name(path): v for path, v in leaves if isinstance(v, nnx.Param)}


_traced: dict[str, nnx.Module] = {}


def abstract(make: Callable[[nnx.Rngs], M], *told: object) -> M:
    """The module that `make` builds, with shapes in the place of arrays.

    Where its kind and all its sizes are `told`, what was built before is copied: tracing a large
    network takes seconds, and an import or a run asks for the same one again and again.
    """
    if not told:
        return nnx.eval_shape(lambda: make(_OneKey()))
    key = repr(told)
    if key not in _traced:
        _traced[key] = abstract(make)
    return nnx.clone(_traced[key])  # type: ignore[return-value]


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its name on disk."""
    return {name: tuple(value.shape) for name, value in parameters(module).items()}


def abstract_restorer(
    config: ModelConfig,
    adapters: LoRAConfig | None = None,
    precision: str = "fp32",
    where: Path | None = None,
) -> tuple[OneStepRestorer, set[str]]:
    """A restorer without its arrays, and the names of what training it changes.

    Raises WeightsError, with the file `where` the sizes are from, if they contradict each other.
    """
    try:
        # Nothing is computed: a layer of contradicting sizes fails while its shapes are traced.
        make = partial(_build, config, DTYPES[precision], adapters)
        restorer = abstract(lambda rngs: make(rngs=rngs), config, adapters, precision)
    except IMPOSSIBLE as error:
        named = f"{where}: " if where else ""
        raise WeightsError(f"{named}sizes that make no network: {error!s:.200}") from error
    return restorer, _generator_names(restorer, adapters)


def fill(
    restorer: nnx.Module, tensors: Mapping[str, np.ndarray], names: set[str], where: str
) -> None:
    """Put `tensors` into the parameters `names`, in place; dtypes stay the module's.

    Raises WeightsError, with the first names of each kind: missing, unknown, of another shape.
    """
    # All is compared before the first is changed.
    targets = {name: p for name, p in parameters(restorer).items() if name in names}
    compare(tensors, {name: p.shape for name, p in targets.items()}, where)
    for name, variable in targets.items():
        variable.set_value(jnp.asarray(tensors[name], variable.dtype))


def check_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, adapters: LoRAConfig | None, where: str
) -> None:
    """Raise WeightsError unless the tensors, unread, are those of such a restorer."""
    restorer, _ = abstract_restorer(config, adapters)
    compare(tensors, shapes(restorer), where)


def compare(
    found: Mapping[str, np.ndarray] | Mapping[str, Tensor],
    targets: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Raise WeightsError unless the tensors have the names and shapes `targets`."""
    # Every fault of a file in one error, since one alone says little of what the file is.
    both = set(found) & set(targets)
    faults = {
        "missing": sorted(set(targets) - set(found)),
        "unknown": sorted(set(found) - set(targets)),
        "of another shape": sorted(n for n in both if found[n].shape != targets[n]),
    }
    complain(faults, where)


def save_model(
    folder: Path | str,
    config: ModelConfig,
    restorer: OneStepRestorer,
    *,
    generator: LoRAConfig | None = None,
    provenance: Json | None = None,
    use: UseConfig | None = None,
) -> None:
    """Write a model folder; `generator` is the LoRA that `restorer` carries, unmerged."""
    # Frozen and trained tensors in files of their own: a run's exports share the first.
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = _generator_names(restorer, generator)
    tensors = {n: np.asarray(p.get_value()) for n, p in parameters(restorer).items()}
    files = {BASE: {n: v for n, v in tensors.items() if n not in trained}}
    if trained:
        files[GENERATOR] = {n: tensors[n] for n in sorted(trained)}
    # Tensors first: a folder without a description is no model yet.
    for name, part in files.items():
        write_safetensors(folder / name, {n: Tensor.of(array) for n, array in part.items()})
    # The description is written last, with the digests of what is there by then.
    meta = {
        "format": FORMAT,
        "prompt": "dual" if config.dual else "text" if config.text else "hfie",
        "model": to_dict(config),
        "lora": to_dict(generator) if generator else None,
        "digests": {name: file_digest(folder / name) for name in files},
        "use": to_dict(use or UseConfig()),
        "provenance": provenance or {},
    }
    write_json(folder / CONFIG, meta)


def copy_model(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Copy a model folder, but for files that are to be replaced: bytes, sizes, provenance."""
    meta = _described(source)
    for name in sorted(meta["digests"].keys() - set(without)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(source / name, target / name)
    write_json(target / CONFIG, meta)


def _generator_names(restorer: OneStepRestorer, generator: LoRAConfig | None) -> set[str]:
    if generator is None:
        return set()
    # The same filter decides what the optimizer sees.
    state = nnx.state(restorer, partial(is_generator, generator))
    return set(lora.leaves_by_name(state))


def kind_of(folder: Path) -> str:
    """Which of KINDS the model of a folder is, or DIFFBODY. Raises WeightsError on none."""
    meta = _described(folder)
    return DIFFBODY if "control" in meta.get("parts", {}) else meta.get("kind", RESTORER)


def read_meta(folder: Path, kind: str = RESTORER) -> Json:
    """config.json of a model folder of a kind. Raises WeightsError where it is not one."""
    meta = _described(folder)
    found = meta.get("kind", RESTORER)
    if found != kind:
        raise WeightsError(f"{folder}: {_what(meta)}; needed here is {KINDS[kind][0]}")
    if lacking := sorted(KINDS[kind][1] - set(meta)):
        raise WeightsError(f"{folder / CONFIG}: lacks {', '.join(lacking)}")
    return meta


def _what(meta: Json) -> str:
    """What a folder's network is, in words, with the parts that lie beside a restorer."""
    kind, parts = meta.get("kind", RESTORER), meta.get("parts", {})
    if kind != RESTORER or not parts:
        return KINDS[kind][0]
    what = "a DiffBody, which restores in many steps," if "control" in parts else "a restorer"
    return f"{what} with the part{'s' * (len(parts) > 1)} {', '.join(parts)}"


def _described(folder: Path) -> Json:
    """config.json of a model folder of any kind."""
    if not (folder / CONFIG).is_file():
        what = f"not a model folder (no {CONFIG})" if folder.is_dir() else "no model folder"
        raise WeightsError(f"{folder}: {what}; make one by osdhuman weights import")
    try:
        # Read by hand and by programs: a byte-order mark of an editor does no harm.
        meta = parse_json((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise WeightsError(f"{folder / CONFIG}: not JSON ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise WeightsError(f"{folder / CONFIG}: not a model description of format {FORMAT}")
    # Tables are read by many, who are not to doubt that they are tables.
    tables = [(name, meta.get(name, {})) for name in ("parts", "digests", "provenance")]
    parts = meta.get("parts", {})
    tables += parts.items() if isinstance(parts, dict) else []
    if odd := [name for name, table in tables if not isinstance(table, dict)]:
        raise WeightsError(f"{folder / CONFIG}: {odd[0]} is no table")
    kind = meta.get("kind", RESTORER)
    # A kind of a later version, for one.
    if not isinstance(kind, str) or kind not in KINDS:
        raise WeightsError(f"{folder / CONFIG}: kind {kind!r:.40} is none of {', '.join(KINDS)}")
    _check_names(folder, meta)
    return meta


def _check_names(folder: Path, meta: Json) -> None:
    """Raise WeightsError unless digests and parts are tables, and files lie in the folder."""
    for key in ("digests", "parts", "provenance"):
        if not isinstance(meta.get(key, {}), dict):
            raise WeightsError(f"{folder / CONFIG}: {key} is no table")
    # A folder is copied by these names, which a stranger may have written.
    for name in meta.get("digests", {}):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise WeightsError(f"{folder / CONFIG}: {name:.80} is no file of the folder")


def read_use(folder: Path, meta: Json) -> UseConfig:
    """How the model is best used; folders of earlier versions do not say."""
    try:
        return use_of(meta)
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error


def verify(folder: Path, meta: Json, *names: str) -> None:
    """Raises WeightsError where a file is not there or not what its digest says."""
    for name in names:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name}: missing")
        if file_digest(folder / name) != meta["digests"].get(name):
            raise WeightsError(f"{folder / name}: its bytes do not match the digest in {CONFIG}")


def read_configs(folder: Path, meta: Json) -> tuple[ModelConfig, LoRAConfig | None]:
    """Sizes of the model, and of its generator's adapters if it has one."""
    try:
        adapters = read_folder_table(LoRAConfig, meta["lora"], "lora") if meta["lora"] else None
        return model_of(meta), adapters
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as f:
            return {name: f.get_tensor(name) for name in f.keys()}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error


def load_base(
    folder: Path | str, *, precision: str = "fp32", generator: bool = False
) -> tuple[OneStepRestorer, ModelConfig, LoRAConfig | None]:
    """The restorer of a folder with LoRA unmerged, or (default) without its generator's part.

    A generator that is left out leaves HFIE as the base has it; a base without HFIE is refused.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    verify(folder, meta, *([BASE, GENERATOR] if meta["lora"] else [BASE]))
    # A network without arrays first, then its tensors into it: nothing is in memory twice.
    config, adapters = read_configs(folder, meta)
    # A run that began from adapted weights could give no adapters of a published base.
    if adapters and not generator:
        raise WeightsError(f"{folder}: holds a trained generator; a run starts from a base model")
    restorer, trained = abstract_restorer(config, adapters, precision, folder / CONFIG)
    fill(restorer, _tensors(folder / BASE), set(parameters(restorer)) - trained, str(folder / BASE))
    if trained:
        fill(restorer, _tensors(folder / GENERATOR), trained, str(folder / GENERATOR))
    return restorer, config, adapters


def load_model(folder: Path | str, *, precision: str = "fp32") -> Model:
    """The restorer of a folder, ready for inference: LoRA merged, computing in `precision`.

    A model whose prompts are not HFIE's (OSEDiff's are of tags) comes without a prompter. Raises
    WeightsError where the folder is not a whole, untouched model.
    """
    folder = Path(folder)
    restorer, config, _ = load_base(folder, precision=precision, generator=True)
    # Merged, adapters cost nothing at use.
    lora.merge(restorer)
    meta = read_meta(folder)
    # Tokens are brought from outside, and HFIE's weights would only take room.
    if meta.get("prompt", "hfie") not in OWN_PROMPTS:
        restorer.prompter = None
    digest, name = file_digest(folder / CONFIG), folder.resolve().name
    return Model(restorer, config, digest, name, read_use(folder, meta))
