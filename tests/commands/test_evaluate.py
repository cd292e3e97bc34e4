"""Folders in, tables out: values, resumption, and every way in which folders do not fit."""

import json
import math

import cv2
import numpy as np
import pytest
from refusals import status
from skimage.data import astronaut

from osdhuman_jax.commands import evaluate, score_report
from osdhuman_jax.evaluation import ntire, scorers, scoring, tables
from osdhuman_jax.evaluation.metrics import FACES_ONLY, METRICS, psnr_y, ssim_y
from osdhuman_jax.evaluation.scorers import MissingMetric, Scorer
from osdhuman_jax.images.codec import read_image, read_size, write_png

NAMES = ["a", "b/c", "d"]


def photo(index: int, sigma: float) -> np.ndarray:
    """Part of a photograph, the last one of another size, with noise."""
    crop = astronaut()[40 * index : 40 * index + 48, 150 : 214 - 8 * (index == 2)]
    noise = np.random.default_rng(index).normal(0, sigma, crop.shape)
    return np.clip(crop + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    for kind, sigma in {"hq": 0, "lq": 40, "ours": 20, "other": 10}.items():
        for index, name in enumerate(NAMES):
            path = tmp_path / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, photo(index, sigma))
    return tmp_path


def run(folder, *flags: str, out: str = "out", reference: bool = True) -> int:
    words = ["--restored", f"Ours={folder / 'ours'}", "--output", folder / out, *flags]
    words += ["--reference", folder / "hq"] if reference else []
    return status(evaluate.main, *words)


def result(folder, out: str = "out") -> dict:
    return json.loads((folder / out / "metrics.json").read_text())


BOTH = ("--metrics", "psnr,ssim")


def test_values_means_and_files(folders):
    flags = ("--restored", str(folders / "other"), "--degraded", str(folders / "lq"))
    assert run(folders, *BOTH, *flags, "--worst", "2") == 0
    found = result(folders)
    assert found["n"] == 3 and found["missing"] == found["left_out"] == {}
    for method, folder in {"Ours": "ours", "other": "other"}.items():
        for metric, measure in {"psnr": psnr_y, "ssim": ssim_y}.items():
            values = [
                measure(*(read_image(folders / f / f"{n}.png").rgb for f in (folder, "hq")))
                for n in NAMES
            ]
            assert [found["images"][method][n][metric] for n in NAMES] == values
            assert found["means"][method][metric] == pytest.approx(np.mean(values), abs=1e-12)
    difference = found["differences_from_the_first"]["other"]["psnr"]
    assert difference["low"] < difference["mean"] < difference["high"] and difference["n"] == 3
    assert found["metrics"]["psnr"]["variant"].startswith("Y of YCbCr")
    assert found["settings"]["batch_size"] == 8
    rows = (folders / "out" / "table.md").read_text().splitlines()
    assert rows[0] == "| n = 3 | PSNR ↑ | SSIM ↑ |" and rows[3].startswith("| other | **")
    assert len((folders / "out" / "metrics.csv").read_text().splitlines()) == 1 + 2 * (3 + 1)
    assert (folders / "out" / "table.tex").read_text().startswith(r"\begin{tabular}{lcc}")
    written = {p.relative_to(folders / "out").as_posix() for p in (folders / "out").rglob("*.png")}
    sheets = {f"worst/{m}/{k}.png" for m in ("Ours", "other") for k in ("psnr", "ssim")}
    assert written == sheets | {"plots/psnr.png", "plots/ssim.png"}
    assert read_size(folders / "out" / "worst" / "Ours" / "psnr.png")[1] == 3 * 320 + 2 * 6


