"""The picture of a run: quality against mean cache length."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buzz.evaluation.table import metric_label

# Where a label may stand around its point, in points of 1/72 inch, the best place first.
_AROUND = ((7, 7), (7, -7), (-7, 7), (-7, -7), (0, 11), (0, -11))
_PLACES = [(x * r, y * r) for r in (1, 2, 3.5, 5, 7) for x, y in _AROUND]
_BESIDE = 7.0  # points between methods of the same cache length, so that their intervals can be told apart


@dataclass(frozen=True)
class _Point:
    name: str
    x: float  # mean cached tokens
    y: float  # percent, as its interval
    low: float
    high: float
    color: str


def plot_quality(summary: Mapping[str, Any], headline: str, path: str | Path) -> bool:
    """Draw a run's headline metric against mean cached tokens: a labelled point a method, with 95% intervals.

    The full cache also gives a dashed line, the score to reach. Methods of (nearly) the same cache length are drawn
    side by side, a few pixels off their place.

    Args:
        summary: as in summary.json.
        headline: the metric on the y axis.
        path: the PNG to write.

    Returns:
        False, and nothing is written, if no method has a sample.
    """
    points = _points(summary["methods"], headline)
    if not points:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot, so no backend is chosen for the whole process
    axes = figure.add_subplot()
    run = summary["run"]
    axes.set_title(f"{run['model']} on {run['task']} (n = {run['samples']})", fontsize=11)
    axes.set_xlabel("mean cached tokens over the decode calls")
    axes.set_ylabel(f"{metric_label(headline)} (%), 95% interval")
    axes.grid(alpha=0.25)
    places = [_draw(axes, point, shift) for point, shift in zip(points, _side_by_side(points), strict=True)]
    for point in points:
        if point.name == run.get("full"):
            axes.axhline(point.y, color=point.color, linestyle="--", linewidth=1, zorder=0)
    axes.margins(x=0.15, y=0.12)
    axes.set_xlim(left=0)
    if axes.get_ylim()[0] < 0 <= min(point.low for point in points):
        axes.set_ylim(bottom=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks is no reason for chatter
        _label(figure, axes, points, places)
        figure.savefig(path, format="png")
    return True


def _points(methods: Mapping[str, Any], headline: str) -> list[_Point]:
    points: list[_Point] = []
    for name, entry in methods.items():
        if entry["n"]:
            metric = entry["metrics"][headline]
            low, high = metric["ci95"]
            color = f"C{len(points) % 10}"
            point = _Point(name, entry["cache"]["mean_tokens"], 100 * metric["mean"], 100 * low, 100 * high, color)
            points.append(point)
    return points


def _side_by_side(points: list[_Point]) -> list[float]:
    """How far each point is drawn off its x, in points of 1/72 inch: 0 where nothing else is near."""
    near = 0.012 * max(point.x for point in points)
    groups = [[other for other in points if abs(other.x - point.x) <= near] for point in points]
    return [_BESIDE * (group.index(p) - (len(group) - 1) / 2) for p, group in zip(points, groups, strict=True)]


def _draw(axes: Any, point: _Point, shift: float) -> Any:
    """A point and its interval; returns the transform that says where it stands."""
    from matplotlib.transforms import ScaledTranslation

    place = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    # A mean lies within its interval but for rounding.
    errors = [[max(0.0, point.y - point.low)], [max(0.0, point.high - point.y)]]
    style = {"fmt": "o", "capsize": 3, "markersize": 6, "elinewidth": 1.2}
    axes.errorbar(point.x, point.y, yerr=errors, color=point.color, transform=place, **style)
    # A transform of one's own does not count for the limits of the axes.
    axes.update_datalim([(point.x, point.low), (point.x, point.high)])
    return place


def _label(figure: Any, axes: Any, points: list[_Point], places: list[Any]) -> None:
    """Put each point's name where it covers no point, no other name, no edge and, if possible, no interval."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # settles the layout, so that boxes can be measured
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    # Pixels: x, and y of the point and of both ends of its interval.
    marks = [
        (place.transform((p.x, p.y)), place.transform((p.x, p.low))[1], place.transform((p.x, p.high))[1])
        for p, place in zip(points, places, strict=True)
    ]
    taken: list[Any] = []

    def cost(box: Any) -> int:
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        clashes = sum(box.overlaps(other) for other in taken) + sum(box.contains(*at) for at, _, _ in marks)
        crossed = sum(box.x0 <= at[0] <= box.x1 and low <= box.y1 and box.y0 <= high for at, low, high in marks)
        return 10 * int(clashes + (not inside)) + int(crossed)

    for point, place in zip(points, places, strict=True):
        text = axes.annotate(
            point.name, (point.x, point.y), xycoords=place, textcoords="offset points", color=point.color, fontsize=9
        )
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
