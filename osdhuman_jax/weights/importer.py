"""Other people's weights -> one model folder, written whole or not at all.

    import_model("stable-diffusion-2-1-base", "ram_swin_large_14m.pth", "models/sd21")

Sources stay on disk until they are written, one tensor after the other.

The module is long because what is refused, described and written is one account of the sources.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from osdhuman_jax.cli import check_folder
from osdhuman_jax.config import Json, ModelConfig, SampleConfig, UseConfig, to_dict
from osdhuman_jax.disk import file_digest, staged_folder, write_json
from osdhuman_jax.methods.cleaner import CleanerSizes
from osdhuman_jax.methods.prompts import load_prompt
from osdhuman_jax.networks.configs import (
    CLIPConfig,
    ControlNetConfig,
    HFIEConfig,
    LPIPSConfig,
    PartParserConfig,
    TaggerConfig,
)
from osdhuman_jax.networks.tokenizer import read_vocabulary
from osdhuman_jax.weights.cleaners import cleaner_part, described, read_cleaner
from osdhuman_jax.weights.companions import RAM, RAM_LICENCE, add_dape, read_lpips, read_ram
from osdhuman_jax.weights.controls import FitControl
from osdhuman_jax.weights.diffusion import (
    LICENCE,
    Diffusion,
    locate,
    may_be_remote,
    read_diffusion,
)
from osdhuman_jax.weights.extractors import PROMPT, TAGS, TOKENIZER, check_kind, read_tags
from osdhuman_jax.weights.generators import Fit, Generator, fitted, local_generator
from osdhuman_jax.weights.model_folder import (
    BASE,
    CONFIG,
    FORMAT,
    GENERATOR,
    abstract_restorer,
    compare,
    initial_values,
    shapes,
)
from osdhuman_jax.weights.parts import Part, read_part
from osdhuman_jax.weights.text import read_clip
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, write_safetensors

# The paper does not give HFIE's heads.
HEAD_DIM = 64  # of HFIE, as in Stable Diffusion's cross-attention
WORK_SIDE = 512  # pixels; smaller pictures are enlarged for Stable Diffusion, as by DiffBIR
Location = Path | str


@dataclass
class Parts:
    """What is imported beside the restorer, where it is; the names are those of `parts.PARTS`."""

    tagger: Part[TaggerConfig] | None
    clip: Part[CLIPConfig] | None
    lpips: Part[LPIPSConfig] | None
    control: Part[ControlNetConfig] | None = None
    cleaner: Part[CleanerSizes] | None = None
    parser: Part[PartParserConfig] | None = None

    def found(self) -> dict[str, Part]:
        """Those that are there, by name."""
        every = {"tagger": self.tagger, "clip": self.clip, "lpips": self.lpips}
        every |= {"control": self.control, "cleaner": self.cleaner, "parser": self.parser}
        return {name: part for name, part in every.items() if part is not None}


def import_model(
    sd: Location,
    ram: Location | None,
    output: Location,
    *,
    dape: Location | None = None,
    lpips: Sequence[Location] = (),
    clip: Location | None = None,
    tags: Location | None = None,
    cleaner: Location | None = None,
    generator: Location | Generator | Fit | None = None,
    control: FitControl | None = None,
    pose: Mapping[str, bytes] | None = None,
    parser: Location | None = None,
    prompt: str = "",
    prompt_file: Location | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a model folder of Stable Diffusion 2.1-base and RAM.

    `sd` is a diffusers folder, a single file or a hub repository; `dape`, `lpips`, `clip` and
    `cleaner` (see `read_cleaner`) add parts (see parts.py); `tags` is the folder of RAM's list of
    tags and, if it has one, of their thresholds; `generator` is what a training run changed (see
    generators.py). Without one, HFIE is random by `seed`. `control` makes a ControlNet (see
    controls.py), with which the folder is a DiffBody; `pose` are BlazePose's files, `parser` a
    folder with that part. `prompt` is the kind of extractor (see extractors.py): by default the
    generator's, "fixed" with a `prompt_file`, else HFIE; "text" needs no RAM, and has `sd`'s CLIP.
    Raises WeightsError, having written none.
    """
    clip = sd if prompt == "text" and clip is None else clip
    # What can be refused is refused before anything is downloaded: output, places, kinds, lists.
    check_output(output := Path(output), overwrite)
    given = {"ram": ram, "dape": dape, "tags": tags, "prompt_file": prompt_file, "clip": clip}
    given |= {f"lpips {number}": path for number, path in enumerate(lpips, start=1)}
    check_local(given | {"sd": sd, "generator": _place(generator), "parser": parser})
    encoder = _encoder(ram, prompt, dape)
    parts = _parts_here(encoder, dape, clip, lpips, cleaner, parser)
    small = _tag_files(tags, parts.tagger) | _prompt_file(prompt_file) | dict(pose or {})
    generator, tagger = local_generator(generator), "dape" if dape else "ram"
    _check_promised(output, parts, small, clip, tagger, _kind(prompt, prompt_file, generator))

    # The largest come last; of all files only names and shapes are read so far.
    diffusion = read_diffusion(locate(str(sd)))
    parts.clip = parts.clip or (read_clip(locate(str(clip))) if clip else None)
    parts.control = control(diffusion) if control else None

    # The model that they make together; a generator brings its own HFIE and timestep.
    model, had = _model(diffusion, encoder), parts.found()
    trained = fitted(generator, model, diffusion.tensors)
    kind = _kind(prompt, prompt_file, trained)
    small |= _vocabulary(parts.clip, model)
    small |= _prompt_file(prompt_file, model.unet.cross_attention_dim)
    # The description, then the tensors, which are converted while they are written.
    meta = _description(model, kind, trained, had, small) | {"tagger": tagger}
    check_kind(output, meta, kind)
    meta["provenance"] = _provenance(sd, diffusion, encoder, had, trained, seed)
    files = {f"{name}.safetensors": part.tensors for name, part in had.items()}
    files = _restorer_files(diffusion, encoder, model, trained, seed) | files
    write_folder(output, files, meta, small, overwrite)


