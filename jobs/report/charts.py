"""The charts of the report as SVG text: inline, without fonts of their own, in the page's light and dark colours.

Nothing that the user's data names is drawn here, only numbers, so there is nothing to escape.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator

from jobs.report.change import EXPECTED_LOW, GenerationLine
from jobs.report.colours import NOISE_COLOUR
from jobs.report.data import MapPoints, Pass

MAX_BARS_WITH_NAMES = 24
MAX_MAP_LABELS = 40
_FLAT = 1e-3  # relative range below which an objective is drawn as the flat line that it is

# matplotlib needs a literal colour; these stand for variables of the style sheet, so that dark mode reaches the charts.
_INK, _MUTED, _LINE, _ACCENT = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)", _ACCENT: "var(--accent)"}

# What matplotlib adds for a file of its own: names that repeat in every figure (hashed ones are referred to and stay),
# a style for every element of the page, its font, and new windows for links.
_TIDY = re.compile(
    r"<metadata>.*?</metadata>|<style.*?</style>| id=\"[a-z0-9.]+_\d+\"| font-family: [^;\"]*;| target=\"_blank\"",
    re.DOTALL,
)


def _short(value: float, largest: float) -> str:
    """A tick's number, in the unit that suits the `largest` one."""
    size, unit = next(((size, unit) for size, unit in ((1e9, " bn"), (1e6, " M")) if largest >= size), (1.0, ""))
    return f"{value / size:,.10g}{unit if value else ''}".replace("-", "−")


class _Short(Formatter):
    """One unit for all ticks of an axis."""

    def format_ticks(self, values: Any) -> list[str]:
        largest = max((abs(float(value)) for value in values), default=0.0)
        return [_short(float(value), largest) for value in values]

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _short(x, abs(x))


_STYLE: dict[Any, Any] = {  # matplotlib's type of a name differs from version to version
    "svg.fonttype": "none",
    "svg.hashsalt": "shoal",
    "font.size": 12,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
}


def history_chart(history: Sequence[Pass], label: str) -> Markup:
    """Number of clusters above the objective, over passes that share an axis."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_inches(460, 300), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        numbers = [step.number for step in history]
        marker = "o" if len(history) <= 30 else None
        above.step(numbers, [step.clusters for step in history], where="post", color=_ACCENT, linewidth=2)
        below.plot(
            numbers, [step.objective for step in history], color=_ACCENT, linewidth=2, marker=marker, markersize=4
        )
        above.set_ylabel("clusters")
        above.set_ylim(bottom=0)
        above.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        below.set_ylabel("objective")
        low, high = below.get_ylim()
        if high - low < _FLAT * abs(high):  # rounding magnified to the height of the chart says nothing
            below.set_ylim(high - _FLAT * abs(high), high + _FLAT * abs(high))
        below.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        below.yaxis.set_major_formatter(_Short())
        below.set_xlabel("pass")
        below.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        figure.align_ylabels()
        return _svg(figure, label)


def generations_chart(lines: Sequence[GenerationLine], label: str) -> Markup:
    """Clusters over generations, above the share of low scores in what arrived and the new clusters, where known."""
    low = {line.number: 100 * line.low_fraction for line in lines if line.low_fraction is not None}
    new = {line.number: 1_000 * line.new_rate for line in lines if line.new_rate is not None}
    bars = [(name, values) for name, values in (("low scores, %", low), ("new per 1,000", new)) if values]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_inches(1_080, 110 * len(bars) + 150), layout="constrained")
        first, *others = np.atleast_1d(figure.subplots(1 + len(bars), sharex=True))
        clusters = {line.number: line.clusters for line in lines}
        first.step(list(clusters), list(clusters.values()), where="mid", color=_ACCENT, linewidth=2)
        _stacked(first, "clusters", max(clusters.values()))
        for axes, (name, values) in zip(others, bars, strict=True):
            axes.bar(list(values), list(values.values()), width=0.6, color=_ACCENT, linewidth=0)
            _stacked(axes, name, max(values.values()))
        if low:
            others[0].axhline(100 * EXPECTED_LOW, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        last = others[-1] if others else first
        last.set_xlim(lines[0].number - 0.6, lines[-1].number + 0.6)
        last.set_xlabel("generation")
        last.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
        figure.align_ylabels()
        return _svg(figure, label)


def _stacked(axes: Axes, name: str, largest: float) -> None:
    """One of several low panels, from zero; the axis is beside the newest, which a narrow screen shows first."""
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel(name)
    axes.set_ylim(0, 1.1 * largest or 1)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(_Short())


def size_chart(sizes: Mapping[int, int], colour_of: Mapping[int, str], label: str) -> Markup:
    """Cluster sizes, largest first: named and coloured bars when they are few, an area over ranks when many."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_inches(460, 240), layout="constrained")
        axes = figure.subplots()
        ids = sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster))
        size_K = np.array([sizes[cluster] for cluster in ids])
        if len(ids) <= MAX_BARS_WITH_NAMES:
            _named_bars(axes, ids, size_K, colour_of)
        else:
            _ranked(axes, size_K)
        axes.set_ylabel("images")
        return _svg(figure, label)


