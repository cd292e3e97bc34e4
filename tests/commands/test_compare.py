"""Comparison sheets: what stands where, what is enlarged, what is refused."""

import argparse
import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageCms
from refusals import status

from osdhuman_jax.commands.compare import GAP, HEAD, Row, fit, focus, main, named_folder, sheet
from osdhuman_jax.images.codec import read_image, read_rgb, read_rgb_bytes, write_png
from osdhuman_jax.images.icc import PRIMARIES, TRANSFERS, rgb_profile


def flat(value: int, h: int = 100, w: int = 100) -> np.ndarray:
    return np.full((h, w, 3), value, np.uint8)


def test_every_picture_is_in_its_cell():
    rows = [Row([flat(10), flat(20)]), Row([flat(30, 50), flat(40, 50)], ("name", "21.3"))]
    made = sheet(rows, ["left", "right"], cell=100, box=None)
    assert made.shape == (HEAD + 100 + GAP + 50 + 22 + GAP, 200 + GAP, 3)
    for y, x, value in [(50, 50, 10), (50, 150, 20), (125, 50, 30), (125, 150, 40)]:
        assert (made[HEAD + y, x] == value).all()
    assert (made[HEAD + 50, 102] == 255).all()
    heads, caption = made[:HEAD], made[HEAD + 157 : HEAD + 178]
    for part in (heads[:, :100], heads[:, 106:], caption[:, :100], caption[:, 106:]):
        assert part.min() < 100  # something is written


def test_a_small_picture_is_scaled_to_its_neighbours():
    large, small = flat(10, 40, 80), flat(20, 10, 20)
    assert fit(small, 60, [large, small]).shape == (30, 60, 3)
    assert sheet([Row([large, small])], ["a", "b"], cell=60).shape == (HEAD + 30 + GAP, 126, 3)


def test_focus_finds_where_pictures_disagree():
    one, two = flat(100), flat(100)
    two[60:80, 20:40] = 200
    assert focus([one, two]) == pytest.approx((0.2, 0.6, 0.2))
    one[:, 50:] = np.random.default_rng(0).integers(0, 255, (100, 50, 3))  # the same detail in both
    two[:, 50:] = one[:, 50:]
    assert focus([one, two]) == pytest.approx((0.2, 0.6, 0.2))
    assert focus([one])[0] >= 0.3  # alone, detail decides


def test_detail_is_enlarged_in_the_far_corner_from_the_full_picture():
    picture = flat(0, 400, 400)
    picture[40:80, 40:80] = 150
    made = sheet([Row([picture])], ["a"], cell=100, box=(0.1, 0.1, 0.1))[HEAD : HEAD + 100]
    assert (made[60:95, 60:95] == 150).all()  # 45 % of the cell, lower right, less the frame
    assert (made[15, 15] == 150).all() and (made[40, 40] == 0).all()
    assert (made[10, 12] == (230, 60, 40)).all()  # its frame


@pytest.fixture
def folders(tmp_path):
    for kind in ("lq", "hq"):
        (tmp_path / kind).mkdir()
        for i, name in enumerate("abc"):
            write_png(tmp_path / kind / f"{name}.png", flat(20 * i + len(kind)))
    return tmp_path


def run(folder, *flags: str) -> int:
    columns = [f"LQ={folder / 'lq'}", folder / "hq"]
    return status(main, "--columns", *columns, "--output", folder / "out" / "s.png", *flags)


def test_command(folders, capsys):
    assert run(folders, "--names", "c", "a", "--width", "64") == 0
    assert "2 rows, 2 columns" in capsys.readouterr().out
    made = read_image(folders / "out" / "s.png")
    assert made.size == (HEAD + 2 * (64 + 22 + GAP), 128 + GAP)
    assert (made.rgb[HEAD + 5, 5] == 42).all()  # c comes first
    (folders / "lq" / "a.png").unlink()
    assert run(folders, "--rows", "5", "--no_detail") == 0
    said = capsys.readouterr()
    assert "2 rows" in said.out  # what all columns have
    assert "left out: 1 that are not in every column\n" in said.err


def test_command_refuses(folders, capsys):
    for flags, text in [
        (("--names", "a", "z"), "not in every column: z"),
        (("--rows", "0"), "--rows"),
        (("--box", "0", "2", "0.1"), "fractions"),
        (("--names", "a", "b", "a"), "--names has a more than once"),
        (("--seed", "0"), "--seed has no effect on --columns"),
    ]:
        assert run(folders, *flags) == 2
        assert text in capsys.readouterr().err
    (folders / "lq" / "a.png").write_bytes(b"no picture")
    assert run(folders, "--names", "a") == 2
    assert "a.png" in capsys.readouterr().err
    same = f"X={folders / 'lq'}"
    assert main(["--columns", same, same, "--output", str(folders / "x.png")]) == 2
    assert main(["--columns", f"X={folders / 'none'}", "--output", str(folders / "x.png")]) == 2
    assert not (folders / "out").exists() and not (folders / "x.png").exists()


