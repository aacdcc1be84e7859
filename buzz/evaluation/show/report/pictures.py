"""Pictures of a run beside quality against memory: cache length over time, and perplexity along a text."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzz.evaluation.files import writing
from buzz.evaluation.show.plot import draw_panels, in_rows, save, series
from buzz.evaluation.show.report.folders import Run
from buzz.evaluation.show.table import metric_label

# Ten colors that differ in hue and lightness; the page has a second set for a dark background, in the same order.
PALETTE = (
    *("#5c6470", "#2f8f83", "#8d5aa3", "#c98200", "#b4482f"),
    *("#3b6fa8", "#7b8c2c", "#c0608c", "#80603f", "#95908a"),
)
HONEY = 3  # the palette's color for BUZZ, whatever its place among the methods
_DASH = 7.0  # points; of lines that take turns
_OWN = ("name", "output", "methods", "wandb", "hive")  # keys of a config in which runs that are drawn together differ
_WINDOWS = 48  # windows of a text in a picture, at most
_PNG_DPI = 150


@dataclass(frozen=True)
class Figure:
    """A picture on disk.

    Args:
        paths: the same picture as PNG and SVG.
        narrow: another one of the same for a phone, as SVG text.
        alt: what is to be seen, for those who do not see it.
        caption: how to read it.
        colors: those that it may have, in the order in which series of methods take them.
    """

    title: str
    paths: tuple[Path, Path]
    narrow: str
    alt: str
    caption: str
    colors: Sequence[str]

    @property
    def quality(self) -> bool:
        """It shows a run's quality and memory, as the picture of several runs does."""
        return self.paths[0].name.endswith("quality.png")


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True)
class Look:
    """What series of methods look like in all pictures of a report.

    Args:
        names: of the series, which take colors and markers in this order.
        colors: the palette in the order in which they take them; the first BUZZ has that of honey.
    """

    names: Sequence[str]
    colors: Sequence[str]


def look_of(summaries: Sequence[Mapping[str, Any]]) -> Look:
    """The look of the series of these runs."""
    policies: dict[str, str | None] = {}
    for summary in summaries:
        for name, members in _series(summary).items():
            policies.setdefault(name, summary["methods"][members[0]].get("policy"))
    order = list(PALETTE)
    for place, policy in enumerate(list(policies.values())[: len(order)]):
        if policy == "buzz":
            order[place], order[HONEY] = order[HONEY], order[place]
            break
    return Look(list(policies), order)


def run_figures(run: Run, folder: Path, look: Look, prefix: str = "") -> list[Figure]:
    """Draw what a run's data allow: quality, cache length and perplexity. Equal runs give equal files.

    Args:
        folder: where `<prefix>quality.png`, `<prefix>quality.svg` and so on go.
    """
    drawers = (_quality, _cache, _perplexity)
    drawn = (draw(run, folder, look, prefix) for draw in drawers)
    return [figure for figure in drawn if figure is not None]


def frontier_figure(runs: Sequence[Run], folder: Path, look: Look) -> Figure | None:
    """Draw quality against memory of several runs as frontier.png and frontier.svg.

    Runs that differ in their methods alone are drawn together, so that lines join methods that differ in size alone.
    """
    alt = f"Headline metric against mean cached tokens of {len(runs)} runs: {', '.join(run.name for run in runs)}."
    return _quality_of(_together(runs), _paths(folder, "", "frontier"), look, alt)