def test_names_that_do_not_match(folders, capsys):
    (folders / "ours" / "b" / "c.png").unlink()
    write_png(folders / "ours" / "extra.png", photo(0, 0))
    assert run(folders, *BOTH) == 2
    error = capsys.readouterr().err
    assert f"b/c: not in {folders / 'ours'}" in error and f"extra: not in {folders / 'hq'}" in error
    assert not (folders / "out").exists()
    assert run(folders, *BOTH, "--allow_missing") == 0
    found = result(folders)
    assert found["n"] == 2 and set(found["left_out"]) == {"b/c", "extra"}
    assert set(found["images"]["Ours"]) == {"a", "d"}


def test_corrupt_file(folders, capsys):
    path = folders / "ours" / "a.png"
    path.write_bytes(path.read_bytes()[:-900])  # its header is whole
    assert run(folders, *BOTH) == 2
    assert f"{path}: damaged image" in capsys.readouterr().err
    assert not (folders / "out").exists()
    assert run(folders, *BOTH, "--allow_missing") == 0
    assert set(result(folders)["images"]["Ours"]) == {"b/c", "d"}


@pytest.mark.parametrize("flags", [(), ("--allow_missing",)])
def test_size_mismatch(folders, capsys, flags):
    write_png(folders / "ours" / "d.png", photo(2, 0)[1:])
    assert run(folders, *BOTH, *flags) == 2
    assert "unequal size:\n  d: Ours 56 x 47, reference 56 x 48\n" in capsys.readouterr().err


def test_what_is_refused(folders, capsys):
    for flags, text in [
        (("--metrics", "psnr,sharp"), "no metric sharp; there are dists"),
        (("--restored", f"Ours={folders / 'other'}"), "one name"),
        (("--restored", f"a/b={folders / 'other'}"), "no name"),
        (("--restored", f"X={folders / 'none'}"), "no folder with images"),
        (("--weights", str(folders / "none")), "no such folder"),
        (("--degraded", str(folders / "none")), "no such folder"),
        (("--batch_size", "0"), "--batch_size"),
    ]:
        assert run(folders, *flags) == 2, flags
        assert text in capsys.readouterr().err
    assert run(folders, "--metrics", "ssim", reference=False) == 2
    assert "--reference is needed for ssim" in capsys.readouterr().err
    assert run(folders, out="ours/scores") == 2
    assert not (folders / "out").exists()


def counted(monkeypatch, limit: float = math.inf) -> list[int]:
    """PSNR counts its calls, and is interrupted after `limit`."""
    calls: list[int] = []

    def measure(a, b):
        if len(calls) >= limit:
            raise KeyboardInterrupt
        calls.append(1)
        return psnr_y(a, b)

    monkeypatch.setitem(scorers.NATIVE, "psnr", measure)
    return calls


def test_interrupted_and_resumed(folders, monkeypatch):
    flags = ("--metrics", "psnr", "--batch_size", "1")
    assert run(folders, *flags, out="whole") == 0
    counted(monkeypatch, limit=2)
    with pytest.raises(KeyboardInterrupt):
        run(folders, *flags)
    assert not (folders / "out" / "metrics.json").exists()
    ledger = folders / "out" / "scores.jsonl"
    assert len(ledger.read_text().splitlines()) == 2
    ledger.write_text(ledger.read_text()[:-9])  # as if killed while writing
    calls = counted(monkeypatch)
    assert run(folders, *flags) == 0
    assert len(calls) == 2  # the torn line's picture and the third
    kept = ("table.md", "table.tex", "metrics.csv", "plots/psnr.png", "worst/Ours/psnr.png")
    for name in kept:
        whole, resumed = (folders / out / name for out in ("whole", "out"))
        assert whole.read_bytes() == resumed.read_bytes()
    assert run(folders, *flags) == 0 and len(calls) == 2
    write_png(folders / "ours" / "a.png", photo(0, 5))  # another picture under the old name
    assert run(folders, *flags) == 0 and len(calls) == 3
    write_png(folders / "hq" / "d.png", photo(2, 1))
    assert run(folders, *flags) == 0 and len(calls) == 4
    more = ("--restored", f"Other={folders / 'other'}")  # costs its own alone
    assert run(folders, *flags, *more) == 0 and len(calls) == 7
    assert set(result(folders)["means"]) == {"Ours", "Other"}


