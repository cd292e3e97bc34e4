"""The command from sources to packed set: what is done stays, changes redo what they touch."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from curation_runs import SETTINGS, crop_of, curate, kept, manifest
from onnx_files import output, write_onnx

from curate import demo
from curate.cropping.index import shard_count
from curate.engine.ledger import BOOKKEEPING, ShardLedger, tree_digest
from curate.engine.parquet import CropFile, write_scores
from curate.plan import read_plan
from curate.selection.manifest import Crops, ManifestError, check_counts, read_manifest

ROOT = Path(__file__).parent.parent.parent


def worked(output: Path) -> list[str]:
    """Jobs of the shards that were worked on, in order."""
    lines = (output / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["job"] for line in lines]


def test_every_image_and_candidate_is_counted_once(made):
    images, rows = {}, manifest(made)
    for row in rows:
        images.setdefault(row["image_id"], []).append(row)
    assert len(images) == 16
    for found in images.values():
        bare = [row for row in found if row["box_index"] is None]
        boxes = [row["box_index"] for row in found if row["box_index"] is not None]
        assert len(boxes) == len(set(boxes)) and (len(bare), len(boxes) > 0) in (
            (1, False),
            (0, True),
        )
    assert all(row["kept"] == (row["reason"] == "") for row in rows)
    reasons = Counter(row["reason"] for row in rows)
    assert {
        "corrupt": 1,
        "grayscale": 1,
        "missing_file": 1,
        "no_person": 1,
    }.items() <= reasons.items()
    assert reasons[""] == len(kept(made)) == 9


@pytest.mark.parametrize("reason", ["", "tired"])
def test_the_counting_law_is_enforced(made, reason):
    table = read_manifest(ShardLedger(made), ["dataset", "image_id", "box_index", "reason"])
    check_counts(table)
    rows = table.to_pylist()
    if reason:
        rows[0]["reason"] = reason
    else:
        rows.append(next(row for row in rows if row["box_index"] is None))
    with pytest.raises(
        ManifestError, match="unknown reasons tired" if reason else "images are not"
    ):
        check_counts(type(table).from_pylist(rows, table.schema))


def test_the_mirrored_copy_is_dropped_and_named(made):
    assert crop_of(made, "voc/voc/2012_000001")["reason"] == "dup_near"
    original = crop_of(made, "coco/train2017/1")
    assert original["kept"] and original["group_id"]


def test_second_run_does_nothing_and_changes_nothing(copy):
    before, jobs = tree_digest(copy), worked(copy)
    assert curate(copy) == 0
    assert tree_digest(copy) == before and worked(copy) == jobs


def test_a_validation_split_that_takes_all_is_said(copy, capsys):
    assert curate(copy, "select", "--set=split.val=4216") == curate(copy, "pack") == 0
    assert "train: none left, split.val is 4,216" in capsys.readouterr().out


def test_a_threshold_redoes_the_selection_only(copy):
    before = len(worked(copy))
    assert curate(copy, "select", "--set=select.top=0.4") == 0
    assert worked(copy)[before:] == ["select"]
    assert len(kept(copy)) < 9


def test_a_crop_setting_redoes_crops_and_what_hangs_on_them(copy):
    before = len(worked(copy))
    assert curate(copy, "--set=square.side_min=450") == 0
    assert set(worked(copy)[before:]) == {"crop", "score-classic", "select", "pack"}
    assert crop_of(copy, "person/all/rocket.jpg")["reason"] == "crop_small"


def test_a_crop_setting_without_effect_redoes_nothing_further(copy):
    before = len(worked(copy))
    assert curate(copy, "--set=square.side_min=385") == 0
    assert set(worked(copy)[before:]) == {"crop"}


def test_crops_without_a_body_are_counted_and_no_more(tmp_path, made):
    """The first person by feet alone, the second one by the head, others without keypoints."""
    sources = demo.write_sources(tmp_path / "sources")
    labels = next((tmp_path / "sources").rglob("instances_train2017.json"))
    values = json.loads(labels.read_text())
    feet, head = [0] * 45 + [200, 500, 2, 260, 500, 2], [200, 100, 2] + [0] * 48
    for annotation, points in zip(values["annotations"], (feet, head), strict=False):
        annotation["keypoints"] = points
    # COCO's seventeen, of which only the ends matter here.
    names = ["nose", *(f"point_{place}" for place in range(14)), "left_ankle", "right_ankle"]
    values["categories"] = [{**kind, "keypoints": names} for kind in values["categories"]]
    labels.write_text(json.dumps(values))
    output = tmp_path / "set"
    assert curate(output, *SETTINGS, "--set=body.gate=true", sources=sources) == 0
    dropped = crop_of(output, "coco/train2017/1")
    assert dropped["reason"] == "no_body" and "keypoints" in dropped["detail"]
    assert (
        dropped["box_flags"] == ["sees left_ankle right_ankle"] and dropped["crop_sha256"] is None
    )
    whole = crop_of(output, "coco/train2017/2")
    assert (whole["reason"], whole["box_flags"]) == ("", ["sees nose"])
    # All others are as they were; the copy of the dropped one is a copy no more.
    reasons = {row["image_id"]: row["reason"] for row in manifest(made)}
    assert reasons | {"coco/train2017/1": "no_body", "voc/voc/2012_000001": ""} == {
        row["image_id"]: row["reason"] for row in manifest(output)
    }
    before = tree_digest(output)
    assert curate(output) == 0 and tree_digest(output) == before


def test_a_source_more_leaves_the_others_alone(copy, sources, tmp_path):
    more = demo.write_voc(tmp_path / "more")
    before = len(worked(copy))
    assert curate(copy, sources=[*sources, more]) == 0
    jobs = Counter(worked(copy)[before:])
    assert (jobs["index"], jobs["crop"], jobs["score-classic"]) == (1, 1, 1)
    assert crop_of(copy, "voc/voc/2012_000001")["reason"] == "dup_near"
    assert crop_of(copy, "voc2/more/2012_000001")["reason"] == "dup_exact"


def test_shards_do_not_matter(made, tmp_path, sources):
    output = tmp_path / "set"
    assert curate(output, "--set=shard_images=1", *SETTINGS, sources=sources) == 0
    assert len(ShardLedger(output).shards("crop")) > len(ShardLedger(made).shards("crop"))
    assert kept(output) == kept(made)
    columns = ("crop_id", "z", "rank", "reason", "split", "group_id")
    rows = [sorted(str([r[c] for c in columns]) for r in manifest(o)) for o in (output, made)]
    assert rows[0] == rows[1]


def test_the_demonstrations_sources_can_be_written_again(tmp_path):
    """As `make curate-demo` does in the same folder: the run then finds all as it was."""
    root = tmp_path / "sources"
    named = demo.write_sources(root)
    before = tree_digest(root)
    (root / "voc" / "JPEGImages" / "2012_000001.jpg").unlink()  # as where it was stopped
    assert demo.write_sources(root) == named
    assert tree_digest(root) == before


def test_small_sources_get_several_shards():
    assert [shard_count(n, 1000) for n in (0, 7, 16, 200, 5000, 100_000)] == [1, 1, 2, 16, 16, 100]


@pytest.mark.parametrize(
    ("names", "reasons", "message"),
    [
        (["chelsea"], ["crop_small"], "Eq. 1 needs two scored crops at least; there are 0"),
        (["coffee"], ["unranked"], "Eq. 1 needs two scored crops at least; there are 1"),
        (["coffee", "rocket"], ["not_top_third", "not_top_third"], "nothing is selected"),
    ],
)
def test_small_pools_have_their_manifest_and_report(tmp_path, capsys, names, reasons, message):
    for name in names:
        demo.write_jpeg(tmp_path / "in" / f"{name}.jpg", demo.photograph(name))
    flags = [*SETTINGS, "--set=select.top=0.4"]
    assert curate(tmp_path / "set", *flags, sources=[f"person={tmp_path / 'in'}"]) == 2
    said = capsys.readouterr()
    assert message in said.out + said.err and "nothing is selected" in said.err
    assert sum(line.startswith("curate:") for line in said.err.splitlines()) == 1
    assert [row["reason"] for row in manifest(tmp_path / "set")] == reasons
    assert "0 crops kept" in (tmp_path / "set" / "report" / "report.md").read_text()
    status = curate(tmp_path / "set", "select")
    assert status == (0 if message == "nothing is selected" else 2)


def test_the_blur_threshold_can_come_from_the_pool(copy, capsys):
    flags = ["--set=blur.auto=true", "--set=blur.source_min=1000"]  # the second is not used then
    assert curate(copy, "crop", *flags) == curate(copy, "score") == curate(copy, "select") == 0
    rows = manifest(copy)
    sharp = {row["image_id"]: row["lap_src"] for row in rows if row["lap_src"] is not None}
    threshold = max(50.0, float(np.percentile(list(sharp.values()), 20)))
    assert f"blur threshold of the sources: {threshold:.1f}" in capsys.readouterr().out
    blurred = {name for name, value in sharp.items() if value < threshold}
    dropped = {row["image_id"] for row in rows if row["reason"] == "blur" and row["crop_id"]}
    assert set() < dropped <= blurred
    assert {row["image_id"] for row in rows if not row["reason"]} <= set(sharp) - blurred


def test_a_folder_goes_on_as_it_was_measured(copy):
    assert curate(copy, "crop", "--set=blur.of=picture") == 0
    # A plan of before there was a choice, whose crops stay done.
    plan = json.loads((copy / "plan.json").read_bytes())
    del plan["config"]["blur"]["of"]
    (copy / "plan.json").write_text(json.dumps(plan))
    before = len(worked(copy))
    assert curate(copy, "crop") == 0 and worked(copy)[before:] == []
    assert read_plan(copy).config.blur.of == "picture"
    assert curate(copy, "crop", "--set=blur.of=person") == 0
    assert set(worked(copy)[before:]) == {"crop"}


def test_numbers_of_two_ways_to_measure_are_not_mixed(copy, capsys):
    ledger = ShardLedger(copy)
    # As if a run with another measure of blur had been killed after one shard.
    path = copy / "done" / "crop" / "person-00000.json"
    marker = json.loads(path.read_text())
    for way in ("picture", "person"):
        marker["facts"]["blur_of"] = way
        path.write_text(json.dumps(marker))
        assert curate(copy, "select") == (2 if way == "picture" else 0)
    assert "blur was measured by person and by picture: run `crop`" in capsys.readouterr().err
    # As an earlier version scored.
    crops = CropFile(ledger.output("crop", "person-00000", "crops.parquet"))
    names = [name for name, _ in crops.items()]
    with ledger.workspace() as folder:
        rows = [{"crop_id": name, "sharpness": 1.0} for name in names]
        write_scores(folder / "scores.parquet", ["sharpness"], rows)
        ledger.commit("score-classic", "person-00000", "earlier", folder, {})
    assert curate(copy, "select") == 2
    assert "score-classic person-00000 was scored by other metrics" in capsys.readouterr().err
    assert curate(copy, "score") == curate(copy, "select") == 0


def test_licences_can_be_demanded(copy):
    assert curate(copy, "select", "--license_allow=CC-BY 2.0,unknown") == 0
    rows = manifest(copy)
    assert {row["license"] for row in rows if row["kept"]} == {"CC-BY 2.0", ""}
    assert {row["reason"] for row in rows if row["license"] == "CC-BY-NC 2.0"} <= {
        "license",
        "no_person",
    }


def test_a_review_is_obeyed(copy, tmp_path, capsys):
    out = next(row for row in manifest(copy) if row["reason"] == "not_top_third")["crop_id"]
    kept_now = next(iter(kept(copy)))
    review = tmp_path / "review.csv"
    with open(review, "w", newline="") as file:
        csv.writer(file).writerows([("crop_id", "keep"), (out, 1), (kept_now, 0)])
    assert curate(copy, "select", f"--review={review}") == 0
    assert out in kept(copy) and kept_now not in kept(copy)
    review.write_text(review.read_text() + f"crop_id,keep\n{kept_now},1\n")  # a later word
    assert curate(copy, "select") == 0
    assert out in kept(copy) and kept_now in kept(copy)
    review.write_text("crop_id,keep\nnobody,1\n")
    assert curate(copy, "select", f"--review={review}") == 2
    review.write_text("crop_id,keep\nnobody,yes\n")
    assert curate(copy, "select", f"--review={review}") == 2
    assert "line 2: keep is 'yes'" in capsys.readouterr().err
    review.write_bytes(b"\xff\xfe\0crop_id")
    assert curate(copy, "select", f"--review={review}") == 2
    assert "needs columns crop_id and keep" in capsys.readouterr().err


def test_photographs_of_another_set_are_barred(made, copy, tmp_path):
    folder = tmp_path / "eval"
    demo.write_jpeg(folder / "a.jpg", demo.photograph("hopper")[:, ::-1])
    assert curate(copy, "select", f"--exclude={folder}") == 0
    assert crop_of(copy, "coco/train2017/2")["reason"] == "split_conflict"
    assert curate(copy, "select", f"--exclude={made}") == 0  # a run's output: all it kept
    assert kept(copy) == {}


def test_a_test_set_shares_nothing_with_the_training_set(made, tmp_path, sources):
    output = tmp_path / "test"
    flags = ["--profile=test", f"--exclude={made}", "--set=split.test=2"]
    assert curate(output, *flags, f"--stats={stats(made)}", sources=sources) == 0
    groups = {row["group_id"] for row in manifest(made) if row["kept"]}
    rows = [row for row in manifest(output) if row["kept"]]
    assert {row["split"] for row in rows} == {"test"} and len(rows) <= 2
    assert not groups & {row["group_id"] for row in rows}
    assert (
        json.loads(stats(output).read_text())["pool"] == json.loads(stats(made).read_text())["pool"]
    )


def stats(output: Path) -> Path:
    return ShardLedger(output).output("select", "all", "stats.json")


BAD = [
    (["--source=coco=/nowhere.json,/nowhere"], "/nowhere.json is not there"),
    (["--source=rar=x"], "write KIND=PATH"),
    (["--source=a b:person=."], "a name is of letters"),
    (["--source=all:person=."], "; not all or kept"),
    (["--source=person=.", "--source=person:folder=."], "another one is named person too"),
    (["--set=select.topp=1", "--source=person=."], "no setting 'select.topp'"),
    (["--set=select.top=much", "--source=person=."], "not a float"),
    (["--set=select.top=2", "--source=person=."], "select.top is a share"),
    (["--profile=best", "--source=person=."], "no profile 'best'"),
    ([], "no sources"),
    (["--source=folder=."], "need --detector"),
    (["select", "--source=person=."], "run `index` first"),
    (["--source=person=.", "--to=zip"], "no container 'zip'"),
    (["--source=person=.", "--review=/nowhere.csv"], "--review /nowhere.csv: no such file"),
    (["--source=person=.", "--stats=/nowhere.json"], "--stats /nowhere.json: no such file"),
    (["--source=person=.", "--tags=/nowhere.parquet"], "--tags /nowhere.parquet: no such file"),
    (["--source=person=.", f"--tags={__file__}"], "columns crop_id and tags (--tags= for none)"),
    (["--source=person=.", "--exclude=/nowhere"], "--exclude /nowhere: no such folder"),
    (["--source=person=.", "--iqa=pyiqa"], "no niqe_modelparameters.mat"),  # the fourth group
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, flags, message):
    assert curate(tmp_path / "set", *flags) == 2
    captured = capsys.readouterr().err.strip().splitlines()
    assert len(captured) == 1 and message in captured[0]
    assert not (tmp_path / "set" / "done").exists()  # nothing was run


@pytest.mark.parametrize("crashed", [False, True])
def test_a_network_that_is_no_detector_stops_the_run(tmp_path, capsys, crashed):
    demo.write_jpeg(tmp_path / "in" / "a.jpg", demo.photograph("coffee"))
    network = write_onnx(tmp_path / "b.onnx", np.zeros((1, 8, 6)), np.zeros((1, 8, 6)))
    if crashed:  # then pictures are looked at in a process of their own
        ShardLedger(tmp_path / "set").begin("crop", "folder-00000")
    flags = ["--detector=yolo", f"--detector_weights={network}", f"--source=folder={tmp_path}/in"]
    assert curate(tmp_path / "set", *flags) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"curate: {network}: gives (1, 8, 6), not (1, 4 + classes, boxes)"


def start(output: Path, sources: list[str]) -> subprocess.Popen:
    """The command in a process group of its own, two workers."""
    command = [sys.executable, "-m", "curate.run", f"--output={output}", "--workers=2", *SETTINGS]
    command += [f"--source={source}" for source in sources]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True)


def files(output: Path) -> list[str]:
    """Results by name, so that a difference is seen at once."""
    found = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] not in BOOKKEEPING)


def kill_and_resume(made: Path, output: Path, sources: list[str], kills: int, seed: int) -> None:
    """Kill the command with its workers after 1 to 5 seconds, again and again; then let it end."""
    rng, killed = random.Random(seed), 0
    while killed < kills:
        process = start(output, sources)
        try:
            process.wait(rng.uniform(1.0, 5.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if process.returncode == 0 or rng.random() < 0.3:  # so that there is always work left
            ledger = ShardLedger(output)
            for shard in ledger.shards("crop")[:2]:
                ledger.output("crop", shard, "crops.parquet").unlink(missing_ok=True)
    assert start(output, sources).wait() == 0
    assert files(output) == files(made)
    assert tree_digest(output) == tree_digest(made)


def test_killed_runs_end_in_the_bytes_of_a_calm_one(made, tmp_path, sources):
    kill_and_resume(made, tmp_path / "set", sources, kills=2, seed=1)


@pytest.mark.chaos
@pytest.mark.slow
def test_killed_twenty_times(made, tmp_path, sources):
    kill_and_resume(made, tmp_path / "set", sources, kills=20, seed=2)


@pytest.mark.chaos
@pytest.mark.slow
def test_two_runs_at_once_end_in_the_same_bytes(tmp_path, sources, made):
    both = [start(tmp_path / "set", sources) for _ in range(2)]
    statuses = [process.wait() for process in both]
    assert start(tmp_path / "set", sources).wait() == 0
    assert 0 in statuses
    assert tree_digest(tmp_path / "set") == tree_digest(made)


def test_interrupt_is_said_and_resumed(made, tmp_path, sources):
    process = start(tmp_path / "set", sources)
    while not (tmp_path / "set" / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert curate(tmp_path / "set") == 0
    assert tree_digest(tmp_path / "set") == tree_digest(made)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(made, tmp_path, sources):
    assert curate(tmp_path / "set", "--engine=ray", *SETTINGS, sources=sources) == 0
    assert tree_digest(tmp_path / "set") == tree_digest(made)


@pytest.mark.slow
def test_networks_on_actors_give_the_same_bytes(tmp_path):
    """A detector, and a metric by a network, on Ray's actors and in this process."""
    for name in demo.STAND_INS[:4]:
        demo.write_jpeg(tmp_path / "in" / f"{name}.jpg", demo.photograph(name))
    found = output((32, 32, 44, 44, 0.9, 0, 0))
    network = write_onnx(tmp_path / "a.onnx", found, np.zeros_like(found))
    flags = ["--detector=yolo", f"--detector_weights={network}", f"--persons_weights={network}"]
    flags += [*SETTINGS, f"--source=folder={tmp_path / 'in'}"]
    assert (
        curate(tmp_path / "here", *flags) == curate(tmp_path / "ray", "--engine=ray", *flags) == 0
    )
    assert tree_digest(tmp_path / "ray") == tree_digest(tmp_path / "here")
    assert len(kept(tmp_path / "ray")) > 1


