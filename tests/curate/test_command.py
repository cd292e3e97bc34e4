"""The command as a person runs it: forty pictures, no network, no weights."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from curation_runs import SETTINGS, manifest
from litert_files import install, write_package

from benchmarks.curate import USUAL, write_set
from curate import demo
from curate.config import ConfigError, CurateConfig, put
from curate.cropping import ssd
from curate.curation import notes
from curate.engine.ledger import ShardLedger
from curate.plan import CurationPlan, read_plan
from curate.selection.manifest import manifest_parts

ROOT = Path(__file__).parent.parent.parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "x"}


def command(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "curate.run", *flags, "--workers=0"],
        cwd=ROOT,
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """40 images: 24 of a COCO set, a folder of people without labels, the others."""
    root = tmp_path_factory.mktemp("forty")
    folder = root / "folder"
    for i, rgb in enumerate((demo.photograph("astronaut"), demo.photograph("coffee"))):
        demo.write_jpeg(folder / f"{i}.jpg", np.roll(rgb, 40 * i, axis=1))
    sources = [write_set(root / "coco", 22, USUAL), demo.write_coco(root / "small")]
    sources += [demo.write_voc(root / "voc"), demo.write_person(root / "person")]
    flags = [f"--source={source}" for source in [*sources, f"folder={folder}"]]
    return root / "set", command(
        f"--output={root / 'set'}", "--detector=whole-image", "--codec=png", *flags, *SETTINGS
    )


def test_forty_images_without_network_or_weights(ran):
    output, process = ran
    assert process.returncode == 0, process.stderr
    rows = manifest(output)
    assert len({row["image_id"] for row in rows}) == 40
    for split in ("train", "val"):
        facts = json.loads((output / "packed" / split / "dataset.json").read_text())
        assert facts["crops"] == sum(row["split"] == split and row["kept"] for row in rows) > 0


def test_what_is_missing_is_said_plainly(ran):
    output, process = ran
    assert "not computed: brisque, niqe, clipiqa, maniqa, musiq" in process.stdout
    assert "detector: whole-image, of folder" in process.stdout
    assert "thresholds: none, rank only" in process.stdout
    text = (output / "report" / "report.md").read_text()
    assert "Classic metrics" in text and "pictures are by whole-image" in text


def test_progress_and_funnel_are_shown(ran):
    _, process = ran
    assert re.search(r"^crop: 40/40 images, [\d.]+/s, [\d.]+ s  \w+ \d+", process.stderr, re.M)
    assert re.search(r"^images +.* 40$", process.stdout, re.M)
    assert re.search(r"^kept +.* \d+$", process.stdout, re.M)


def test_calibrated_thresholds_are_shown_beside_the_usual_ones():
    config = CurateConfig()
    config.select.calibrate = 0.744
    facts = {"metrics": ["clipiqa", "niqe"], "thresholds": {"clipiqa": 0.71234, "niqe": 3.5}}
    lines = notes(facts | {"settings": asdict(config), "blur_min": 61.23}, [])
    assert "thresholds: clipiqa 0.7123, niqe 3.5" in lines
    assert any("keep 74.4%" in line and "musiq 70, niqe 4" in line for line in lines)
    assert "not computed: brisque, maniqa, musiq" in lines[1] and "61.2" in lines[-1]


def test_a_section_of_settings_takes_no_value():
    config = CurateConfig()
    with pytest.raises(ConfigError, match="select=0.5"):
        put(config, "select", "0.5")
    assert config == CurateConfig()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_plan_that_an_editor_saved_is_read(tmp_path, encoding):
    plan = CurationPlan(CurateConfig(), [], review="/prüfung.csv")
    plan.write(tmp_path)
    text = (tmp_path / "plan.json").read_text(encoding="utf-8")
    (tmp_path / "plan.json").write_text(text, encoding=encoding)
    assert read_plan(tmp_path) == plan


def test_the_demonstration_says_that_it_has_no_detector(tmp_path, monkeypatch, capsys):
    pictures, detectors = tmp_path / "pictures", tmp_path / "detectors"
    assert "--detector=none" in demo.detector_flags(pictures, demo.find_detector(detectors))
    said = capsys.readouterr().out
    assert said.startswith("demo: without the unlabelled source: ") and said.count("\n") == 1
    assert "no such file; `make detector` downloads it" in said and not pictures.exists()
    install(monkeypatch, lambda batch: [], [])
    detectors.mkdir()
    path = write_package(detectors / "mediapipe-objectron-1.0.tgz", ssd.ASSETS)
    flags = demo.detector_flags(pictures, demo.find_detector(detectors))
    assert flags[0] == f"--source=folder={pictures}" and not capsys.readouterr().out
    assert {"--detector=ssd", f"--persons_weights={path}"} < set(flags)
    assert len(list(pictures.iterdir())) == 4


if COCO := os.environ.get("COCO_VAL2017"):  # a folder with val2017/ and the instances json

    @pytest.mark.slow
    def test_coco_val2017(tmp_path):
        labels = next(Path(COCO).rglob("instances_val2017.json"))
        process = command(f"--output={tmp_path}", f"--source=coco={labels},{COCO}/val2017")
        assert process.returncode == 0, process.stderr
        rows = pq.ParquetDataset(manifest_parts(ShardLedger(tmp_path))).read().to_pylist()
        assert len({row["image_id"] for row in rows}) == 5000