def stand_in(monkeypatch, score, **identities):
    """NIQE, FID and blurred areas by `score`; all other metrics lack something."""

    def opened(metric, weights, model, detector):
        if metric.name not in ("niqe", "fid", "hmb-area"):
            raise MissingMetric(f"needs {metric.name}.pth")
        return Scorer(metric, {"metric": metric.name, **identities}, score)

    monkeypatch.setattr(scoring, "open_scorer", opened)


def test_missing_metrics_are_dashes_and_the_others_run(folders, monkeypatch, capsys):
    def score(restored, reference):
        assert reference is None  # NIQE has none
        return [float(x.mean()) for x in restored]

    stand_in(monkeypatch, score)
    assert run(folders, "--metrics", "niqe,musiq,dists") == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "| n = 3 | DISTS ↓ | MUSIQ ↑ | NIQE ↓ |"
    assert output.out.splitlines()[2].startswith("| Ours | – | – | 1")
    assert "evaluate: musiq: needs musiq.pth\n" in output.err
    assert result(folders)["means"]["Ours"]["musiq"] is None
    assert result(folders)["missing"].keys() == {"dists", "musiq"}


def test_one_bad_picture_leaves_no_mean_but_all_other_values(folders, monkeypatch, capsys):
    def score(restored, _reference):
        if restored.shape[2] == 56:
            raise AssertionError("too small for NIQE\nmore")
        return [math.nan if len(restored) > 1 else float(x[0, 0, 0]) for x in restored]

    stand_in(monkeypatch, score)
    assert run(folders, "--metrics", "niqe") == 1
    assert "evaluate: niqe: Ours, d: too small for NIQE\n" in capsys.readouterr().err
    found = result(folders)
    assert found["means"]["Ours"]["niqe"] is None
    assert found["images"]["Ours"]["d"]["niqe"] is None
    assert found["images"]["Ours"]["a"]["niqe"] == float(photo(0, 20)[0, 0, 0])
    assert not (folders / "out" / "plots").exists()


def test_sets_are_compared_once(folders, monkeypatch):
    seen = []

    def score(restored, reference):
        contents = [[read_image(p).rgb for p in sorted(d.iterdir())] for d in (restored, reference)]
        seen.append(contents)
        return [1.5]

    stand_in(monkeypatch, score, version=1)
    cv2.imwrite(str(folders / "hq" / "a.jpg"), photo(0, 0))
    (folders / "hq" / "a.png").unlink()
    for _ in range(2):
        assert run(folders, "--metrics", "fid") == 0
    assert result(folders)["means"]["Ours"]["fid"] == 1.5 and len(seen) == 1
    for mine, name in zip(seen[0][0], NAMES, strict=True):
        np.testing.assert_array_equal(mine, read_image(folders / "ours" / f"{name}.png").rgb)
    np.testing.assert_array_equal(seen[0][1][0], read_image(folders / "hq" / "a.jpg").rgb)
    stand_in(monkeypatch, score, version=2)  # another library or weight: all anew
    assert run(folders, "--metrics", "fid") == 0 and len(seen) == 2


def test_all_is_what_the_folders_allow():
    names = [metric.name for metric in evaluate.wanted("all", reference=True, model=False)]
    apart = ("lpips-vgg", "hmb-area", *FACES_ONLY)
    assert names == [name for name in METRICS if name not in apart]
    assert "lpips-vgg" in {m.name for m in evaluate.wanted("all", reference=True, model=True)}
    without = [metric.name for metric in evaluate.wanted("all", reference=False, model=True)]
    later = "hyperiqa tres fgresq".split()
    older = "clipiqa maniqa-pipal maniqa musiq qalign niqe brisque liqe ilniqe".split()
    assert without == older + later
    both = {"degraded": True, "detector": True}
    assert evaluate.wanted("all", reference=False, model=False, **both)[-1].name == "hmb-area"
    assert "hmb-area" not in {m.name for m in evaluate.wanted("all", True, True, degraded=True)}


