"""OSDHuman's own checkpoint, a folder of files, -> the generator of a model folder.

Its authors have not said how it is laid out. Read is what their other projects (OSDFace, HAODiff)
and OSEDiff, on which they build, make likely. Names and shapes tell what a tensor is for, whatever
its file is called:

    LoRA of the U-Net and of the VAE's encoder   names of peft or diffusers, in one file or two, or
                                                 the two tables of OSEDiff, perhaps with conv_in
    HFIE                                         queries, and a multi-head attention with the names
                                                 of OSDFace or of PyTorch

What no file says has a default that the provenance names: HFIE's heads and the LoRA's alpha. What
no layer here takes, such as a norm behind the attention, is refused by name.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import safetensors

from osdhuman_jax.config import Json, LoRAConfig, ModelConfig
from osdhuman_jax.disk import parse_json
from osdhuman_jax.networks.configs import HFIEConfig
from osdhuman_jax.weights.diffusion import read_json
from osdhuman_jax.weights.generators import OSEDIFF_ALPHA, Fit, Generator
from osdhuman_jax.weights.importer import check_local
from osdhuman_jax.weights.lora_files import Pair, halves, lora_pairs, merged
from osdhuman_jax.weights.model_folder import abstract_restorer, shapes
from osdhuman_jax.weights.name_tables import Table, convert, kernel, linear, same, third
from osdhuman_jax.weights.torch_files import Tensor, Untrusted, WeightsError, complain, load

SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".ckpt", ".bin")
TIMESTEP = 999  # paper: T_L
NO_LICENCE = "OSDHuman's weights: no licence was published with them"
ASK = "if these are OSDHuman's files, open an issue with the names and shapes of all their tensors"
# Tables in which trainers wrap a network, and what the names in them then begin with.
WRAPPERS = {"state_dict_unet": "unet.", "state_dict_vae": "vae."}
WRAPPERS |= dict.fromkeys(("state_dict", "model_state_dict", "model", "module"), "")
DEEPEST, MOST = 5, 100_000  # tables within tables and entries of one file; far above any model's
HEADS = ("num_heads", "num_heads_pool")  # settings by which a file may give HFIE's heads
# diffusers' note in the head of its safetensors, as JSON.
NOTE = "lora_adapter_metadata"

_HFIE = "prompter.hfie"
_OSDFACE = {"query": "q", "key": "k", "value": "v", "out": "out"}
HFIE: Table = {
    r"(?:.+\.)?(?:latent_)?quer(?:y|ies)(?:_tokens)?": [
        (f"{_HFIE}.query", lambda x: x[0] if x.ndim == 3 else x)
    ],
    **{
        rf"(?:.+\.)?in_proj_{end}": [
            (f"{_HFIE}.{part}_proj.{ours}", third(i)) for i, part in enumerate("qkv")
        ]
        for end, ours in (("weight", "kernel"), ("bias", "bias"))
    },
    # PyTorch keeps the three apart where keys are of another width than queries.
    r"(?:.+\.)?([qkv])_proj_weight": [(rf"{_HFIE}.\1_proj.kernel", linear)],
    r"(?:.+\.)?((?:[qkv]|out)_proj)\.weight": [(rf"{_HFIE}.\1.kernel", linear)],
    r"(?:.+\.)?((?:[qkv]|out)_proj)\.bias": [(rf"{_HFIE}.\1.bias", same)],
    **{
        rf"(?:.+\.)?{theirs}_fc\.{end}": [(f"{_HFIE}.{ours}_proj.{kind}", transform)]
        for theirs, ours in _OSDFACE.items()
        for end, kind, transform in (("weight", "kernel", linear), ("bias", "bias", same))
    },
}
_QUERY = next(iter(HFIE))
_CONV_IN = r"(?:unet\.)?(?:base_model\.model\.)?conv_in\.(?:base_layer\.)?(weight|bias)"
LORA: Table = {
    r"(.+\.lora_A)": [(r"\1", kernel)],
    r"(.+\.lora_B)": [(r"\1", linear)],
    r"unet\.conv_in\.weight": [("unet.conv_in.kernel", kernel)],
    r"unet\.conv_in\.bias": [("unet.conv_in.bias", same)],
}


@dataclass
class Checkpoint:
    """What a folder holds, by its role; tensors are unread and have their files' layout."""

    folder: Path
    files: list[Path]
    pairs: dict[str, Pair] = field(default_factory=dict)  # LoRA, by network and module
    conv_in: dict[str, Tensor] = field(default_factory=dict)  # of the U-Net, where trained in full
    hfie: dict[str, Tensor] = field(default_factory=dict)
    alphas: set[float] = field(default_factory=set)  # of the LoRA, by settings beside it
    heads: set[int] = field(default_factory=set)  # that settings in the files name
    tables: bool = False  # whether it is laid out as OSEDiff's file


