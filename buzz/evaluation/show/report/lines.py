"""Lines in a picture, a method each: what is drawn of those that run over each other, and where their names stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_DASH = 7.0  # points; of lines that take turns


Curves = Mapping[str, np.ndarray]  # by method float64 [points, 2], x ascending


def plot_lines(axes: Any, curves: Curves, colors_of: Mapping[str, str], zero: bool, marker: str = "") -> None:
    """Draw a line for each method. Lines that run over each other take turns, dash by dash, so that all are seen.

    Args:
        zero: the y axis begins at 0, and not at the lowest point.
    """
    for group in covering(curves, zero):
        for place, name in enumerate(group):
            style: Any = "-" if len(group) == 1 else (place * _DASH, (_DASH, (len(group) - 1) * _DASH))
            look = {"color": colors_of[name], "linestyle": style, "linewidth": 1.8, "marker": marker, "markersize": 4}
            axes.plot(*curves[name].T, label=name, **look)


def turns(panels: Sequence[Curves], zero: bool) -> str:
    """A sentence about lines that take turns, if in some panel some do."""
    some = any(len(group) > 1 for curves in panels for group in covering(curves, zero))
    return " Lines that run over each other take turns, dash by dash." if some else ""


def covering(curves: Curves, zero: bool) -> list[list[str]]:
    """The names of the curves, those together that run over each other along half of their way or more.

    Args:
        zero: as for `plot_lines`.
    """
    lowest, highest = (end(end(curve[:, 1]) for curve in curves.values()) for end in (min, max))
    near = 0.008 * (highest - (0 if zero else lowest))  # about as wide as a line
    groups: list[list[str]] = []
    for name, curve in curves.items():
        met = [group for group in groups if any(_cover(curve, curves[other], near) for other in group)]
        groups = [group for group in groups if group not in met]
        groups.append([*(other for group in met for other in group), name])
    return groups


def _cover(one: np.ndarray, other: np.ndarray, near: float) -> bool:
    low, high = max(one[0, 0], other[0, 0]), min(one[-1, 0], other[-1, 0])
    if low > high:
        return False
    at = np.linspace(low, high, 64)
    return bool((np.abs(np.interp(at, *one.T) - np.interp(at, *other.T)) <= near).mean() >= 0.5)


def name_lines(drawing: Any, axes: Any, curves: Curves, colors_of: Mapping[str, str]) -> None:
    """Write each line's name at its right end, in its color; names that would cover each other are moved apart."""
    low, high = axes.get_ylim()
    # As shares of the axes' height, from below.
    ends = sorted((float((curve[-1, 1] - low) / (high - low)), name) for name, curve in curves.items())
    size = 8.0
    drawing.draw_without_rendering()  # settles the layout
    line = 1.25 * size * drawing.dpi / 72 / axes.get_window_extent().height
    places = apart([end for end, _ in ends], line)
    for (_, name), place in zip(ends, places, strict=True):
        axes.annotate(
            name,
            xy=tuple(curves[name][-1]),
            xytext=(1.04, place),
            textcoords="axes fraction",
            fontsize=size,
            color=colors_of[name],
            va="center",
            arrowprops={"arrowstyle": "-", "color": colors_of[name], "linewidth": 0.7, "shrinkA": 1, "shrinkB": 1},
        )


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as it takes for neighbours to be a gap apart, inside 0 to 1 if they fit."""
    groups: list[list[float]] = []  # sum of the places where a group would begin by each of its members; their number
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1 and _start(groups[-2], gap) + gap * groups[-2][1] > _start(groups[-1], gap):
            total, count = groups.pop()
            groups[-1][0] += total - count * gap * groups[-1][1]
            groups[-1][1] += count
    found = [_start(group, gap) + gap * i for group in groups for i in range(int(group[1]))]
    for i in range(len(found)):  # none below the axes, and then none above it
        found[i] = max(found[i], gap * i)
    for i in range(len(found)):
        found[-1 - i] = min(found[-1 - i], max(1.0, gap * (len(found) - 1)) - gap * i)
    return found


def _start(group: Sequence[float], gap: float) -> float:
    """Where a group of names begins, so that its members are as near to their places as can be."""
    return group[0] / group[1]
