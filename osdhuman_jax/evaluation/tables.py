"""Tables of methods by metrics, as the paper prints them: Markdown, LaTeX, CSV.

`evaluate` makes a table in each of these formats of the means that it computed. Columns, arrows and
decimals are those of `metrics.METRICS`; the best value of a column is bold, the second best is
underlined, judged by the digits that are shown. A mean that was not computed shows as a dash.

Rows that others published (quoted.csv, HAODiff's tables as docs/measuring.md has them) may stand
below the methods, marked as quoted: they are of other pictures or programs, so that they take no
part in what is best.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from osdhuman_jax.evaluation.metrics import METRICS, Metric

# {method: {metric: mean}}; None where it was not computed.
Means = Mapping[str, Mapping[str, float | None]]

DASH = "–"
QUOTED = Path(__file__).with_name("quoted.csv")
MARKDOWN = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
LATEX = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"})


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    n: int


def difference(values: Sequence[float], base: Sequence[float]) -> Difference:
    """Student's interval of values - base, pair by pair; it is infinite for a single pair."""
    # Pair by pair, since pictures differ much more from one another than methods do.
    d = np.asarray(values) - np.asarray(base)
    n = len(d)
    # A single pair says nothing of the spread.
    half = math.inf
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / math.sqrt(n))
    mean = float(d.mean())
    return Difference(mean, mean - half, mean + half, n)


def as_json(found: Difference) -> dict[str, float | int | None]:
    """The fields of a difference; None for what is infinite, which JSON does not have."""
    return {k: v if math.isfinite(v) else None for k, v in asdict(found).items()}


def in_order(names: Sequence[str]) -> list[Metric]:
    """Metrics in the order of the papers' columns."""
    return [metric for name, metric in METRICS.items() if name in names]


def shown(metric: Metric, value: float | None) -> str:
    """The value with the paper's decimals, or a dash."""
    return DASH if value is None else f"{value:.{metric.decimals}f}"


def marks(metric: Metric, values: Sequence[float | None]) -> list[str]:
    """For each value "best", "second" or ""; values that are shown alike share a mark."""
    # Compared as printed: what a reader sees as equal must not look like a ranking.
    digits = [None if v is None else float(shown(metric, v)) for v in values]
    levels = sorted({v for v in digits if v is not None}, reverse=metric.higher)
    if sum(v is not None for v in digits) < 2:
        return [""] * len(digits)
    names = dict(zip(levels, ("best", "second"), strict=False))
    return [names.get(v, "") if v is not None else "" for v in digits]


def quoted_sets() -> dict[str, dict[str, dict[str, float | None]]]:
    """Published rows, {set of pictures: {"METHOD (quoted)": {metric: mean}}}."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    with open(QUOTED, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows = found.setdefault(row.pop("set"), {})
            name = f"{row.pop('method')} (quoted)"
            rows[name] = {metric: float(text) for metric, text in row.items() if text}
    return found


def cells(
    means: Means, columns: Sequence[Metric], styles: Mapping[str, str], quoted: Means
) -> list[list[str]]:
    """The cells of a table, a row for each method and each that is quoted, which has no marks.

    `styles` says how a mark is written.
    """
    # Marks go by column, the result by row.
    by_column = []
    for metric in columns:
        values = [found.get(metric.name) for found in means.values()]
        marked = zip(marks(metric, values), values, strict=True)
        by_column.append([styles[mark].format(shown(metric, value)) for mark, value in marked])
    plain = [[shown(m, found.get(m.name)) for m in columns] for found in quoted.values()]
    return [list(row) for row in zip(*by_column, strict=True)] + plain


def markdown(
    means: Means, columns: Sequence[Metric], corner: str = "", quoted: Means | None = None
) -> str:
    """A table in Markdown; `corner` is the head of the methods' column."""
    # A bar in a method's name would end its cell.
    lines = [[corner, *(metric.head for metric in columns)], ["---"] * (len(columns) + 1)]
    quoted = quoted or {}
    for name, row in zip([*means, *quoted], cells(means, columns, MARKDOWN, quoted), strict=True):
        lines.append([name.replace("|", "\\|"), *row])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(means: Means, columns: Sequence[Metric], quoted: Means | None = None) -> str:
    """A table in LaTeX, which needs no package."""
    # What LaTeX reads as a command in a method's name is escaped; numbers need none of it.
    arrows = {True: r"$\uparrow$", False: r"$\downarrow$"}
    heads = [f"{metric.title} {arrows[metric.higher]}" for metric in columns]
    rows = [["Method", *heads]]
    quoted = quoted or {}
    for name, row in zip([*means, *quoted], cells(means, columns, LATEX, quoted), strict=True):
        rows.append([name.translate(_SPECIAL), *(cell.replace(DASH, "--") for cell in row)])
    lines = [" & ".join(row) + r" \\" for row in rows]
    body = "\n".join([lines[0], r"\hline", *lines[1:]])
    return f"\\begin{{tabular}}{{l{'c' * len(columns)}}}\n{body}\n\\end{{tabular}}\n"


def csv_text(
    images: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    means: Means,
    columns: Sequence[Metric],
) -> str:
    """CSV at full precision: a line for each picture of a method, then one for the means."""
    # The line of the means has "(mean)" in the picture's place.
    buffer = io.StringIO()
    names = [metric.name for metric in columns]
    writer = csv.DictWriter(buffer, ["method", "image", *names], lineterminator="\n")
    writer.writeheader()
    for method, found in images.items():
        rows = [*found.items(), ("(mean)", means[method])]
        writer.writerows({"method": method, "image": image} | dict(row) for image, row in rows)
    return buffer.getvalue()
