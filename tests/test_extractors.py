"""A photograph through model folders that the import command wrote, for every kind of prompt,
against a PyTorch pipeline: diffusers' networks with peft's adapters, transformers' Swin, BERT and
CLIP, PyTorch's multi-head attention and diffusers' scheduler.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import torch
from test_tokenizer import MERGES, VOCAB

from benchmarks import references
from benchmarks.convert import nchw, randomise
from benchmarks.fidelity import TINY, adapt_all, publish, reference_restorer
from osdhuman_jax.images import Picture, to_float
from osdhuman_jax.pipeline import Pipeline
from osdhuman_jax.prompts import save_prompt
from osdhuman_jax.tokenizer import Tokenizer
from osdhuman_jax.weights import WeightsError, load_prompter
from osdhuman_jax.weights.__main__ import main
from osdhuman_jax.weights.extractors import read_tags
from osdhuman_jax.weights.importer import import_model

NAMES = ["dog", "cat", "a dog", "#", "do", "go", "ca", "dog cat", "at", "tag", "boat"]
PHOTO = np.ascontiguousarray(skimage.data.astronaut()[40:104, 190:254])  # her face
TAGGER = replace(TINY.tagger, num_attention_heads=4)  # shapes do not show RAM's four heads


class Theirs:
    """The whole PyTorch pipeline, and the files its authors would publish."""

    def __init__(self, folder: Path):
        self.restorer = reference_restorer(TINY)
        width = TINY.model.swin.image_proj_dim
        self.tagger: Any = randomise(
            references.Tagger({**asdict(TAGGER), "context_dim": width}), seed=5
        )
        self.clip: Any = randomise(references.clip(asdict(TINY.clip)), seed=6)
        self.sd, self.ram = publish(self.restorer, folder)
        torch.save({"model": self.restorer.ram.state() | self.tagger.state_dict()}, self.ram)
        self.clip.save_pretrained(self.sd / "text_encoder")
        tokenizer, self.tags = self.sd / "tokenizer", folder / "tags"
        tokenizer.mkdir()
        (tokenizer / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(VOCAB)}))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
        self.tags.mkdir()
        (self.tags / "ram_tag_list.txt").write_text("\n".join(NAMES))
        self.limits = self.probabilities() + 0.05 * (-1.0) ** torch.arange(len(NAMES))
        lines = "\n".join(f"{float(limit):.6f}" for limit in self.limits)
        (self.tags / "ram_tag_list_threshold.txt").write_text(lines)
        self.generator = adapt_all(self.restorer, TINY.model)

    def probabilities(self) -> torch.Tensor:
        """Of each tag in the photograph."""
        embeddings = self.restorer.ram(nchw(to_float(PHOTO[None])))
        return torch.sigmoid(self.tagger(embeddings))[0]

    def text(self) -> str:
        """OSEDiff's prompt of the tags that RAM finds: every second one, by the thresholds."""
        pairs = zip(NAMES, self.probabilities() > self.limits, strict=True)
        found = [name for name, there in pairs if there]
        assert found == NAMES[1::2]
        return ", ".join(found) + ", ,"

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


def ours(folder: Path) -> np.ndarray:
    return Pipeline.from_folder(folder).restore([Picture(PHOTO, None, None)])[0].rgb


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert want.std() > 20  # it is a picture
    assert np.abs(got.astype(int) - want).max() <= 1


def test_hfie_with_lora(theirs, tmp_path):
    import_model(theirs.sd, theirs.ram, tmp_path / "m", generator=theirs.generator)
    close(ours(tmp_path / "m"), theirs.restore())


@pytest.mark.parametrize("kind", ["ram", "null"])
def test_text_prompts(theirs, tmp_path, kind):
    parts = {"clip": theirs.sd, "tags": theirs.tags, "generator": theirs.generator}
    import_model(theirs.sd, theirs.ram, tmp_path / "m", prompt=kind, **parts)
    text = theirs.text() if kind == "ram" else " "
    close(ours(tmp_path / "m"), theirs.restore(theirs.prompt(text)))


def test_prompt_of_a_file(theirs, tmp_path):
    tokens = theirs.prompt("a dog")[0].numpy()
    save_prompt(tmp_path / "dog.npy", jnp.asarray(tokens))
    args = (theirs.sd, theirs.ram, tmp_path / "m")
    import_model(*args, generator=theirs.generator, prompt_file=tmp_path / "dog.npy")
    close(ours(tmp_path / "m"), theirs.restore(torch.from_numpy(tokens)[None]))
    (tmp_path / "m" / "prompt.npy").write_bytes((tmp_path / "dog.npy").read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="prompt.npy: its bytes do not match"):
        load_prompter(tmp_path / "m")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "for prompts of kind ram it lacks clip, tokenizer/vocab.json"),
        (("--clip", "sd"), "it lacks tags/ram_tag_list.txt"),
    ],
)
def test_import_refuses_a_prompt_that_it_cannot_serve(
    theirs, tmp_path, capsys, monkeypatch, flags, said
):
    flags = [str(theirs.sd) if flag == "sd" else flag for flag in flags]
    words = ["import", "--sd", theirs.sd, "--ram", theirs.ram, "--prompt", "ram", *flags]
    monkeypatch.setattr("sys.argv", [*map(str, ["weights", *words, "--output", tmp_path / "m"])])
    assert main() == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "limits", "said"),
    [
        ("a\nb", "0.5", "2 tags and 1 thresholds"),
        ("a\nb", "0.5\nx", "a number a line"),
        ("a\nb", "0.5\n1.5", "from 0 to 1"),
        ("a\nb", None, "No such file"),
    ],
)
def test_lists_of_tags_are_checked(tmp_path, names, limits, said):
    (tmp_path / "ram_tag_list.txt").write_text(names)
    if limits:
        (tmp_path / "ram_tag_list_threshold.txt").write_text(limits)
    with pytest.raises(WeightsError, match=said):
        read_tags(tmp_path)
