"""A photograph through model folders that the import command wrote, for every kind of prompt,
against a PyTorch pipeline: diffusers' networks with peft's adapters, transformers' Swin, BERT and
CLIP, PyTorch's multi-head attention and diffusers' scheduler.
"""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from make_weights import MERGES, VOCAB, dape_state
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from refusals import status

from benchmarks import fidelity, references
from benchmarks.convert import nchw, randomise
from benchmarks.published import adapt_all, publish, reference_restorer
from osdhuman_jax.commands import captions, restore
from osdhuman_jax.commands.weights import main
from osdhuman_jax.config import Config
from osdhuman_jax.images.codec import to_float
from osdhuman_jax.networks.tokenizer import Tokenizer
from osdhuman_jax.training.prompting import Prompts
from osdhuman_jax.weights import (
    WeightsError,
    copy_prompter,
    encode_text,
    load_base,
    load_prompter,
    save_model,
)
from osdhuman_jax.weights.extractors import read_tags
from osdhuman_jax.weights.importer import import_model
from osdhuman_jax.weights.model_folder import read_meta

NAMES = ["dog", "cat", "a dog", "#", "do", "go", "ca", "dog cat", "at", "tag", "boat"]
PHOTO = np.ascontiguousarray(skimage.data.astronaut()[40:168, 158:286])  # her face
TINY = fidelity.TINY
TAGGER = replace(TINY.tagger, num_attention_heads=4)  # shapes do not show RAM's four heads
# That table measures Stable Diffusion's whole depth; prompts reach every attention of less.
MODEL = replace(
    TINY.model,
    vae=replace(TINY.model.vae, layers_per_block=1),
    unet=replace(
        TINY.model.unet,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        num_attention_heads=(1, 2),
    ),
)


