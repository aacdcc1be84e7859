"""Pictures of runs: quality against mean cache length."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buzz.evaluation.files import writing
from buzz.evaluation.measure.metric_info import metric_info

# Where a label may stand around its point, in points of 1/72 inch, the best place first.
_AROUND = ((7, 7), (7, -7), (-7, 7), (-7, -7), (0, 11), (0, -11))
_PLACES = [(x * r, y * r) for r in (1, 2, 3.5, 5, 7) for x, y in _AROUND]
# As shares of the longest mean cache: intervals no further apart are drawn side by side, at these distances.
_NEAR, _BESIDE = 0.012, 0.014
_MARKERS = "osD^v"
_PANEL = (7.5, 4.8)  # inches
_SIZE = re.compile(r"-(budget|reduction)[0-9.]+(e-?[0-9]+)?")


@dataclass(frozen=True)
class _Point:
    name: str
    series: str
    x: float  # mean cached tokens
    y: float  # as shown, so percent for shares; its interval too
    low: float
    high: float
    color: str
    marker: str


def series(name: str, policy: str | None = None) -> str:
    """A method's name without its budget or reduction: methods of one series differ in size alone."""
    return _SIZE.sub("", name) or policy or name


def plot_quality(summary: Mapping[str, Any], headline: str, path: str | Path) -> bool:
    """Draw a metric of a run against mean cached tokens: a labelled point a method, with 95% intervals.

    The full cache also gives a dashed line, the score to reach. Methods whose names differ in `budget` or `reduction`
    alone are joined by a line and named in a legend. Every point is in its place; where methods have (nearly) the same
    cache length, their intervals are drawn side by side, a few pixels off.

    Args:
        summary: as in summary.json.
        headline: the metric on the y axis.
        path: the file to write; its suffix (.png, .svg) is the format. Equal summaries give equal files.

    Returns:
        False, and nothing is written, if no method has a sample, or (with a warning) if matplotlib is not installed.
    """
    return plot_frontier([summary], path, headline)


def plot_frontier(summaries: Sequence[Mapping[str, Any]], path: str | Path, headline: str | None = None) -> bool:
    """Draw several runs as `plot_quality` does one, a panel a run.

    Args:
        summaries: as in summary.json.
        path: as for `plot_quality`.
        headline: the metric on the y axes; None: each run's own headline.

    Returns:
        False, and nothing is written, as `plot_quality`.
    """
    panels = []
    for summary in summaries:
        metric = headline or summary["run"]["headline"]
        points = _points(summary["methods"], metric)
        if points:
            panels.append((summary["run"], metric, points))
    if not panels:
        return False
    try:
        import matplotlib
    except ModuleNotFoundError:
        warnings.warn(f"{path} is not drawn: matplotlib is not installed", stacklevel=2)
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot, so no backend is chosen for the whole process
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    # The names inside an SVG are random, and it says when it was made, unless told otherwise.
    suffix = Path(path).suffix[1:].lower() or "png"
    metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "buzz"}):
        warnings.simplefilter("ignore")  # a glyph that the font lacks is no reason for chatter
        drawn = [_panel(panel, *parts) for panel, parts in zip(axes, panels, strict=False)]
        for panel, points in zip(axes, drawn, strict=False):
            if panel.get_legend() is None:
                _label(figure, panel, points)
        with writing(path):
            figure.savefig(path, format=suffix, metadata=metadata)
    return True