def read_osdhuman(
    folder: Path | str, *, hfie_heads: int | None = None, lora_alpha: float | None = None
) -> Fit:
    """The generator in a folder of files, for `importer.import_model`.

    `hfie_heads` and `lora_alpha` are for what the files do not say. Raises WeightsError where the
    folder lacks LoRA or HFIE, or holds what has no place in this project's network.
    """
    folder = Path(folder)
    check_local({"osdhuman": folder})
    found = _read_folder(folder)
    rank, alpha, alpha_by = _scale(found, lora_alpha)
    heads, heads_by = _heads(found, hfie_heads)
    adapters = LoRAConfig(rank=rank, alpha=alpha, train_conv_in=bool(found.conv_in))
    remarks: Json = {"hfie_heads": f"{heads}, {heads_by}", "lora_alpha": f"{alpha:g}, {alpha_by}"}
    return lambda model, base: _generator(found, adapters, heads, model, base, remarks)


# What is in the files


def _read_folder(folder: Path) -> Checkpoint:
    """Sort all tensors below a folder by their roles. Raises WeightsError unless all have one."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise WeightsError(f"{folder}: holds no file of {', '.join(SUFFIXES)} (--osdhuman)")
    found, left, twice = Checkpoint(folder, files), [], []
    for path in files:
        # Tensors by dotted names, and the settings among them that bear on HFIE.
        tree = load(path)
        leaves = dict(_leaves(tree, path))
        tensors = {n: t for n, t in leaves.items() if isinstance(t, Tensor)}
        found.tables |= "state_dict_unet" in tree
        found.heads |= {v for n, v in leaves.items() if _last(n) in HEADS and type(v) is int}
        pairs, rest = lora_pairs(tensors)
        # Two files may adapt one network, but no module twice.
        twice += sorted(set(pairs) & set(found.pairs))
        found.pairs |= pairs
        found.alphas |= set(_noted_alphas(path)) if pairs else set()
        # What is no LoRA: the U-Net's first layer, parts of HFIE, and all that has no place here.
        for name in rest:
            conv_in = re.fullmatch(_CONV_IN, name)
            known = conv_in or any(re.fullmatch(pattern, name) for pattern in HFIE)
            role = found.conv_in if conv_in else found.hfie
            key = f"unet.conv_in.{conv_in[1]}" if conv_in else name
            if not known:
                left.append(f"{path.name}: {name} {'x'.join(map(str, tensors[name].shape))}")
            elif key in role:
                twice.append(name)
            else:
                role[key] = tensors[name]
    complain({"in two files": twice, "without their half": halves(found.pairs)}, str(folder))
    _check_roles(found, left)
    return found


def _leaves(tree: Untrusted, path: Path) -> Iterator[tuple[str, Untrusted]]:
    """All that is no table in a file, by dotted names; lists count as tables of numbers."""
    if not isinstance(tree, dict):
        raise WeightsError(f"{path}: holds no table of tensors")
    # By hand and not by recursion: a hostile pickle may hold itself, or one table many times.
    waiting, seen = [("", tree, 1)], 0
    names: set[str] = set()
    while waiting:
        prefix, table, depth = waiting.pop()
        for key, value in table.items():
            seen += 1
            if isinstance(value, list | tuple):
                value = dict(enumerate(value))
            if isinstance(value, dict):
                waiting.append((prefix + WRAPPERS.get(key, f"{key}."), value, depth + 1))
                continue
            name = f"{prefix}{key}".removeprefix("module.")
            if name in names:
                raise WeightsError(f"{path}: tensors 1 twice ({name:.80})")
            names.add(name)
            yield name, value
        if depth > DEEPEST or seen > MOST:
            raise WeightsError(f"{path}: tables within tables, which no weights need")


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _noted_alphas(path: Path) -> Iterator[float]:
    """`lora_alpha` as peft's settings beside a file, or diffusers' note in it, have it."""
    notes: list[Untrusted] = []
    beside = path.with_name("adapter_config.json")
    if beside.is_file():
        notes.append(read_json(beside))
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="numpy") as f:
            text = (f.metadata() or {}).get(NOTE, "{}")
        try:
            notes.append(dict(parse_json(text)))
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path}: its {NOTE} is no table ({error})") from error
    for key, value in (item for note in notes for item in note.items()):
        # Each of them gives some modules another scale.
        if _last(key) in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora") and value:
            raise WeightsError(f"{path}: its LoRA has {key}, which is not served")
        if _last(key) == "lora_alpha":
            if type(value) not in (int, float):
                raise WeightsError(f"{path}: its lora_alpha is {value!r:.40}")
            yield float(value)


def _check_roles(found: Checkpoint, left: list[str]) -> None:
    """Raise WeightsError, with what was found, where a role is not filled or a tensor has none."""
    counts = {
        "the U-Net's LoRA": sum(name.startswith("unet.") for name in found.pairs),
        "the VAE's LoRA": sum(name.startswith("vae.") for name in found.pairs),
        "HFIE's attention": sum(not re.fullmatch(_QUERY, name) for name in found.hfie),
        "HFIE's queries": sum(bool(re.fullmatch(_QUERY, name)) for name in found.hfie),
    }
    faults = []
    if lacking := [role for role, count in counts.items() if not count]:
        faults.append(f"lacks {', '.join(lacking)}")
    if left:
        faults.append(f"{len(left)} tensors that no layer here takes ({', '.join(left[:5])})")
    have = ", ".join(f"{role} ({count})" for role, count in counts.items() if count) or "nothing"
    if faults:
        raise WeightsError(f"{found.folder}: {'; '.join(faults)}; found {have}; {ASK}")


# What the shapes do not show


def _scale(found: Checkpoint, flag: float | None) -> tuple[int, float, str]:
    """Rank and alpha of the LoRA, and who says alpha. Raises WeightsError where there are two."""
    ranks = {pair["A"].shape[:1] for pair in found.pairs.values()}
    if len(ranks) > 1 or not all(shape and shape[0] for shape in ranks):
        named = ", ".join(sorted("x".join(map(str, shape)) or "scalar" for shape in ranks))
        raise WeightsError(f"{found.folder}: LoRA of ranks {named:.60}; served is one for all")
    ((rank,),) = ranks
    # What files say comes first, and a flag may not contradict it.
    said = found.alphas | set(_alphas(found))
    if len(said) > 1:
        named = ", ".join(f"{alpha:g}" for alpha in sorted(said))
        raise WeightsError(f"{found.folder}: LoRA of alphas {named:.60}; served is one for all")
    if said and flag not in (None, *said):
        raise WeightsError(f"{found.folder}: its LoRA's alpha is {min(said):g}, not {flag:g}")
    if said:
        alpha, by = min(said), "by the files"
    elif flag is not None:
        alpha, by = flag, "by --lora_alpha"
    elif found.tables:
        # OSEDiff's code, which writes such tables, leaves it to peft.
        alpha, by = OSEDIFF_ALPHA, "peft's default; no file says it (--lora_alpha)"
    else:
        # diffusers, which reads such files, takes the rank: the product itself is added.
        alpha, by = rank, "the rank, as in diffusers; no file says it (--lora_alpha)"
    if not 0 < alpha < math.inf:
        raise WeightsError(f"{found.folder}: its LoRA's alpha is {alpha:g}")
    return rank, float(alpha), by


def _alphas(found: Checkpoint) -> Iterator[float]:
    """Alpha of every module that has one."""
    for name, pair in found.pairs.items():
        if "alpha" in pair:
            if math.prod(pair["alpha"].shape) != 1:
                raise WeightsError(f"{found.folder}: {name}.alpha is not one number")
            yield float(pair["alpha"].read().reshape(()))


def _heads(found: Checkpoint, flag: int | None) -> tuple[int, str]:
    """HFIE's heads and who says them. Raises WeightsError where the files say something else."""
    said = sorted(found.heads)
    if flag is not None and said and flag not in said:
        raise WeightsError(f"{found.folder}: its settings have {said} heads, not {flag}")
    if flag is not None:
        return flag, "by --hfie_heads"
    if len(said) > 1:
        raise WeightsError(f"{found.folder}: its settings have {said} heads; give --hfie_heads")
    if said:
        return said[0], "by the files"
    return HFIEConfig().num_heads, "this project's default; no file says them (--hfie_heads)"


