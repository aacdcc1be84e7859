"""Pictures of runs: quality against mean cache length."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from buzz.evaluation.files import writing
from buzz.evaluation.measure.metric_info import metric_info
from buzz.evaluation.measure.summary import ALIKE

# Where a label may stand around its point, in points of 1/72 inch, the best place first.
_AROUND = ((7, 7), (7, -7), (-7, 7), (-7, -7), (0, 11), (0, -11))
_PLACES = [(x * r, y * r) for r in (1, 2, 3.5, 5, 7) for x, y in _AROUND]
# As shares of the longest mean cache: intervals no further apart are drawn side by side, at these distances.
_NEAR, _BESIDE = 0.012, 0.014
_MARKERS = "osD^vPX<>p"  # a series' own, so that none is told by its color alone
_ALONE, _PAIR, _NARROW = (7.5, 4.8), (6.0, 4.2), (3.9, 3.9)  # inches of a panel: alone, of a row of two, on a phone
_SIZE = re.compile(r"-(budget|reduction)[0-9.]+(e-?[0-9]+)?")
Panel = tuple[Sequence[Mapping[str, Any]], str]  # summaries of runs that are drawn together, and the metric


@dataclass(frozen=True)
class _Point:
    name: str
    series: str
    full: bool  # it is the full cache
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
    cache length, their intervals are drawn side by side, a few pixels off. If all methods but the full cache hold about
    as much (mean cache lengths within 10%), each has a row instead, the metric goes to the right, and the full cache is
    a dashed line in the band of its interval.

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
    panels = [([summary], headline or summary["run"]["headline"]) for summary in summaries]
    if not any(_points(*panel) for panel in panels):
        return False
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(f"{path} is not drawn: matplotlib is not installed", stacklevel=2)
        return False
    drawing = draw_panels(panels)
    with writing(path):
        save(drawing, path, Path(path).suffix[1:].lower() or "png")
    return True


def draw_panels(panels: Sequence[Panel], narrow: bool = False, order: Sequence[str] = ()) -> Any:
    """The matplotlib figure of `plot_frontier`; None if no method has a sample.

    Args:
        narrow: for a phone: the panels below each other, in a figure that is half as wide.
        order: names of series, which take colors and markers in this order; others follow.
    """
    found = [(summaries[0]["run"], metric, _points(summaries, metric, order)) for summaries, metric in panels]
    found = [(run, metric, points) for run, metric, points in found if points]
    if not found:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if narrow or len(found) == 1 else 2
    rows = -(-len(found) // columns)
    width, height = _NARROW if narrow else _ALONE if columns == 1 else _PAIR
    if all(_alike(points) for _, _, points in found):
        height = min(height, 1.3 + 0.36 * max(len(points) for _, _, points in found))
    figure = Figure(figsize=(width * columns, height * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot, so no backend is chosen for the whole process
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[len(found) :]:
        unused.set_axis_off()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks is no reason for chatter
        for panel, parts, before in zip(axes, found, [None, *found], strict=False):
            _panel(panel, *parts, narrow)
            if before is None or before[0] is not parts[0]:  # a run's further panels are known by their axes
                _name(panel, parts[0], narrow)
        for panel, (_, _, points) in zip(axes, found, strict=False):
            if panel.get_legend() is None and not _alike(points):
                _label(figure, panel, points)
    return figure


def save(drawing: Any, file: str | Path | IO[bytes], kind: str) -> None:
    """Write a matplotlib figure as it would be written again: with no dates, and no names that were drawn by lot.

    Args:
        kind: png or svg.
    """
    import matplotlib

    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "buzz"}):
        warnings.simplefilter("ignore")  # as above
        drawing.savefig(file, format=kind, metadata=metadata)


def in_rows(panel: Panel) -> bool:
    """Whether a panel has a row a method, since all methods but the full cache hold about as much."""
    return _alike(_points(*panel))


def _points(summaries: Sequence[Mapping[str, Any]], metric: str, order: Sequence[str] = ()) -> list[_Point]:
    """The methods that have the metric; a color and marker a series. Of several runs the first one's full cache."""
    scale = 100 if metric_info(metric).percent else 1
    points: list[_Point] = []
    known = {name: number for number, name in enumerate(order)}
    for summary in summaries:
        for name, entry in summary["methods"].items():
            full = name == summary["run"].get("full")
            if not entry["n"] or metric not in entry["metrics"] or (full and any(point.full for point in points)):
                continue
            mean, ends = entry["metrics"][metric]["mean"], entry["metrics"][metric]["ci95"]
            group = series(name, entry.get("policy"))
            number = known.setdefault(group, len(known))
            look = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
            x, (y, low, high) = entry["cache"]["mean_tokens"], (scale * value for value in (mean, *ends))
            points.append(_Point(name, group, full, x, y, low, high, *look))
    return points