class Theirs:
    """The whole PyTorch pipeline, and the files its authors would publish."""

    def __init__(self, folder: Path):
        self.restorer = reference_restorer(MODEL)
        width = MODEL.swin.image_proj_dim
        self.tagger: Any = randomise(
            references.Tagger({**asdict(TAGGER), "context_dim": width}), seed=5
        )
        self.clip: Any = randomise(references.clip(asdict(TINY.clip)), seed=6)
        self.sd, self.ram = publish(self.restorer, folder)
        ram = self.restorer.ram.state() | self.tagger.state_dict()
        self.dape, lora = folder / "DAPE.pth", dape_state(ram)
        torch.save({"model": ram}, self.ram)
        torch.save(lora, self.dape)
        self.taggers = {"ram": (self.restorer.ram, self.tagger), "dape": self.with_dape(lora)}
        self.clip.save_pretrained(self.sd / "text_encoder")
        tokenizer, self.tags = self.sd / "tokenizer", folder / "tags"
        tokenizer.mkdir()
        (tokenizer / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(VOCAB)}))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
        self.tags.mkdir()
        (self.tags / "ram_tag_list.txt").write_text("\n".join(NAMES))
        # Every second tag is found by both taggers, but for the cat, which RAM alone finds.
        found = torch.stack([self.probabilities("ram"), self.probabilities("dape")])
        self.limits = (found.amax(0) + 0.05).clamp(max=1)
        self.limits[1::2] = (found.amin(0) - 0.05).clamp(min=0)[1::2]
        self.limits[1] = found[:, 1].mean()
        lines = "\n".join(f"{float(limit):.6f}" for limit in self.limits)
        (self.tags / "ram_tag_list_threshold.txt").write_text(lines)
        self.generator = adapt_all(self.restorer, MODEL)

    def with_dape(self, lora: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """Encoder and head as loralib merges them: W + B A / 8; of the Swin, queries and values."""
        ram, tagger = copy.deepcopy((self.restorer.ram, self.tagger))
        for name, layer in ram.swin.named_modules():
            if name.endswith(".q_proj"):
                fused = name.replace("q_proj", "qkv")
                for old, new in references.SWIN_NAMES:
                    fused = fused.replace(old, new)
                down, up = (lora[f"visual_encoder.{fused}.lora_{x}"].chunk(2) for x in "AB")
                values = ram.swin.get_submodule(name.replace("q_proj", "v_proj"))
                layer.weight.data += up[0] @ down[0] / 8
                values.weight.data += up[1] @ down[1] / 8
        for name, layer in tagger.named_modules():
            if f"{name}.lora_A" in lora:
                layer.weight.data += lora[f"{name}.lora_B"] @ lora[f"{name}.lora_A"] / 8
        return ram, tagger

    def probabilities(self, kind: str) -> torch.Tensor:
        """Of each tag in the photograph."""
        ram, tagger = self.taggers[kind]
        return torch.sigmoid(tagger(ram(nchw(to_float(PHOTO[None])))))[0]

    def text(self, kind: str) -> str:
        """The null prompt, or OSEDiff's of the tags that are found."""
        if kind == "null":
            return " "
        margins = self.probabilities(kind) - self.limits
        assert margins.abs().min() > 1e-3  # else rounding would decide
        return ", ".join(n for n, m in zip(NAMES, margins, strict=True) if m > 0) + ", ,"

    def prompt(self, text: str) -> torch.Tensor:
        words = Tokenizer(self.sd / "tokenizer", TINY.clip.max_position_embeddings)
        return self.clip(torch.from_numpy(words([text])).long()).last_hidden_state

    def restore(self, prompt: torch.Tensor | None = None) -> np.ndarray:
        """uint8."""
        image = self.restorer(to_float(PHOTO[None]), prompt)[0].permute(1, 2, 0).numpy()
        return np.clip((image + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    with torch.no_grad():
        yield Theirs(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def trained(theirs, tmp_path_factory) -> Path:
    """A model folder with the generator, from which the commands take it."""
    folder = tmp_path_factory.mktemp("trained") / "m"
    import_model(theirs.sd, theirs.ram, folder, generator=theirs.generator)
    return folder


def ours(folder: Path) -> np.ndarray:
    """The photograph through infer.py."""
    Image.fromarray(PHOTO).save(folder.parent / "photo.png")
    files = {"--input": folder.parent / "photo.png", "--output": folder.parent / "out"}
    words = [word for pair in {**files, "--model": folder}.items() for word in pair]
    assert status(restore.main, *words) == 0
    return np.asarray(Image.open(folder.parent / "out" / "photo.png"))


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert want.std() > 20  # it is a picture
    assert np.abs(got.astype(int) - want).max() <= 1


@pytest.mark.parametrize("kind", ["hfie", "ram", "dape", "null"])
def test_photograph_through_both_commands(theirs, trained, tmp_path, kind):
    """Within one of 255: import (base, RAM, text encoder, LoRA and HFIE), then infer.py."""
    flags = ["--sd", theirs.sd, "--ram", theirs.ram, "--generator", trained, "--prompt", kind]
    flags += ["--clip", theirs.sd, "--tags", theirs.tags] if kind != "hfie" else []
    flags += ["--dape", theirs.dape] if kind == "dape" else []
    assert status(main, "import", *flags, "--output", tmp_path / "m") == 0
    prompt = None if kind == "hfie" else theirs.prompt(theirs.text(kind))
    close(ours(tmp_path / "m"), theirs.restore(prompt))


def test_prompts_and_adapters_show(theirs):
    """Each moves the picture, so that none can pass for another or be left out."""
    assert theirs.text("ram") == ", ".join(NAMES[1::2]) + ", ,"
    assert theirs.text("dape") == ", ".join(NAMES[3::2]) + ", ,"
    prompts = [theirs.prompt(theirs.text(kind)) for kind in ("ram", "dape", "null")]
    pictures = [theirs.restore(prompt).astype(int) for prompt in (None, *prompts)]
    for network in (theirs.restorer.unet, theirs.restorer.vae):
        adapters = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
        for on in (False, True):
            for layer in adapters:
                layer.enable_adapters(on)
            if not on:
                pictures.append(theirs.restore().astype(int))
    for i, picture in enumerate(pictures):
        assert all(np.abs(picture - other).max() > 2 for other in pictures[:i])


def test_captions_are_rams_tags_and_need_no_clip(theirs, tmp_path):
    """Pictures in batches of one shape, whatever their sizes and however many there are."""
    import_model(theirs.sd, theirs.ram, tmp_path / "m", tags=theirs.tags)
    (tmp_path / "photos").mkdir()
    for i in range(captions.BATCH + 1):
        sized = PHOTO if i else np.repeat(np.repeat(PHOTO, 2, axis=0), 2, axis=1)
        Image.fromarray(sized).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "4.png").write_bytes(b"no picture")
    flags = {"--pictures": tmp_path / "photos", "--ram": tmp_path / "m"}
    words = [word for pair in {**flags, "--output": tmp_path / "c.jsonl"}.items() for word in pair]
    assert status(captions.main, *words) == 1
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [line.pop("file") for line in lines] == [f"{i}.png" for i in range(9) if i != 4]
    assert theirs.text("ram") == ", ".join(NAMES[1::2]) + ", ,"
    want = {"text": ", ".join(NAMES[1::2]), "tags": NAMES[1::2], "by": "ram"}
    assert all(line == want for line in lines)


@pytest.mark.parametrize("kind", ["ram", "null"])
def test_training_gives_the_same_prompts_and_hands_the_extractor_on(theirs, tmp_path, kind):
    base, result = tmp_path / "base", tmp_path / "result"
    parts = {"clip": theirs.sd, "tags": theirs.tags}
    import_model(theirs.sd, theirs.ram, base, **parts)
    save_model(result, MODEL, load_base(base)[0])
    copy_prompter(base, result, kind)
    config = Config(model=MODEL)
    config.prompt.kind, config.run.precision = kind, "fp32"
    used = theirs.text(kind)
    trained = used.removesuffix(", ,")  # in training the tags are bare
    assert (trained != used) is (kind == "ram")
    want = [theirs.prompt(text) for text in (trained, used)]
    for folder in (base, result):
        prompts = Prompts(config, folder)
        found = prompts({"hq": PHOTO[None]}, "hq"), prompts.in_use({"lq": PHOTO[None]})
        for got, tokens in zip(found, want, strict=True):
            np.testing.assert_allclose(got["prompt"], tokens, rtol=0, atol=1e-4)
    assert read_meta(result)["prompt"] == kind
    text = encode_text(base, theirs.text("ram"))
    np.testing.assert_allclose(text, theirs.prompt(theirs.text("ram")), rtol=0, atol=1e-4)


def test_prompt_of_a_file(theirs, tmp_path):
    tokens = theirs.prompt("a dog")[0].numpy()
    np.save(tmp_path / "dog.npy", tokens)
    args = (theirs.sd, theirs.ram, tmp_path / "m")
    import_model(*args, generator=theirs.generator, prompt_file=tmp_path / "dog.npy")
    close(ours(tmp_path / "m"), theirs.restore(torch.from_numpy(tokens)[None]))
    (tmp_path / "m" / "prompt.npy").write_bytes((tmp_path / "dog.npy").read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="prompt.npy: its bytes do not match"):
        load_prompter(tmp_path / "m")


@pytest.mark.parametrize(
    ("names", "limits", "said"),
    [
        ("a\nb", "0.5", "2 tags and 1 thresholds"),
        ("a\nb", "0.5\nx", "a number a line"),
        ("a\nb", "0.5\n1.5", "from 0 to 1"),
        (None, "0.5", "ram_tag_list.txt: No such file"),
    ],
)
def test_lists_of_tags_are_checked(tmp_path, names, limits, said):
    (tmp_path / "ram_tag_list_threshold.txt").write_text(limits)
    if names:
        (tmp_path / "ram_tag_list.txt").write_text(names)
    with pytest.raises(WeightsError, match=said):
        read_tags(tmp_path)