# The generator, once the base is known


def _generator(
    found: Checkpoint,
    adapters: LoRAConfig,
    heads: int,
    model: ModelConfig,
    base: Mapping[str, Tensor],
    remarks: Json,
) -> Generator:
    """The checkpoint for a base of these sizes. Raises WeightsError where it does not fit."""
    trained = replace(model, hfie=_hfie_sizes(found, heads, model), timestep=TIMESTEP)
    restorer, learned = abstract_restorer(trained, adapters)
    every = shapes(restorer)
    factors = {f"{m}.lora_{half}": p[half] for m, p in found.pairs.items() for half in "AB"}
    held = {name: tensor for name, tensor in factors.items() if name in learned}
    # Layers that have no adapter here, such as those of the time, are changed in the base.
    alpha = Tensor.of(np.array(adapters.alpha, np.float32))
    other = {m: p | {"alpha": alpha} for m, p in found.pairs.items() if f"{m}.lora_A" not in held}
    changed = merged(base, other, found.folder)
    # Layers that were not adapted have factors of zero, which training leaves as they are.
    absent = {n for n in learned if n.endswith((".lora_A", ".lora_B"))} - set(held)
    tensors = {name: Tensor.of(np.zeros(every[name], np.float32)) for name in absent}
    hfie = {name for name in learned if name.startswith(_HFIE)}
    targets = {name: every[name] for name in learned - absent - hfie}
    tensors |= convert(held | found.conv_in, LORA, targets, f"{found.folder} (LoRA)")
    targets = {name: every[name] for name in hfie}
    tensors |= convert(found.hfie, HFIE, targets, f"{found.folder} (HFIE)")
    counts = {"adapted": len(held) // 2, "merged": len(other), "not_adapted": len(absent) // 2}
    return Generator(
        lora=adapters,
        tensors=tensors,
        where=str(found.folder),
        model=trained,
        files=found.files,
        merged=changed,
        licences=[NO_LICENCE],
        remarks=remarks | {"layers": counts},
    )


def _hfie_sizes(found: Checkpoint, heads: int, model: ModelConfig) -> HFIEConfig:
    """Sizes of HFIE by its queries, (N, D) or (1, N, D)."""
    name, query = next((n, t) for n, t in found.hfie.items() if re.fullmatch(_QUERY, n))
    if len(query.shape) not in (2, 3) or query.shape[:-2] not in ((), (1,)):
        shape = "x".join(map(str, query.shape))
        raise WeightsError(f"{found.folder}: {name} is {shape}, no table of queries; {ASK}")
    count, have = query.shape[-2:]
    width = model.unet.cross_attention_dim
    if have != width:
        text = f"its prompts are {have} wide, the U-Net's {width}"
        raise WeightsError(f"{found.folder}: {text}; {ASK}")
    if heads < 1 or width % heads:
        raise WeightsError(f"{found.folder}: HFIE of width {width} has no {heads} heads")
    return HFIEConfig(num_queries=count, num_heads=heads)