def _named_bars(axes: Axes, ids: Sequence[int], size_K: np.ndarray, colour_of: Mapping[int, str]) -> None:
    axes.bar(range(len(ids)), size_K, color=[colour_of[cluster] for cluster in ids], width=0.72)
    axes.set_xticks(range(len(ids)), [str(cluster) for cluster in ids])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, max(len(ids), 4) - 0.4)  # a single bar does not become a wall
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(_Short())
    axes.set_xlabel("cluster")


def _ranked(axes: Axes, size_K: np.ndarray) -> None:
    axes.fill_between(np.arange(1, len(size_K) + 1), size_K, step="mid", color=_ACCENT, linewidth=0)
    axes.set_xlim(0.5, len(size_K) + 0.5)
    axes.set_xlabel("clusters, largest first")
    if size_K[0] > 50 * size_K[-1]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value, value)))
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_Short())


def map_chart(points: MapPoints, colour_of: Mapping[int, str], linked: Sequence[int], label: str) -> Markup:
    """Rows in two dimensions. The dots are one embedded PNG, so that size does not grow with them; names stay text.

    The largest clusters are named at their medians, where names do not collide; those in `linked` lead to their sheet.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_inches(520, 600))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        rows = len(points.x_N)
        colour_N = [colour_of.get(cluster, NOISE_COLOUR) for cluster in points.cluster_N.tolist()]
        size = float(np.clip(24_000 / max(rows, 1), 3, 22))
        axes.scatter(points.x_N, points.y_N, s=size, c=colour_N, alpha=0.8, linewidths=0, rasterized=True)
        _name_clusters(axes, points, set(linked))
        return _svg(figure, label, role="group")


def _name_clusters(axes: Axes, points: MapPoints, linked: set[int]) -> None:
    ids_K, size_K = np.unique(points.cluster_N[points.cluster_N >= 0], return_counts=True)
    taken: list[np.ndarray] = []
    axes.autoscale_view()  # otherwise matplotlib settles the axes after the places below are computed
    for cluster in ids_K[np.argsort(-size_K, kind="stable")].tolist():
        inside_N = points.cluster_N == cluster
        x, y = float(np.median(points.x_N[inside_N])), float(np.median(points.y_N[inside_N]))
        place = axes.transData.transform((x, y)) / axes.figure.dpi * 72
        if len(taken) == MAX_MAP_LABELS or any((np.abs(place - other) < (30, 18)).all() for other in taken):
            continue
        taken.append(place)
        text = axes.text(x, y, str(cluster), ha="center", va="center", fontsize=15, fontweight="bold")
        if cluster in linked:
            text.set_url(f"#cluster-{cluster}")


def _inches(width_px: int, height_px: int) -> tuple[float, float]:
    return width_px / 72, height_px / 72  # matplotlib's SVG has 72 units per inch


def _svg(figure: Figure, label: str, role: str = "img") -> Markup:
    """The figure as an `<svg>` element that scales with its column and takes colours and font from the page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = _TIDY.sub("", text[text.index("<svg") :])
    box = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {box[0] if box else ""} role="{role}" aria-label="{html.escape(label)}">'
    text = head + text[text.index(">") + 1 :]
    for literal, variable in _VARIABLES.items():
        text = text.replace(literal, variable)
    return Markup(text)  # noqa: S704 - drawn from numbers, and the label is escaped
