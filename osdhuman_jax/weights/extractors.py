"""The prompt extractor of a model folder, made of its parts (Table 4's ablation).

    hfie, dual  in the restorer itself: nothing is made here
    dape, ram   tagger.safetensors, the list of tags, CLIP: pictures -> tokens, outside the restorer
    null        CLIP's tokens of a single space, the same for every picture
    fixed       the tokens in prompt.npy
    text        texts that people or taggers give (DiffBody), through CLIP: nothing is made here

Beside its safetensors, such a folder holds small files, with their digests in config.json:
tokenizer/vocab.json and merges.txt, tags/ram_tag_list.txt and ram_tag_list_threshold.txt,
prompt.npy.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float32

from osdhuman_jax.config import Json
from osdhuman_jax.disk import copy_file, write_json
from osdhuman_jax.methods.prompts import (
    FixedPrompter,
    TagFinder,
    TagPrompter,
    TextEncoder,
    load_prompt,
    null_prompter,
)
from osdhuman_jax.networks.configs import CLIPConfig
from osdhuman_jax.networks.tokenizer import Tokenizer
from osdhuman_jax.networks.types import Tokens
from osdhuman_jax.weights.choices import PROMPTS
from osdhuman_jax.weights.model_folder import CONFIG, OWN_PROMPTS, read_configs, read_meta, verify
from osdhuman_jax.weights.parts import load_part, part_config
from osdhuman_jax.weights.torch_files import WeightsError

# Small files by their places in a model folder.
TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt")
TAGS = ("tags/ram_tag_list.txt", "tags/ram_tag_list_threshold.txt")  # RAM's names
PROMPT = "prompt.npy"
THRESHOLD = 0.68  # RAM's, where tags have none of their own
# What a kind needs in the folder: parts, small files.
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hfie": ((), ()),
    "dual": ((), ()),
    "dape": (("tagger", "clip"), (*TOKENIZER, *TAGS)),
    "ram": (("tagger", "clip"), (*TOKENIZER, *TAGS)),
    "null": (("clip",), TOKENIZER),
    "fixed": ((), (PROMPT,)),
    "text": (("clip",), TOKENIZER),
}


def load_prompter(
    folder: Path | str, kind: str = "", *, precision: str = "fp32"
) -> FixedPrompter | TagPrompter | None:
    """The extractor of a folder: by default of its own kind; None where the restorer has it.

    Nor is there one of texts, see `load_text_encoder`.
    A FixedPrompter belongs into the restorer; a TagPrompter's tokens are given to it. Raises
    WeightsError where the folder lacks what the kind needs, or a file was changed.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    # Folders of version 0.1 do not say; all of them were HFIE's.
    kind = kind or meta.get("prompt", "hfie")
    check_kind(folder, meta, kind)
    if kind in (*OWN_PROMPTS, "text"):
        return None
    # Parts verify themselves; the small files are verified here.
    verify(folder, meta, *NEEDS[kind][1])
    try:
        if kind == "fixed":
            model, _ = read_configs(folder, meta)
            return load_prompt(folder / PROMPT, model.unet.cross_attention_dim)
        # Both kinds that are left are text, which CLIP turns into tokens.
        encode = _text_encoder(folder, meta, precision)
        if kind == "null":
            return null_prompter(encode)
        tagger = load_part(folder, "tagger", precision=precision)
        return TagPrompter(tagger, *read_tags(folder / "tags"), encode)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def load_tag_finder(folder: Path | str, *, precision: str = "fp32") -> tuple[TagFinder, str]:
    """What finds tags, and whose they are, "ram" or "dape"; a folder needs no CLIP for it.

    Raises WeightsError where the folder lacks the head or the list, or a file was changed.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    if lacking := _lacking(meta, ("tagger",), TAGS):
        raise WeightsError(
            f"{folder}: for tags it lacks {', '.join(lacking)}; import the model with --ram "
            "(a file with a tagging head) and --tags"
        )
    verify(folder, meta, *TAGS)
    try:
        tagger = load_part(folder, "tagger", precision=precision)
        # Folders of earlier versions do not say; theirs were RAM's.
        return TagFinder(tagger, *read_tags(folder / "tags")), str(meta.get("tagger", "ram"))
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _text_encoder(folder: Path, meta: Json, precision: str) -> TextEncoder:
    clip = load_part(folder, "clip", precision=precision)
    config = cast(CLIPConfig, part_config(folder, meta, "clip"))
    return TextEncoder(Tokenizer(folder / "tokenizer", config.max_position_embeddings), clip)


def encode_text(folder: Path | str, text: str, *, precision: str = "fp32") -> Tokens:
    """Tokens (1, N, D) of a text through a folder's CLIP. Raises WeightsError if it has none."""
    return load_text_encoder(folder, precision=precision)([text])