def test_a_papers_columns_stand_as_it_prints_them():
    def titles(*asked):
        return [metric.head for metric in evaluate.wanted(*asked)]

    whole = "DISTS ↓,LPIPS ↓,TOPIQ ↑,FID ↓,CLIPIQA ↑,MANIQA ↑,NIQE ↓,LIQE ↑,IL-NIQE ↓"
    assert titles("haodiff", True, False) == whole.split(",")
    # Without a reference they are those of PERSONA-Test and MPII-Test.
    assert titles("haodiff", False, False) == whole.split(",")[4:]
    names = [m.name for m in evaluate.wanted("osdhuman", True, True)]
    assert names[:4] == ["dists", "lpips", "psnr", "ssim"] and names[-1] == "brisque"
    assert titles("haodiff,brisque", False, False)[3] == "BRISQUE ↓"


def test_a_preset_is_a_papers_columns(folders, capsys):
    """NTIRE's are of faces: they come when they are asked for."""
    assert evaluate.parse_args(["--restored", "a", "--output", "b", "--preset", "haodiff"]).metrics
    heads = [metric.head for metric in evaluate.wanted("ntire2026", False, False)]
    assert heads[-2:] == ["FID-FFHQ ↓", "Score ↑"] and len(heads) == 7
    table, preset = folders / "table.csv", ("--preset", "ntire2026")
    table.write_text("Filename,Dataset,ID_Sim\na.png,CelebA,0.9\nz.png,CelebA,0.9\n")
    for flags, text in (
        (("--preset", "lcudiff"), "'lcudiff' (choose from"),
        (("--preset", "haodiff", "--metrics", "psnr"), "not allowed with argument"),
        (("--quoted", "persona"), "choose from"),
        (("--identity", f"X={folders / 'x.csv'}"), "--identity X: no method of that name"),
        (("--identity", f"Ours={folders / 'x.csv'}"), "x.csv: no such file"),
        (("--identity", f"Ours={table}"), "--identity goes with ntire2026"),
        ((*preset, *[f"--identity=Ours={table}"] * 2), "--identity Ours: given 2 times"),
        ((*preset, f"--identity=Ours={table}"), "'z.png': none of the method's pictures"),
        (("--metrics", "psnr,brisque", "--quoted", "persona-val"), "it has dists, lpips, "),
    ):
        assert run(folders, *flags) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1, said
    assert not (folders / "out").exists()


def test_ntires_score_counts_for_who_keeps_the_persons(folders, monkeypatch, capsys):
    """Four methods of one value: one gate each way, one that nobody looked at."""

    def opened(metric, weights, model, detector):
        value = [50.0 if metric.name in ("musiq", "fid-ffhq") else 2.0]
        size = 1 if metric.whole_set else len(NAMES)
        score = lambda one, _: value * (size if metric.whole_set else len(one))  # noqa: E731
        return Scorer(metric, {"metric": metric.name}, score)

    monkeypatch.setattr(scoring, "open_scorer", opened)
    # Plots and sheets take seconds, and other tests look at them.
    monkeypatch.setattr(score_report, "plot", lambda *_: b"")
    monkeypatch.setattr(score_report, "_write_worst", lambda *_: None)
    monkeypatch.setattr(ntire, "MOST_BELOW", 1)
    for name, lost in (("Ours", 1), ("other", 2)):
        files = ("a.png", "c.png", "d.png")
        rows = [f"{f},CelebA,{0.4 if i < lost else 0.9}\n" for i, f in enumerate(files)]
        (folders / f"{name}.csv").write_text("Filename,Dataset,ID_Sim\n" + "".join(rows))
    flags = [f"--identity={name}={folders / name}.csv" for name in ("Ours", "other")]
    flags += ["--restored", str(folders / "other"), "--restored", str(folders / "lq")]
    assert run(folders, "--preset", "ntire2026", *flags, reference=False) == 1
    means = result(folders)["means"]
    whole = 2 + 2 + 0.5 + 0.8 + 0.4 + 0.5
    assert means["Ours"]["ntire2026"] == means["lq"]["ntire2026"] == pytest.approx(whole)
    assert means["other"]["ntire2026"] is None
    said = capsys.readouterr()
    assert said.out.splitlines()[3].endswith("| – |")
    assert "ntire2026: other: 2 of 3 faces are less similar than their set asks for" in said.err
    assert "ntire2026: no --identity of lq: whether it keeps" in said.err