def test_folder_names(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert named_folder(f"Ours={tmp_path}") == ("Ours", tmp_path)
    assert named_folder(str(tmp_path / "c")) == ("c", tmp_path / "c")
    assert named_folder(str(tmp_path / "a=b"))[0] == "a=b"
    for text, said in ((f"={tmp_path}", "the name is empty"), ("A=", "the path is empty")):
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            named_folder(text)


def test_a_page_of_pairs_and_its_answers(folders, capsys):
    """Nothing of one page replaces another's key, without which its answers are worthless."""
    out, blind = folders / "ab", ["--blind", f"LQ={folders / 'lq'}", f"HQ={folders / 'hq'}"]
    (folders / "lq" / "c.png").unlink()
    assert status(main, *blind, "--output", out, "--seed", "7") == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"2 pairs: open {out / 'index.html'}") and "left out: 1" in said.err
    assert status(main, *blind, "--output", out) == 2
    assert "has a page; name another folder" in capsys.readouterr().err
    key = json.loads((out / "key.json").read_text())
    side = {name: "left" if method == "HQ" else "right" for name, method in key["left"].items()}
    rows = [f"{key['page']},{name},{side[name]}\n" for name in ("a", "b")]
    (folders / "answers.csv").write_text("page,pair,choice\n" + "".join(rows))
    (folders / "copy.csv").write_bytes((folders / "answers.csv").read_bytes())
    tell = ["--answers", folders / "answers.csv"]
    assert status(main, *tell, "--key", out / "key.json") == 0
    assert "LQ preferred in 0.0 % of 2 decided pairs" in capsys.readouterr().out
    for words, text in (
        (tell, "--answers goes with --key"),
        ([*blind, "--key", out / "key.json", "--output", folders / "x"], "--answers goes with"),
        (blind, "all else with --output"),
        ([*tell, "--key", folders / "none.json"], "none.json: no such file"),
        ([*tell, folders / "no.csv", "--key", out / "key.json"], "no.csv: no such file"),
        ([*tell, folders / "copy.csv", "--key", out / "key.json"], "are the same; give each"),
        ([*tell, "--key", out / "key.json", "--names", "a"], "--names has no effect on --answers"),
        ([*blind, "--width", "320", "--output", folders / "x"], "--width has no effect on --blind"),
        ([*blind, "--box", 0, 0, 1, "--output", folders / "x"], "--box has no effect on --blind"),
        ([*blind, "--names", "a", "a", "--output", folders / "x"], "a more than once"),
        ([*blind[:2], f"HQ={folders / 'lq'}/", "--output", folders / "x"], "are one folder"),
        ([*blind[:2], f"LQ={folders / 'hq'}", "--output", folders / "x"], "one name"),
        ([*blind, "--names", "z", "--output", folders / "x"], "not in every column: z"),
        ([], "one of the arguments"),
    ):
        assert status(main, *words) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1
    assert not (folders / "x").exists()


def test_colours_are_compared_as_they_look(folders):
    """A wide-gamut copy is shown, in a sheet and on a page, as its partner of sRGB is."""
    rgb = np.indices((64, 64)).sum(0)[..., None] + np.array([90, 40, 20])
    profile = rgb_profile(PRIMARIES[9], TRANSFERS[13])
    wide = ImageCms.profileToProfile(
        Image.fromarray(rgb.astype(np.uint8)),
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
    )
    write_png(folders / "lq" / "a.png", np.array(wide), icc=profile)
    write_png(folders / "hq" / "a.png", rgb.astype(np.uint8))
    assert run(folders, "--names", "a", "--width", "64", "--no_detail") == 0
    made = read_rgb(folders / "out" / "s.png")[HEAD : HEAD + 64].astype(int)
    blind = ["--blind", folders / "lq", folders / "hq", "--names", "a", "--output", folders / "ab"]
    assert status(main, *blind) == 0
    page = (folders / "ab" / "index.html").read_text()
    left, right = (
        read_rgb_bytes(base64.b64decode(data)).astype(int)
        for data in re.findall('image/png;base64,([^"]+)', page)
    )
    assert np.abs(np.subtract(np.array(wide), rgb)).max() > 10
    assert np.abs(made[:, :64] - made[:, 64 + GAP :]).max() <= 2
    assert np.abs(left - right).max() <= 2
