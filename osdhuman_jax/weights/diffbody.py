"""DiffBody on disk: a restorer's folder, of which VAE and U-Net are taken, with parts beside it.

    control.safetensors, cleaner.safetensors      ControlNet, and what restores before it
    clip.safetensors, tokenizer/                  where texts describe the pictures (prompt "text")
    tagger.safetensors, tags/                     may be there: RAM's tags as texts
    pose_detection.tflite, pose_landmark_full.tflite   may be there: BlazePose, as it is published
    parser.safetensors                            may be there: the parser of parts

Without texts the restorer's own HFIE describes the pictures, as small models have it. `use.sample`
in config.json says how the model is best sampled.
"""

from dataclasses import dataclass
from pathlib import Path

from osdhuman_jax.config import ModelConfig, UseConfig
from osdhuman_jax.methods.cleaner import cleaner_sizes
from osdhuman_jax.methods.diffbody import DiffBody
from osdhuman_jax.methods.prompts import HFIEPrompter, TagPrompter, TextEncoder
from osdhuman_jax.networks.part_parser import PartParser
from osdhuman_jax.weights.abilities import Abilities, abilities_of
from osdhuman_jax.weights.choices import POSE_FILES
from osdhuman_jax.weights.cleaners import Cleaner
from osdhuman_jax.weights.extractors import load_prompter, load_text_encoder
from osdhuman_jax.weights.model_folder import load_model, read_meta, read_use, verify
from osdhuman_jax.weights.parts import load_part, part_config
from osdhuman_jax.weights.torch_files import WeightsError

PROMPTS = ("text", "hfie")  # kinds of prompts that it may have


@dataclass
class DiffBodyModel:
    """A loaded DiffBody and what it is; a pipeline takes it as it takes a `Model`."""

    restorer: DiffBody
    config: ModelConfig
    digest: str  # sha256 of config.json, which holds the digests of the weights
    name: str
    use: UseConfig
    abilities: Abilities
    cleaner: Cleaner  # the restorer's own, as one that restores by itself
    encode: TextEncoder | None = None  # of texts, where they describe pictures
    prompter: HFIEPrompter | None = None  # of I_reg, where they do not
    tagger: TagPrompter | None = None  # what finds texts
    parser: PartParser | None = None
    poses: Path | None = None  # folder of BlazePose's two files, which are as their digests say


def load_diffbody(folder: Path | str, precision: str = "fp32") -> DiffBodyModel:
    """The DiffBody of a folder, its networks computing in `precision`.

    Raises WeightsError where the folder is not a whole, untouched DiffBody.
    """
    folder = Path(folder)
    # What is there, and whether it makes a DiffBody, before tensors are read.
    meta = read_meta(folder)
    lacking = [name for name in ("control", "cleaner") if name not in meta.get("parts", {})]
    if lacking:
        raise WeightsError(f"{folder}: lacks the part {' and '.join(lacking)} of a DiffBody")
    part_config(folder, meta, "control")
    can = abilities_of(meta, read_use(folder, meta))
    assert can is not None  # since it has a ControlNet
    prompt = meta.get("prompt", "hfie")
    if prompt not in PROMPTS:
        kinds = " or ".join(PROMPTS)
        raise WeightsError(f"{folder}: its prompts are of kind {prompt}; DiffBody's are {kinds}")
    # The restorer's two networks, of which its prompter is another matter.
    base = load_model(folder, precision=precision)
    network = load_part(folder, "cleaner", precision=precision)
    control = load_part(folder, "control", precision=precision)
    body = DiffBody(base.restorer.vae, base.restorer.unet, control, network)
    sizes = cleaner_sizes(meta["parts"]["cleaner"])
    cleaner = Cleaner(network, sizes, base.digest, base.name)
    made = DiffBodyModel(body, base.config, base.digest, base.name, base.use, can, cleaner)
    # What describes the pictures.
    if can.text:
        made.encode = load_text_encoder(folder, precision=precision)
    else:
        assert isinstance(base.restorer.prompter, HFIEPrompter)  # as all of that kind
        made.prompter = base.restorer.prompter
    if can.text and can.tags:
        tagger = load_prompter(folder, meta.get("tagger", "ram"), precision=precision)
        assert isinstance(tagger, TagPrompter)
        made.tagger = tagger
    # What finds people, and parts of them.
    if can.parser:
        made.parser = load_part(folder, "parser", precision=precision)
    if can.people:
        verify(folder, meta, *POSE_FILES)
        made.poses = folder
    return made
