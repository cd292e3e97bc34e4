"""Images are forgotten whatever was done before, and whatever stops it half way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from curation_runs import crop_of, curate, kept, manifest
from damage import raising

from curate import forget
from curate.engine.ledger import tree_digest

FORGOTTEN = "coco/train2017/1"


@pytest.fixture(scope="module")
def unseen(made, tmp_path_factory) -> Path:
    """The output of a run that never saw that image; not to be changed."""
    output = tmp_path_factory.mktemp("unseen") / "set"
    output.mkdir()
    plan = json.loads((made / "plan.json").read_text()) | {"forgotten": [FORGOTTEN]}
    (output / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    assert curate(output) == 0
    return output


def test_forgetting_equals_never_having_seen(copy, unseen):
    crop = crop_of(copy, FORGOTTEN)["crop_id"]
    assert curate(copy, "forget", FORGOTTEN) == 0
    assert FORGOTTEN not in {row["image_id"] for row in manifest(copy)}
    assert crop not in kept(copy) and not holding(copy, crop)
    assert tree_digest(copy) == tree_digest(unseen)
    assert crop_of(copy, "voc/voc/2012_000001")["kept"]  # no longer anybody's copy


def holding(output: Path, crop: str) -> list[Path]:
    """Files that name a crop, in their names or inside."""
    files = (path for path in output.rglob("*") if path.is_file())
    return [path for path in files if crop in path.name or crop.encode() in path.read_bytes()]


def unpublish(output: Path) -> None:
    """So that a command on a copy need not make these again."""
    for name in ("packed", "pack", "done/pack", "report"):
        shutil.rmtree(output / name)


@pytest.mark.parametrize("command", [["forget", FORGOTTEN], ["run"]])
def test_forgetting_goes_on_where_it_was_stopped(copy, unseen, monkeypatch, command):
    crop = crop_of(copy, FORGOTTEN)["crop_id"]
    with monkeypatch.context() as patched:
        patched.setattr(forget, "drop_crops", raising(KeyboardInterrupt()))
        assert curate(copy, "forget", FORGOTTEN) == 130
    assert not list((copy / "packed").iterdir())
    assert curate(copy, *command) == 0
    assert not holding(copy, crop)
    assert tree_digest(copy) == tree_digest(unseen)


def test_forgetting_is_not_held_up_by_a_review(copy, tmp_path, capsys):
    crop = crop_of(copy, FORGOTTEN)["crop_id"]
    review = tmp_path / "review.csv"
    review.write_text(f"crop_id,keep\n{crop},1\n")
    assert curate(copy, "select", f"--review={review}") == 0
    assert curate(copy, "forget", FORGOTTEN) == 0
    assert "review: 1 crops of it are not there" in capsys.readouterr().out
    assert not holding(copy, crop)


def test_forgetting_does_not_pass_old_crops_for_new_ones(copy):
    assert curate(copy, "select", "--set=square.side_min=450") == 0  # the crops are as before
    unpublish(copy)
    assert curate(copy, "forget", "person/all/coffee.jpg") == 0
    assert not crop_of(copy, "person/all/rocket.jpg")["reason"]
    assert curate(copy, "crop") == curate(copy, "score") == curate(copy, "select") == 0
    assert crop_of(copy, "person/all/rocket.jpg")["reason"] == "crop_small"


def test_forgetting_cleans_scores_that_are_no_longer_asked_for(copy, tmp_path):
    np.savez(tmp_path / "niqe.npz", mu_prisparam=np.linspace(0.5, 2, 36), cov_prisparam=np.eye(36))
    assert curate(copy, "score", f"--niqe_params={tmp_path / 'niqe.npz'}") == 0
    assert curate(copy, "select", "--niqe_params=") == 0
    crop = crop_of(copy, FORGOTTEN)["crop_id"]
    assert any("niqe" in str(path) for path in holding(copy, crop))
    orphan = copy / "crop" / f"coco-00000-{'0' * 16}-crops.parquet"  # as a killed run leaves it
    orphan.write_text(crop)
    unpublish(copy)
    assert curate(copy, "forget", FORGOTTEN) == 0
    assert not holding(copy, crop)


def test_forgetting_all_that_is_kept_leaves_nothing_published(copy, capsys):
    images = [row["image_id"] for row in manifest(copy) if row["kept"]]
    crop = crop_of(copy, images[0])["crop_id"]
    assert curate(copy, "forget", *images, "--set=select.top=0.01") == 2
    assert "nothing is selected" in capsys.readouterr().err
    assert not holding(copy, crop) and not list((copy / "packed").iterdir())


def test_forgetting_a_stranger_changes_nothing(copy, capsys):
    before = tree_digest(copy)
    assert curate(copy, "forget", "coco/train2017/77") == 2
    assert "no image 'coco/train2017/77'" in capsys.readouterr().err
    assert tree_digest(copy) == before
