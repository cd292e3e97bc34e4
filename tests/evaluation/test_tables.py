"""Tables cell by cell, intervals against scipy, a plot that is a picture."""

import math

import numpy as np
import pytest
from scipy import stats

from osdhuman_jax.evaluation import tables
from osdhuman_jax.evaluation.metrics import METRICS
from osdhuman_jax.evaluation.plots import plot
from osdhuman_jax.images.codec import decode

COLUMNS = tables.in_order(["psnr", "niqe"])
MEANS = {
    "A|1": {"psnr": 22.406, "niqe": None},
    "B_2": {"psnr": 22.414, "niqe": 3.5},
    "C": {"psnr": 21.0, "niqe": 4.0},
    "D": {"psnr": 20.0, "niqe": 3.75},
}


def test_columns_stand_as_in_the_paper():
    names = "niqe musiq maniqa-pipal clipiqa fid ssim psnr lpips dists".split()
    titles = "DISTS LPIPS PSNR SSIM FID CLIPIQA MANIQA MUSIQ NIQE".split()
    assert [metric.title for metric in tables.in_order(names)] == titles
    arrows = "".join(metric.head[-1] for metric in tables.in_order(names))
    assert arrows == "↓↓↑↑↓↑↑↑↓"


def test_markdown():
    assert tables.markdown(MEANS, COLUMNS, "n = 2") == (
        "| n = 2 | PSNR ↑ | NIQE ↓ |\n"
        "| --- | --- | --- |\n"
        "| A\\|1 | **22.41** | – |\n"  # equal digits share the mark
        "| B_2 | **22.41** | **3.5000** |\n"
        "| C | <u>21.00</u> | 4.0000 |\n"
        "| D | 20.00 | <u>3.7500</u> |\n"
    )


def test_latex():
    assert tables.latex(MEANS, COLUMNS).splitlines() == [
        r"\begin{tabular}{lcc}",
        r"Method & PSNR $\uparrow$ & NIQE $\downarrow$ \\",
        r"\hline",
        r"A|1 & \textbf{22.41} & -- \\",
        r"B\_2 & \textbf{22.41} & \textbf{3.5000} \\",
        r"C & \underline{21.00} & 4.0000 \\",
        r"D & 20.00 & \underline{3.7500} \\",
        r"\end{tabular}",
    ]


def test_one_method_is_not_marked():
    one = {"A": {"psnr": 20.0, "niqe": None}}
    assert tables.markdown(one, COLUMNS).splitlines()[-1] == "| A | 20.00 | – |"


def test_csv_has_every_value_in_full():
    values = {"A": {"x,y": {"psnr": 20.123456789, "niqe": None}}}
    text = tables.csv_text(values, {"A": {"psnr": 20.5, "niqe": 3.0}}, COLUMNS)
    assert text.splitlines() == [
        "method,image,psnr,niqe",
        'A,"x,y",20.123456789,',
        "A,(mean),20.5,3.0",
    ]


def test_difference_is_students_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 12), rng.normal(0, 1, 12)
    found = tables.difference(a.tolist(), b.tolist())
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.mean, found.n) == (pytest.approx((a - b).mean()), 12)


def test_difference_of_a_single_pair_is_unbounded():
    found = tables.difference([3.0], [1.0])
    assert (found.mean, found.low, found.high) == (2, -math.inf, math.inf)
    assert tables.as_json(found) == {"mean": 2, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(("methods", "count"), [(1, 1), (2, 3), (8, 3)])
def test_plot(methods, count):
    values = {f"method {i}": [20.0 + i + k for k in range(count)] for i in range(methods)}
    data = plot(METRICS["psnr"], values)
    assert decode(data).size[1] == (600 if methods == 1 else 1200)
    assert data == plot(METRICS["psnr"], values)