def _together(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose model, task, samples and settings are the same, together."""
    groups: list[tuple[Any, list[Run]]] = []
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in _OWN}
        samples = {record["id"] for records in run.records.values() for record in records}
        same = next((members for key, members in groups if key == (config, samples)), None)
        if same is None:
            groups.append(((config, samples), [run]))
        else:
            same.append(run)
    return [members for _, members in groups]


def _quality(run: Run, folder: Path, look: Look, prefix: str) -> Figure | None:
    names = " and ".join(map(metric_label, _judged(run)))
    alt = f"{names} of every method against its mean cached tokens, with 95% intervals; the results table has both."
    return _quality_of([[run]], _paths(folder, prefix, "quality"), look, alt)


def _quality_of(groups: Sequence[Sequence[Run]], paths: tuple[Path, Path], look: Look, alt: str) -> Figure | None:
    panels = [([run.summary for run in group], metric) for group in groups for metric in _judged(group[0])]
    kinds = {in_rows(panel) for panel in panels}
    caption = " ".join(text for kind, text in ((False, _MAP), (True, _ROWS)) if kind in kinds)
    title = "Quality at equal memory" if kinds == {True} else "Quality against memory"
    return _drawn(lambda narrow: draw_panels(panels, narrow, look.names), look, title, paths, alt, caption)


def _judged(run: Run) -> list[str]:
    """The metrics that pictures show: the headline, and the distance from the full cache if it was measured."""
    facts = run.summary["run"]
    return list(dict.fromkeys([facts["headline"], *(["fidelity_kl"] if "fidelity_kl" in facts["metrics"] else [])]))


_MAP = (
    "With 95% intervals. Every point is at its method's measured cache length, left is less memory; intervals that "
    "would cover each other are drawn beside it. The dashed line is the full cache's score."
)
_ROWS = (
    "With 95% intervals. All methods hold about as much, so each has a row. The dashed line in the band of its "
    "interval is the full cache's score."
)


def is_sweep(run: Run) -> bool:
    """Whether a run has methods that differ in their budget or reduction alone."""
    return any(len(members) > 1 for members in _series(run.summary).values())


def _series(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """The methods that have samples, by series, in the order in which `buzz.evaluation.show.plot` colors them."""
    found: dict[str, list[str]] = {}
    for name, entry in summary["methods"].items():
        if entry["n"]:
            found.setdefault(series(name, entry.get("policy")), []).append(name)
    return found


def _line_colors(summary: Mapping[str, Any], look: Look) -> dict[str, str]:
    """By method the color of its series."""
    return {
        name: f"C{look.names.index(group) % len(PALETTE)}"
        for group, members in _series(summary).items()
        for name in members
    }


@contextlib.contextmanager
def _style(look: Look, narrow: bool) -> Iterator[None]:
    import matplotlib
    from cycler import cycler

    settings: Any = {
        "axes.prop_cycle": cycler(color=look.colors),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.scale_dashes": False,  # lines that take turns count on the lengths of their dashes
        "svg.fonttype": "none",  # text stays text, for the page's own font and for those who search it
        **({"font.size": 8.5, "axes.labelsize": 8.5} if narrow else {}),
    }
    with matplotlib.rc_context(settings):
        yield


def _paths(folder: Path, prefix: str, name: str) -> tuple[Path, Path]:
    return folder / f"{prefix}{name}.png", folder / f"{prefix}{name}.svg"


def _drawn(
    draw: Callable[[bool], Any],
    look: Look,
    title: str,
    paths: tuple[Path, Path],
    alt: str,
    caption: str,
) -> Figure | None:
    """Draw a picture for a page and for a phone, and write it; None if there is nothing to draw.

    Args:
        draw: makes the matplotlib figure, narrow or not.
    """
    with _style(look, narrow=False):
        drawing = draw(False)
        if drawing is None:
            return None
        for path in paths:
            with writing(path):
                save(drawing, path, path.suffix[1:])
    text = io.BytesIO()
    with _style(look, narrow=True):
        save(draw(True), text, "svg")
    return Figure(title, paths, text.getvalue().decode("utf-8"), alt, caption, look.colors)


def _new(panels: int, narrow: bool) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    size = (3.9, 3.4 * panels) if narrow else (7.5 if panels == 1 else 10.5, 4.0)
    drawing = Drawing(figsize=size, dpi=_PNG_DPI, layout="constrained")
    FigureCanvasAgg(drawing)  # no pyplot, so no backend is chosen for the whole process
    axes = drawing.subplots(*((panels, 1) if narrow else (1, panels)), squeeze=False).ravel()
    for one in axes:
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
    return drawing, axes


# --- lines -----------------------------------------------------------------------------------------------------------


def _plot_lines(axes: Any, curves: Mapping[str, np.ndarray], colors_of: Mapping[str, str], marker: str = "") -> None:
    """Draw a line for each method. Lines that run over each other take turns, dash by dash, so that all are seen.

    Args:
        curves: float64 [points, 2] each, x ascending.
    """
    for group in _covering(curves):
        for place, name in enumerate(group):
            style: Any = "-" if len(group) == 1 else (place * _DASH, (_DASH, (len(group) - 1) * _DASH))
            look = {"color": colors_of[name], "linestyle": style, "linewidth": 1.8, "marker": marker, "markersize": 4}
            axes.plot(*curves[name].T, label=name, **look)


def _turns(curves: Mapping[str, np.ndarray]) -> str:
    """A sentence about lines that take turns, if some do."""
    turns = any(len(group) > 1 for group in _covering({name: curve[:, :2] for name, curve in curves.items()}))
    return " Lines that run over each other take turns, dash by dash." if turns else ""


def _covering(curves: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The names of the curves, those together that run over each other along half of their way or more."""
    height = max(curve[:, 1].max() for curve in curves.values()) - min(0.0, *(c[:, 1].min() for c in curves.values()))
    groups: list[list[str]] = []
    for name, curve in curves.items():
        near = [group for group in groups if any(_cover(curve, curves[other], 0.008 * height) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append([*(other for group in near for other in group), name])
    return groups


def _cover(one: np.ndarray, other: np.ndarray, near: float) -> bool:
    low, high = max(one[0, 0], other[0, 0]), min(one[-1, 0], other[-1, 0])
    if low > high:
        return False
    at = np.linspace(low, high, 64)
    return bool((np.abs(np.interp(at, *one.T) - np.interp(at, *other.T)) <= near).mean() >= 0.5)


def _name_lines(drawing: Any, axes: Any, curves: Mapping[str, np.ndarray], colors_of: Mapping[str, str]) -> None:
    """Write each line's name at its right end, in its color; names that would cover each other are moved apart."""
    low, high = axes.get_ylim()
    # As shares of the axes' height, from below.
    ends = sorted((float((curve[-1, 1] - low) / (high - low)), name) for name, curve in curves.items())
    size = 8.0
    drawing.draw_without_rendering()  # settles the layout
    line = 1.25 * size * drawing.dpi / 72 / axes.get_window_extent().height
    places = _apart([end for end, _ in ends], line)
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


def _apart(places: Sequence[float], gap: float) -> list[float]:
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


# --- cache length ----------------------------------------------------------------------------------------------------


def _cache(run: Run, folder: Path, look: Look, prefix: str) -> Figure | None:
    """The measured cache of one sample over its calls."""
    sample = longest_sample(run)
    if sample is None:
        return None
    looks, curves = _line_colors(run.summary, look), {}
    for name, records in run.records.items():
        record = next((record for record in records if record["id"] == sample), None)
        if record is not None and name in looks and record["cache"].get("curve"):
            curves[name] = np.array(record["cache"]["curve"], dtype=np.float64)

    def draw(narrow: bool) -> Any:
        drawing, (axes,) = _new(1, narrow)
        _plot_lines(axes, curves, looks)
        axes.set_xlabel("call (0 is the prompt)")
        axes.set_ylabel("cached tokens per head")
        axes.set_ylim(0, 1.06 * max(curve[:, 1].max() for curve in curves.values()))
        _name_lines(drawing, axes, curves, looks)
        return drawing

    alt = f"Cached tokens per head after each call, a line a method, for the sample {sample}."
    caption = f"As measured, mean over layers. The sample with the most calls: {sample}.{_turns(curves)}"
    facts = ("Cache length over time", _paths(folder, prefix, "cache"), alt, caption)
    return _drawn(draw, look, *facts)


def longest_sample(run: Run) -> str | None:
    """Of the samples that the most methods have, the one with the most calls; None without a cache curve."""
    counts: dict[str, list[int]] = {}
    for records in run.records.values():
        for record in records:
            if record["cache"].get("curve"):
                counts.setdefault(record["id"], []).append(record["new_tokens"])
    return max(counts, key=lambda name: (len(counts[name]), sum(counts[name])), default=None)


# --- perplexity ------------------------------------------------------------------------------------------------------


def perplexity_curves(records: Sequence[Mapping[str, Any]], windows: int = _WINDOWS) -> np.ndarray | None:
    """Perplexity along the text, all texts of a method taken together position by position.

    Args:
        records: with `blocks`, pairs of tokens and summed negative log-likelihoods in nats.
        windows: at most so many; neighbouring blocks are put together.

    Returns:
        float64 [windows, 3]: tokens read of a text, perplexity of the window that ends there, and of all up to there.
        None if there are no blocks.
    """
    longest = max((len(record.get("blocks") or ()) for record in records), default=0)
    if not longest:
        return None
    sums = np.zeros((longest, 2))  # tokens and nats by place in the text
    ends = np.zeros(longest)
    for record in records:
        blocks = np.array(record.get("blocks") or np.zeros((0, 2)), dtype=np.float64)
        sums[: len(blocks)] += blocks
        ends[: len(blocks)] = np.maximum(ends[: len(blocks)], blocks[:, 0].cumsum())
    edges = np.unique(np.linspace(0, longest, min(longest, windows) + 1).round().astype(int))
    parts = np.add.reduceat(sums, edges[:-1], axis=0)
    whole = parts.cumsum(axis=0)
    return np.stack([ends[edges[1:] - 1], np.exp(parts[:, 1] / parts[:, 0]), np.exp(whole[:, 1] / whole[:, 0])], axis=1)


def _perplexity(run: Run, folder: Path, look: Look, prefix: str) -> Figure | None:
    looks = _line_colors(run.summary, look)
    found = {name: perplexity_curves(records) for name, records in run.records.items() if name in looks}
    curves = {name: curve for name, curve in found.items() if curve is not None}
    if not curves:
        return None
    few = all(len(curve) < 3 for curve in curves.values())

    def draw(narrow: bool) -> Any:
        drawing, axes = _new(2, narrow)
        for column, title in enumerate(("of each part", "of all so far"), 1):
            panel, lines = axes[column - 1], {name: curve[:, [0, column]] for name, curve in curves.items()}
            _plot_lines(panel, lines, looks, marker="o" if few else "")
            panel.set_title(title, fontsize=9 if narrow else 10)
            panel.set_xlabel("tokens read")
            panel.set_ylabel("perplexity (lower is better)")
            panel.set_xlim(left=0)
            _name_lines(drawing, panel, lines, looks)
        return drawing

    last = ", ".join(f"{name} {curve[-1, 2]:.2f}" for name, curve in curves.items())
    alt = f"Perplexity against tokens read, a line a method. At the end: {last}."
    texts = max(len(records) for records in run.records.values())
    caption = f"{texts} texts, position by position." if texts > 1 else "First part by part, then everything so far."
    facts = ("Perplexity along the text", _paths(folder, prefix, "perplexity"), alt, f"{caption}{_turns(curves)}")
    return _drawn(draw, look, *facts)
