"""Tags of the kept crops by RAM, found by the package's own command, and what is in its way."""

import io
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_diffbody
from convert import call, filled
from curation_runs import curate, manifest
from PIL import Image

from curate.engine.ledger import ShardLedger
from curate.publish import tags
from curate.selection.manifest import Crops
from osdhuman_jax.images.sizes import squash
from osdhuman_jax.methods.prompts import ImageTagger
from osdhuman_jax.networks.configs import TaggerConfig
from osdhuman_jax.networks.tagger import Tagger
from osdhuman_jax.weights import save_part

NAMES = ["man", "dog", "hat", "3, 4", "sky"]
SIZES = TaggerConfig(len(NAMES), 4, 8, 1, 2, 8)


def kept_rows(output: Path) -> list[dict]:
    return [row for row in manifest(output) if row["kept"]]


@pytest.fixture(scope="module")
def found(made, tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """A model folder with a random tagger, and by hand the tags of the kept crops."""
    folder = tiny.save(tmp_path_factory.mktemp("ram") / "model")
    encoder = tiny.model().restorer.prompter.image_encoder
    head = filled(lambda rngs: Tagger(SIZES, tiny.DEEP.swin.image_proj_dim, rngs=rngs), 3)
    net, crops = ImageTagger(encoder, head), Crops(ShardLedger(made))
    save_part(folder, "tagger", SIZES, net)
    # Each tag is on some of the crops: its threshold is the mean of its probabilities.
    rows = kept_rows(made)
    rgb = [np.asarray(Image.open(io.BytesIO(crops.png(row)))) for row in rows]
    logits = call(net, np.stack([squash(pixels, encoder.input_size) for pixels in rgb]))
    likely = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    limits = likely.mean(axis=0)
    assert np.abs(likely - limits).min() > 1e-6  # else rounding would decide
    lists = {"ram_tag_list": NAMES, "ram_tag_list_threshold": [f"{x:.9f}" for x in limits]}
    small = {f"tags/{name}.txt": "\n".join(lines).encode() for name, lines in lists.items()}
    tiny_diffbody.add(folder, small)
    above = likely > limits
    return folder, {
        row["crop_id"]: [name for name, yes in zip(NAMES, line, strict=True) if yes]
        for row, line in zip(rows, above, strict=True)
    }


def test_figure_7_needs_no_other_program(copy, found, monkeypatch, capsys):
    """Counts are those by hand; a second report looks at nothing; what is forgotten is gone."""
    model, expected = found
    assert curate(copy, "report", "--tags", "ram", str(model)) == 0
    assert f"tags: {len(expected)} crops for RAM, 0 done" in capsys.readouterr().out
    facts = json.loads((copy / "report" / "report.json").read_text())["tags"]
    assert facts["tags"] == Counter(sorted(name for names in expected.values() for name in names))
    assert (facts["by"], facts["images"]) == ("RAM", len(expected)) and len(facts["tags"]) == 5
    assert (copy / "report" / "figure_7.png").stat().st_size > 1000
    assert "by RAM" in (copy / "report" / "report.md").read_text()
    # All is known, but for a line that a kill tore.
    (lines,) = (copy / "tags").iterdir()
    whole = lines.read_bytes()
    monkeypatch.setattr(tags.subprocess, "run", no_process)
    assert tags.ram_tags(ShardLedger(copy), model) == expected
    lines.write_bytes(whole[:-9])
    # The plan has the model.
    with pytest.raises(AssertionError, match="1 picture"):
        curate(copy, "report")
    lines.write_bytes(whole)
    for name in ("packed", "pack", "done/pack"):
        shutil.rmtree(copy / name)  # so that nothing is packed anew
    gone = next(row for row in kept_rows(copy) if row["dataset"] == "person")
    assert gone["crop_sha256"] in lines.read_text()
    # An empty value takes tags back.
    assert curate(copy, "forget", gone["image_id"], "--tags=") == 0
    assert gone["crop_sha256"] not in lines.read_text()
    assert lines.read_bytes().count(b"\n") == len(expected) - 1
    assert not (copy / "report" / "figure_7.png").exists()


def no_process(command: list[str], **_) -> subprocess.CompletedProcess:
    """In the place of the command: says how many pictures it was given."""
    folder = next(word for word in command if word.startswith("--pictures=")).partition("=")[2]
    raise AssertionError(f"{len(list(Path(folder).iterdir()))} picture")


def test_a_command_that_fails_is_one_line_more(copy, found, tmp_path, capfd):
    model = shutil.copytree(found[0], tmp_path / "model")
    (model / "tagger.safetensors").write_bytes(b"damaged")
    assert curate(copy, "report", "--tags", "ram", str(model)) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert said[-1] == (
        f"curate: --tags ram {model}: `osdhuman captions` ended with status 2, for the reason above"
    )
    assert "tagger.safetensors: its bytes do not match" in said[-2]


def damaged(folder: Path, **values) -> None:
    meta = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(meta | values))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: shutil.rmtree(f), "no model folder, it has no config.json"),
        (lambda f: (f / "config.json").write_text("["), "its config.json is damaged"),
        (lambda f: (f / "tagger.safetensors").unlink(), "lacks tagger.safetensors; osdhuman w"),
        (lambda f: damaged(f, digests={}), "lacks base.safetensors, tagger.safetensors, tags/ram_"),
        (
            lambda f: (f / "tags" / "ram_tag_list_threshold.txt").unlink(),
            "lacks tags/ram_tag_list_threshold.txt; osdhuman weights import --ram FILE --tags",
        ),
        (lambda f: damaged(f, tagger="dape"), "its tags are those of dape, not of RAM"),
    ],
)
def test_models_without_tags_are_refused_before_anything_is_done(
    made, found, tmp_path, capsys, spoil, said
):
    model = shutil.copytree(found[0], tmp_path / "model")
    spoil(model)
    assert curate(made, "report", "--tags", "ram", str(model)) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"curate: --tags ram {model}: ") and said in line
    assert line.count("\n") == 1 and not (made / "tags").exists()