def test_pruning_leaves_what_is_kept_and_all_numbers(copy, tmp_path, capsys):
    before = manifest(copy)
    crops = [row for row in before if row["crop_row"] is not None]
    assert curate(copy, "prune") == 0
    assert (
        f"pictures of {sum(not r['kept'] for r in crops)} dropped crops" in capsys.readouterr().out
    )
    stored = Crops(ShardLedger(copy))
    assert all(stored.stored(row) == row["kept"] for row in crops)
    # All stays done, also where digests are compared, and the page shows what there is.
    assert curate(copy, "prune") == 0
    assert "pictures of 0 dropped crops" in capsys.readouterr().out
    pictures = {p.name: p.stat().st_mtime_ns for p in (copy / "crop").iterdir()}
    shutil.rmtree(copy / "packed")
    assert curate(copy, "--verify") == 0
    assert {p.name: p.stat().st_mtime_ns for p in (copy / "crop").iterdir()} == pictures
    assert manifest(copy) == before
    names = {path.stem for path in (copy / "report" / "review").glob("*.jpg")}
    assert names == {row["crop_id"] for row in before if row["kept"]}


def test_a_pruned_crop_that_is_wanted_after_all(copy, capsys):
    assert curate(copy, "prune") == 0
    assert curate(copy, "select", "--set=select.top=1") == 0
    assert curate(copy, "pack") == 2
    assert "its dropped crops were pruned, and one is wanted" in capsys.readouterr().err
    for marker in (copy / "done" / "crop").iterdir():
        marker.unlink()
    assert curate(copy) == 0


def test_pruning_wants_the_present_selection(copy, capsys):
    assert curate(copy, "prune", "--set=select.top=1") == 2
    assert "run `select`" in capsys.readouterr().err