def _alike(points: Sequence[_Point]) -> bool:
    """Whether several methods hold about as much, and no others are there but the full cache."""
    held = [point.x for point in points if not point.full]
    return len(held) > 1 and max(held) <= ALIKE * min(held)


def _name(axes: Any, run: Mapping[str, Any], narrow: bool) -> None:
    axes.set_title(
        f"{run['model']}{chr(10) if narrow else ' '}on {run['task']} (n = {run['samples']})",
        {"fontsize": 9 if narrow else 11, "horizontalalignment": "left"},
        loc="left",
    )


def _panel(axes: Any, run: Mapping[str, Any], metric: str, points: list[_Point], narrow: bool) -> None:
    """Draw a metric of a run, but for the names of its points."""
    info = metric_info(metric)
    better = "higher" if info.higher_is_better else "lower"
    label = f"{info.label}{' (%)' if info.percent else ''}, {better} is better" + ("" if narrow else ", 95% interval")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    widest = max(point.x for point in points)
    if metric == "fidelity_kl":  # the full cache's own is rounding, and the others' differ by orders
        points = [point for point in points if not point.full] or points
    low, high = min(point.low for point in points), max(point.high for point in points)
    log = metric == "fidelity_kl" and 0 < 10 * low < high
    if _alike(points):
        _rows(axes, points)
        axes.set_xlabel(label)
    else:
        _spread(axes, points)
        axes.margins(x=0.15, y=0.12)
        axes.set_xlim(0, 1.12 * widest)
        axes.set_xlabel("mean cached tokens over the decode calls")
        axes.set_ylabel(label)
    axis, limits = ("x", axes.set_xlim) if _alike(points) else ("y", axes.set_ylim)
    if log:
        getattr(axes, f"set_{axis}scale")("log")
        getattr(axes, f"{axis}axis").set_major_formatter("{x:g}")
    elif info.percent and low == high == 0:
        limits(0, 100)
    elif getattr(axes, f"get_{axis}lim")()[0] < 0 <= low:
        limits(0)


def _rows(axes: Any, points: Sequence[_Point]) -> None:
    """A row a method: of methods that hold about as much, one picture of the metric alone says more than a map."""
    others = [point for point in points if not point.full]
    for row, point in enumerate(others):
        errors = [[max(0.0, point.y - point.low)], [max(0.0, point.high - point.y)]]  # never below 0, but for rounding
        style = {"fmt": point.marker, "capsize": 3, "markersize": 7, "elinewidth": 1.6}
        axes.errorbar(point.y, row, xerr=errors, color=point.color, **style)
    for point in points:
        if point.full:
            axes.axvspan(point.low, point.high, color=point.color, alpha=0.1, linewidth=0, zorder=0)
            axes.axvline(point.y, color=point.color, linestyle="--", linewidth=1, zorder=0)
            style = {"color": point.color, "fontsize": 8, "va": "top", "textcoords": "offset points"}
            axes.annotate(point.name, (point.y, -0.6), xytext=(4, -2), **style)
    axes.set_yticks(range(len(others)), [point.name for point in others])
    axes.set_ylim(len(others) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)


def _spread(axes: Any, points: list[_Point]) -> None:
    """A map of the metric and the memory."""
    joined = _join(axes, points)
    for point, place in zip(points, _side_by_side(points), strict=True):
        _draw(axes, point, place)
    for point in points:
        if point.full:
            axes.axhline(point.y, color=point.color, linestyle="--", linewidth=1, zorder=0)
    if joined:
        axes.legend(fontsize=8, framealpha=0.8, handlelength=2.4)


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