def load_text_encoder(folder: Path | str, *, precision: str = "fp32") -> TextEncoder:
    """A folder's CLIP with its tokenizer. Raises WeightsError if it has none."""
    folder = Path(folder)
    meta = read_meta(folder)
    check_kind(folder, meta, "text")
    verify(folder, meta, *NEEDS["text"][1])
    try:
        return _text_encoder(folder, meta, precision)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def copy_prompter(source: Path, target: Path, kind: str) -> None:
    """Give a model folder another's extractor: its files, and what config.json says of them."""
    check_kind(source, read_meta(source), kind)
    _copy(source, target, *NEEDS[kind])
    write_json(target / CONFIG, read_meta(target) | {"prompt": kind})


def copy_parts(source: Path, target: Path) -> None:
    """Give a model folder another's parts, such as the losses that a later stage trains by."""
    _copy(source, target, read_meta(source).get("parts", {}), ())


def _copy(source: Path, target: Path, parts: Iterable[str], files: Iterable[str]) -> None:
    """Copy parts and small files of a model folder, and what its config.json says of them."""
    theirs, ours = read_meta(source), read_meta(target)
    # Files first, then the description that promises them.
    parts = list(parts)
    names = [*(f"{part}.safetensors" for part in parts), *files]
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        copy_file(source / name, target / name)
    ours["parts"] = ours.get("parts", {}) | {part: theirs["parts"][part] for part in parts}
    ours["digests"] |= {name: theirs["digests"][name] for name in names}
    write_json(target / CONFIG, ours)


def check_kind(where: Path | str, meta: Json, kind: str) -> None:
    """Raises WeightsError unless a folder's parts and small files serve prompts of this kind."""
    if kind not in PROMPTS:
        raise WeightsError(f"{where}: prompt {kind!r:.40} is none of {', '.join(PROMPTS)}")
    parts, files = NEEDS[kind]
    if lacking := _lacking(meta, parts, files):
        raise WeightsError(
            f"{where}: for prompts of kind {kind} it lacks {', '.join(lacking)}; import the model "
            "with --clip (a diffusers folder with its tokenizer), --tags or --prompt_file"
        )
    # RAM's and DAPE's heads have the same shapes: only the import knows which one it was.
    if "tagger" in parts and (found := meta.get("tagger", kind)) != kind:
        raise WeightsError(
            f"{where}: its tags are those of {found}, not of {kind}, which --dape at import decides"
        )


def _lacking(meta: Json, parts: Iterable[str], files: Iterable[str]) -> list[str]:
    """Which of these parts and small files a folder does not have."""
    absent = [name for name in parts if name not in meta.get("parts", {})]
    return absent + [name for name in files if name not in meta["digests"]]


def read_tags(folder: Path) -> tuple[list[str], Float32[np.ndarray, " n"]]:
    """RAM's names of tags and the probability that each must exceed, a line each.

    Without a file of thresholds every tag has RAM's usual one. Raises WeightsError where the names
    are missing, the files of unlike lengths or the thresholds no probabilities.
    """
    # RAM's repository keeps both in one folder, under these names.
    names_file, limits_file = (folder / Path(name).name for name in TAGS)
    try:
        names = names_file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        limits = np.full(len(names), THRESHOLD, np.float32)
        if limits_file.exists():
            lines = limits_file.read_text(encoding="utf-8-sig").split()
            limits = np.array([float(line) for line in lines], np.float32)
    except OSError as error:
        raise WeightsError(f"{error.filename}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WeightsError(f"{folder}: its lists of tags are not UTF-8 ({error})") from error
    except ValueError as error:
        raise WeightsError(f"{limits_file}: a number a line is needed ({error})") from error
    # A list shifted by a line would give every tag its neighbour's threshold, in silence.
    if len(names) != len(limits):
        raise WeightsError(f"{folder}: {len(names)} tags and {len(limits)} thresholds")
    # Percents, for one, would switch every tag off.
    if not ((limits >= 0) & (limits <= 1)).all():
        raise WeightsError(f"{limits_file}: thresholds are probabilities, from 0 to 1")
    return [name.strip() for name in names], limits
