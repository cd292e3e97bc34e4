"""How each metric is distributed over the pictures, and how methods differ on the same picture.

A table of means hides both: a method may win by one picture in ten, or by a hair on each. The
command `evaluate` draws one of these for every metric, as a PNG.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from osdhuman_jax.evaluation.metrics import Metric
from osdhuman_jax.evaluation.tables import difference

MethodValues = Mapping[str, Sequence[float]]  # of each method, picture by picture

# The palette of Okabe and Ito, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Dots of a method at most: more of them are a blot.
DOTS = 500


def plot(metric: Metric, values: MethodValues) -> bytes:
    """PNG: left each method's values, right its paired differences from the first method.

    A picture is a dot, a box spans the quartiles; the bars on the right are 95 % intervals.
    """
    # A method alone has no differences to show.
    several = len(values) > 1
    size = (10 if several else 5, 1.6 + 0.6 * len(values))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    _distribution(axes[0], metric, values)
    if several:
        _differences(axes[1], metric, values)
    buffer = io.BytesIO()
    # Without the library's version in it, equal plots are equal files.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _rows(axis: Axes, names: Sequence[str]) -> None:
    """One row for each method, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)


def _distribution(axis: Axes, metric: Metric, values: MethodValues) -> None:
    """Draw a box and the single values of each method."""
    # Outliers are among the dots already.
    axis.boxplot(
        list(values.values()),
        positions=range(len(values)),
        orientation="horizontal",
        widths=0.5,
        showfliers=False,
        medianprops={"color": "black"},
    )
    for row, found in enumerate(values.values()):
        dots = np.asarray(found)[:: max(1, -(-len(found) // DOTS))]
        # Steps of the golden ratio keep dots apart, and the same in every drawing.
        spread = row + 0.4 * (np.arange(len(dots)) * 0.618 % 1 - 0.5)
        axis.scatter(dots, spread, s=9, alpha=0.6, color=COLOURS[row % len(COLOURS)], linewidths=0)
    _rows(axis, list(values))
    axis.set_title(f"{metric.head}, {len(next(iter(values.values())))} pictures")


def _differences(axis: Axes, metric: Metric, values: MethodValues) -> None:
    """Draw the mean difference of each method from the first, with its interval."""
    (first, base), *others = values.items()
    axis.axvline(0, color="black", linewidth=1)
    for row, (_, found) in enumerate(others, start=1):
        d = difference(found, base)
        # One pair has no interval.
        bar = [[d.mean - d.low], [d.high - d.mean]] if d.n > 1 else None
        colour = COLOURS[row % len(COLOURS)]
        axis.errorbar(d.mean, row, xerr=bar, fmt="o", capsize=4, color=colour)
    _rows(axis, list(values))
    axis.set_title(f"{metric.title} minus that of {first}")
    axis.set_xlabel("mean over pictures, 95 % interval")