def _points(methods: Mapping[str, Any], metric: str) -> list[_Point]:
    """The methods that have the metric; a color and marker a series."""
    scale = 100 if metric_info(metric).percent else 1
    points: list[_Point] = []
    known: dict[str, int] = {}
    for name, entry in methods.items():
        if entry["n"] and metric in entry["metrics"]:
            mean, (low, high) = entry["metrics"][metric]["mean"], entry["metrics"][metric]["ci95"]
            group = series(name, entry.get("policy"))
            number = known.setdefault(group, len(known))
            color, marker = f"C{number % 10}", _MARKERS[number // 10 % len(_MARKERS)]
            x = entry["cache"]["mean_tokens"]
            points.append(_Point(name, group, x, scale * mean, scale * low, scale * high, color, marker))
    return points


def _panel(axes: Any, run: Mapping[str, Any], metric: str, points: list[_Point]) -> list[_Point]:
    """Draw a run, but for the labels of its points; returns the points as they are drawn."""
    info = metric_info(metric)
    axes.set_title(f"{run['model']} on {run['task']} (n = {run['samples']})", fontsize=11)
    axes.set_xlabel("mean cached tokens over the decode calls")
    unit = " (%)" if info.percent else ""
    axes.set_ylabel(f"{info.label}{unit}, {'higher' if info.higher_is_better else 'lower'} is better, 95% interval")
    axes.grid(alpha=0.25)
    joined = _join(axes, points)
    for point, place in zip(points, _side_by_side(points), strict=True):
        _draw(axes, point, place)
    for point in points:
        if point.name == run.get("full"):
            axes.axhline(point.y, color=point.color, linestyle="--", linewidth=1, zorder=0)
    axes.margins(x=0.15, y=0.12)
    axes.set_xlim(left=0)
    if axes.get_ylim()[0] < 0 <= min(point.low for point in points):
        axes.set_ylim(bottom=0)
    if joined:
        axes.legend(fontsize=8, framealpha=0.8)
    return points


def _side_by_side(points: list[_Point]) -> list[float]:
    """Where to draw the points' intervals: those that would (nearly) cover each other are moved a little apart."""
    widest = max(point.x for point in points)
    groups = [[other for other in points if abs(other.x - point.x) <= _NEAR * widest] for point in points]
    # In a dense crowd they stand closer, or they would end up among the next one's.
    gaps = [widest * min(_BESIDE, 4 * _BESIDE / len(group)) for group in groups]
    return [
        point.x + gap * (group.index(point) - (len(group) - 1) / 2)
        for point, group, gap in zip(points, groups, gaps, strict=True)
    ]


def _draw(axes: Any, point: _Point, place: float) -> None:
    """A point, and its interval at another x."""
    # A mean lies within its interval but for rounding.
    errors = [[max(0.0, point.y - point.low)], [max(0.0, point.high - point.y)]]
    style = {"fmt": point.marker, "capsize": 3, "markersize": 6, "elinewidth": 1.2}
    drawn = axes.errorbar(place, point.y, yerr=errors, color=point.color, **style)
    drawn[0].set_xdata([point.x])


def _join(axes: Any, points: list[_Point]) -> bool:
    """Join the points of each series in the order of their memory; False if no series has two."""
    lines: dict[str, list[_Point]] = {}
    for point in points:
        lines.setdefault(point.series, []).append(point)
    if all(len(members) == 1 for members in lines.values()):
        return False
    for name, members in lines.items():
        ordered = sorted(members, key=lambda point: point.x)
        at, scores = [point.x for point in ordered], [point.y for point in ordered]
        style = {"color": ordered[0].color, "marker": ordered[0].marker, "linewidth": 1.2, "markersize": 4}
        axes.plot(at, scores, label=name, zorder=1, **style)
    return True


def _label(figure: Any, axes: Any, points: list[_Point]) -> None:
    """Put each point's name where it covers no point, no other name, no edge and, if possible, no interval."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # settles the layout, so that boxes can be measured
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    # Pixels: x, and y of the point and of both ends of its interval.
    pixels = axes.transData.transform
    marks = [(pixels((p.x, p.y)), pixels((p.x, p.low))[1], pixels((p.x, p.high))[1]) for p in points]
    taken: list[Any] = []

    def cost(box: Any) -> int:
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        clashes = sum(box.overlaps(other) for other in taken) + sum(box.contains(*at) for at, _, _ in marks)
        crossed = sum(box.x0 <= at[0] <= box.x1 and low <= box.y1 and box.y0 <= high for at, low, high in marks)
        return 10 * int(clashes + (not inside)) + int(crossed)

    for point in points:
        style = {"textcoords": "offset points", "color": point.color, "fontsize": 9}
        text = axes.annotate(point.name, (point.x, point.y), **style)
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        boxes = []
        for at in _PLACES:
            _move(text, at)
            boxes.append(text.get_window_extent(renderer).padded(2))
        best = min(range(len(_PLACES)), key=lambda i: cost(boxes[i]))
        _move(text, _PLACES[best])
        taken.append(boxes[best])


def _move(text: Any, at: tuple[float, float]) -> None:
    """Put a label so many points off its anchor, on the side it is moved to."""
    text.set_ha("left" if at[0] > 0 else "right" if at[0] < 0 else "center")
    text.set_va("bottom" if at[1] > 0 else "top")
    text.set_position(at)