def _model(diffusion: Diffusion, encoder: RAM | None) -> ModelConfig:
    """Sizes of the restorer; HFIE's are ours, since no file has it."""
    model = ModelConfig(vae=diffusion.vae, unet=diffusion.unet, text=encoder is None)
    model.swin = encoder.swin if encoder else model.swin
    model.hfie = HFIEConfig(num_heads=max(1, model.unet.cross_attention_dim // HEAD_DIM))
    return model


def _place(generator: Location | Generator | Fit | None) -> Location | None:
    """Where a generator lies, if it is not read already."""
    return generator if isinstance(generator, Path | str) else None


def _description(
    model: ModelConfig,
    kind: str,
    generator: Generator | None,
    parts: dict[str, Part],
    small: dict[str, bytes],
) -> Json:
    """config.json but for its provenance and the digests of what is not written yet."""
    use = UseConfig("wavelet", work_side=WORK_SIDE, sample=SampleConfig())
    return {
        "format": FORMAT,
        "prompt": kind,
        "model": to_dict(model),
        "lora": to_dict(generator.lora) if generator else None,
        "parts": {name: to_dict(part.config) for name, part in parts.items()},
        "digests": {name: hashlib.sha256(data).hexdigest() for name, data in small.items()},
        "licences": [
            *([LICENCE] if model.text else [LICENCE, RAM_LICENCE]),
            *(generator.licences if generator else []),
            *(licence for part in parts.values() for licence in part.licences),
        ],
    } | ({"use": to_dict(use)} if "control" in parts else {})


def _encoder(ram: Location | None, prompt: str, dape: Location | None) -> RAM | None:
    """RAM, without which prompts are texts. Raises WeightsError where they are not to be."""
    if ram:
        return read_ram(Path(ram))
    if prompt != "text" or dape:
        raise WeightsError("import without --ram is for --prompt text, and without --dape")
    return None


def import_cleaner(source: Location, output: Location, *, overwrite: bool = False) -> None:
    """Write a model folder of RRDBNet or SwinIR (see cleaners.py), with the file's dtypes.

    `source` is a file, or the name of a package of weights that is installed. Raises WeightsError,
    having written nothing.
    """
    output = Path(output)
    check_output(output, overwrite)
    # Its own reader has proved names and shapes; nothing is converted but names.
    read = read_cleaner(str(source))
    meta = described(read.config) | {"licences": read.licences, "provenance": read.provenance}
    write_folder(output, {BASE: read.tensors}, meta, {}, overwrite)


def check_output(output: Path, overwrite: bool) -> None:
    """Only a model folder is ever replaced, and only if asked."""
    # A person's folder of that name is none of ours: it has no config.json.
    check_folder("output", output.absolute().parent)
    if output.exists() and not overwrite:
        raise WeightsError(f"{output}: exists; give --overwrite to replace it")
    if output.exists() and not (output / CONFIG).is_file():
        raise WeightsError(f"{output}: not a model folder, so it is not overwritten")


# What an argument of a local place must be; `sd` and `clip` may be on the hub, or of either kind.
FOLDERS = {"tags", "haodiff", "osdhuman", "parser"}
EITHER, REMOTE = {"sd", "clip", "generator"}, {"sd", "clip"}


def check_local(given: Mapping[str, object]) -> None:
    """Raise WeightsError where an argument cannot be read, before the hub is asked for another.

    What is no place, such as a generator that was read already, is left out.
    """
    for name, location in given.items():
        remote = name in REMOTE and may_be_remote(str(location))
        if not isinstance(location, Path | str) or remote:
            continue
        # Of several files for one flag the number is left out.
        path, flag = Path(location), f"--{name.split()[0]}"
        if not path.exists():
            raise WeightsError(f"{path}: no such file or folder ({flag})")
        if name not in EITHER and path.is_dir() != (name in FOLDERS):
            kind = "a folder" if name in FOLDERS else "a file"
            raise WeightsError(f"{path}: not {kind} ({flag})")
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise WeightsError(f"{path}: cannot be read ({flag})")


def _parts_here(
    encoder: RAM | None,
    dape: Location | None,
    clip: Location | None,
    lpips: Sequence[Location],
    cleaner: Location | None,
    parser: Location | None,
) -> Parts:
    """What is imported beside the restorer, but for a text encoder that may be on the hub."""
    return Parts(
        tagger=add_dape(Path(dape), encoder) if encoder and dape else encoder and encoder.tagger,
        clip=read_clip(Path(clip)) if clip and not may_be_remote(str(clip)) else None,
        lpips=read_lpips([Path(p) for p in lpips]) if lpips else None,
        cleaner=cleaner_part(read_cleaner(str(cleaner))) if cleaner else None,
        parser=read_part(Path(parser), "parser") if parser else None,
    )


def _check_promised(
    output: Path,
    parts: Parts,
    small: dict[str, bytes],
    clip: Location | None,
    tagger: str,
    kind: str,
) -> None:
    """Raise WeightsError where prompts of a kind, if it is known, will lack what they need."""
    # What is on the hub is taken to be whole: a text encoder with its tokenizer.
    if clip and (parts.clip is None or _tokenizer(parts.clip).is_dir()):
        small = small | dict.fromkeys(TOKENIZER, b"")
    # The description as it will be, as far as the check looks at it.
    names = [*parts.found(), *(["clip"] if clip else [])]
    meta: Json = {"parts": dict.fromkeys(names), "digests": small, "tagger": tagger}
    if kind:
        check_kind(output, meta, kind)


def _restorer_files(
    diffusion: Diffusion,
    ram: RAM | None,
    model: ModelConfig,
    generator: Generator | None,
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """Tensors of base.safetensors and generator.safetensors."""
    # Names and shapes of what a restorer with these adapters has, and which of them were trained.
    restorer, learned = abstract_restorer(model, generator.lora if generator else None)
    every = shapes(restorer)
    hfie = {name: every[name] for name in every if name.startswith("prompter.hfie.")}
    tensors = diffusion.tensors | (ram.encoder if ram else {})
    tensors |= random_tensors(hfie, seed, model.hfie.query_init_std)
    if not generator:
        return {BASE: tensors}
    tensors |= generator.merged
    # OSEDiff trains no HFIE: there the random one is the generator's.
    own = {n: t for n, t in tensors.items() if n in learned and "hfie" in n}
    if generator.prompt == "hfie":
        own = {}  # comes with the generator, or is missing
    own |= generator.tensors
    # Of the generator; the base was proved by the tables that converted it.
    compare(own, {name: every[name] for name in learned}, generator.where)
    return {BASE: {n: t for n, t in tensors.items() if n not in learned}, GENERATOR: own}


def random_tensors(
    targets: Mapping[str, tuple[int, ...]], seed: int, query_std: float = 1.0
) -> dict[str, Tensor]:
    """Values of a prompter's part that is to be trained, by its names and shapes."""
    # Sorted, so that a seed means one part whatever the order of attributes.
    rng, made = np.random.default_rng(seed), {}
    for name in sorted(targets):
        scale = query_std if name.endswith(".query") else 1.0
        made[name] = Tensor.of(np.float32(scale) * initial_values(name, targets[name], rng))
    return made


def named_digests(files: Sequence[Path], known: dict[Path, str]) -> dict[str, str]:
    """Digests of files by their last folder and name; `known` ones are not taken again."""
    for path in files:
        if path not in known:
            known[path] = file_digest(path)
    return {"/".join(path.parts[-2:]): known[path] for path in files}


def _provenance(
    sd: Location,
    diffusion: Diffusion,
    ram: RAM | None,
    parts: dict[str, Part],
    generator: Generator | None,
    seed: int,
) -> Json:
    """Where every file came from, by name and digest."""
    # Digests of gigabytes are taken once, though a file may serve two parts.
    named = partial(named_digests, known={})
    found: Json = {
        "stable_diffusion": {"source": str(sd), "prediction": diffusion.prediction},
    }
    if ram:
        found |= {"ram": {"files": named([ram.file])}, "hfie": {"random_seed": seed}}
    # In the order in which the files were read.
    found["stable_diffusion"]["files"] = named(diffusion.files)
    found |= {n: {"files": named(part.files)} | part.remarks for n, part in parts.items()}
    if generator:
        found["generator"] = {"source": generator.where, "files": named(generator.files)}
        found["generator"] |= generator.remarks
    # HFIE came with the generator: none was drawn.
    if generator and generator.prompt == "hfie":
        found.pop("hfie")
    return found


def _kind(prompt: str, prompt_file: Location | None, generator: Generator | Fit | None) -> str:
    """The kind of prompts: what is asked for, else what the generator was trained with.

    Empty where a file, which is not read yet, is to tell.
    """
    # What is asked for, then what the tokens' file says, then what the generator was trained with.
    trained = generator if isinstance(generator, Generator) else None
    learnt = trained.prompt if trained else "" if generator else "hfie"
    kind = prompt or ("fixed" if prompt_file else learnt)
    if prompt_file and kind != "fixed":
        raise WeightsError(f"{prompt_file}: prompts of kind {kind} are not of a file")
    if trained and kind == "hfie" != learnt:
        raise WeightsError(f"{trained.where}: has no HFIE, its prompts are of kind {learnt}")
    return kind


def _tag_files(tags: Location | None, tagger: Part[TaggerConfig] | None) -> dict[str, bytes]:
    """The list of tags and its thresholds by their names in the model folder."""
    if not tags:
        return {}
    # Written anew in one form, so that a folder always has both files.
    names, limits = read_tags(Path(tags))
    if tagger and tagger.config.num_tags != len(names):
        raise WeightsError(f"{tags}: {len(names)} tags for {tagger.config.num_tags} labels")
    texts = ("\n".join(lines) for lines in (names, map(str, limits)))
    return {name: text.encode() for name, text in zip(TAGS, texts, strict=True)}


def _prompt_file(prompt_file: Location | None, width: int | None = None) -> dict[str, bytes]:
    """The tokens by their name in the model folder, proved to be of a width."""
    if not prompt_file:
        return {}
    try:
        # Called twice: before the base is known with no width, and with the U-Net's after that.
        load_prompt(prompt_file, width)
    except (ValueError, OSError) as error:
        raise WeightsError(f"{prompt_file}: no prompt of this model ({error})") from error
    return {PROMPT: Path(prompt_file).read_bytes()}


def _tokenizer(clip: Part[CLIPConfig]) -> Path:
    """Where diffusers keeps the tokenizer of a text encoder."""
    return clip.files[0].parent.parent / "tokenizer"


def _vocabulary(clip: Part[CLIPConfig] | None, model: ModelConfig) -> dict[str, bytes]:
    """The tokenizer that diffusers keeps beside a text encoder, in two files; nothing without."""
    if clip is None:
        return {}
    have, want = clip.config.hidden_size, model.unet.cross_attention_dim
    if have != want:
        raise WeightsError(f"{clip.files[0]}: its tokens are {have} wide, the U-Net's {want}")
    # Two files, in the form in which the tokenizer is read back; newer folders have one.
    folder = _tokenizer(clip)
    if not folder.is_dir():
        return {}
    try:
        vocab, merges = read_vocabulary(folder)
    except (ValueError, OSError) as error:
        raise WeightsError(f"{folder}: no vocabulary of CLIP ({error})") from error
    if max(vocab.values()) >= clip.config.vocab_size:
        raise WeightsError(f"{folder}: has ids beyond the text encoder's {clip.config.vocab_size}")
    # The first line is CLIP's own, which every reader skips.
    lines = "\n".join(["#version: 0.2", *map(" ".join, merges)])
    texts = (json.dumps(vocab, ensure_ascii=False), f"{lines}\n")
    return {name: text.encode() for name, text in zip(TOKENIZER, texts, strict=True)}


def write_folder(
    output: Path,
    files: dict[str, dict[str, Tensor]],
    meta: Json,
    small: dict[str, bytes],
    overwrite: bool,
) -> None:
    """Write the whole folder beside its place, then give it its name."""
    try:
        with staged_folder(output, replace=overwrite) as folder:
            # Large files first: digests of what is written go into the description, which is the
            # last.
            for name, tensors in files.items():
                proved = {n: _finite(t, f"{output}: not written: {n}") for n, t in tensors.items()}
                write_safetensors(folder / name, proved)
            for name, data in small.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
            meta["digests"] |= {name: file_digest(folder / name) for name in files}
            write_json(folder / CONFIG, meta)
    except OSError as error:
        raise WeightsError(f"{output}: {error.strerror or error}") from error


def _finite(tensor: Tensor, where: str) -> Tensor:
    """A tensor whose reading raises WeightsError where a network could not compute with it."""

    def read() -> np.ndarray:
        array = tensor.read()
        # Networks compute in 32 bits, in which numbers of 64 may be infinite.
        if tensor.dtype.kind in "fV":  # V: NumPy's kind of bfloat16
            with np.errstate(over="ignore"):
                if not np.isfinite(array.astype(np.float32, copy=False)).all():
                    raise WeightsError(f"{where} holds NaN or infinite numbers")
        return array

    return replace(tensor, read=read)