def test_quoted_rows_are_marked_and_win_nothing(folders, monkeypatch, capsys):
    stand_in(monkeypatch, lambda pictures, _: [9.0] * len(pictures))
    more = ("--restored", str(folders / "other"), "--quoted", "mpii-test")
    assert run(folders, "--metrics", "niqe", *more, reference=False) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2:4] == ["| Ours | **9.0000** |", "| other | **9.0000** |"]
    assert rows[4] == "| SUPIR (quoted) | 4.4231 |" and len(rows) == 4 + 10
    assert r"HAODiff (quoted) & 3.9450 \\" in (folders / "out" / "table.tex").read_text()
    assert "SUPIR" not in (folders / "out" / "metrics.csv").read_text()
    assert tuple(tables.quoted_sets()) == evaluate.QUOTED_SETS


def test_blur_is_held_against_the_degraded_pictures(folders, monkeypatch, capsys):
    """Their sizes are their own; each is measured once, whatever the number of methods is."""
    seen = []

    def score(pictures, reference):
        assert reference is None
        seen.extend(pictures)
        return [float(picture.mean()) for picture in pictures]

    stand_in(monkeypatch, score)
    for index, name in enumerate(NAMES):
        write_png(folders / "lq" / f"{name}.png", photo(index, 0)[::2, ::2] // 2)
    more = ("--restored", f"Other={folders / 'other'}", "--degraded", str(folders / "lq"))
    flags = ("--metrics", "hmb-area", "--detector", str(folders), *more)
    assert run(folders, *flags, reference=False) == 0
    assert len(seen) == 3 * 3
    base = np.mean([read_image(folders / "lq" / f"{n}.png").rgb.mean() for n in NAMES])
    found = result(folders)
    for method, folder in (("Ours", "ours"), ("Other", "other")):
        means = [read_image(folders / folder / f"{n}.png").rgb.mean() for n in NAMES]
        assert found["means"][method]["hmb-area"] == pytest.approx(np.mean(means) / base)
        assert found["images"][method]["a"]["hmb-area"] == pytest.approx(means[0] / base)
    assert run(folders, *flags, reference=False) == 0 and len(seen) == 9
    # What is sharp already has no ratio: one line, and a dash in the table.
    stand_in(monkeypatch, lambda pictures, _: [0.0] * len(pictures), version=2)
    assert run(folders, *flags, reference=False) == 1
    said = capsys.readouterr()
    assert "hmb-area: the detector sees no motion blur" in said.err and "| Ours | – |" in said.out


def test_blur_needs_every_degraded_picture(folders, monkeypatch, capsys):
    flags = ("--metrics", "hmb-area", "--detector", str(folders))
    assert run(folders, *flags) == 2
    assert "--degraded is needed for hmb-area" in capsys.readouterr().err
    flags += ("--degraded", str(folders / "lq"))
    (folders / "lq" / "a.png").unlink()
    assert run(folders, *flags) == 2
    assert f"a: not in {folders / 'lq'}" in capsys.readouterr().err
    # Shown in worst/ alone, they need not be whole.
    assert run(folders, "--metrics", "psnr", *flags[4:]) == 0
