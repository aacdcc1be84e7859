"""Pictures of a run beside quality against memory: cache length over time, and perplexity along a text."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzz.evaluation.files import writing
from buzz.evaluation.show.plot import plot_frontier, plot_quality, series
from buzz.evaluation.show.report.folders import Run
from buzz.evaluation.show.report.needles import asked_when, needle_grids

# Ten colors that differ in hue and lightness; the page has a second set for a dark background, in the same order.
PALETTE = (
    *("#5c6470", "#2f8f83", "#8d5aa3", "#c98200", "#b4482f"),
    *("#3b6fa8", "#7b8c2c", "#c0608c", "#80603f", "#95908a"),
)
HONEY = 3  # the palette's color for BUZZ, whatever its place among the methods
_LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
_WINDOWS = 48  # windows of a text in a picture, at most
_PNG_DPI = 150


@dataclass(frozen=True)
class Figure:
    """A picture on disk.

    Args:
        paths: the same picture as PNG and SVG.
        alt: what is to be seen, for those who do not see it.
        caption: how to read it.
        paged: whether the page shows it; else it has the same in another form.
    """

    title: str
    paths: tuple[Path, Path]
    alt: str
    caption: str
    paged: bool = True


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def run_figures(run: Run, folder: Path, prefix: str = "") -> list[Figure]:
    """Draw what a run's data allow: quality, cache length, perplexity and needles. Equal runs give equal files.

    Args:
        folder: where `<prefix>quality.png`, `<prefix>quality.svg` and so on go.
    """
    drawers = (_quality, _cache, _perplexity, _needles)
    with _style(run.summary):
        drawn = (draw(run, folder, prefix) for draw in drawers)
        return [figure for figure in drawn if figure is not None]


def frontier_figure(runs: Sequence[Run], folder: Path) -> Figure | None:
    """Draw quality against memory of several runs, a panel a run, as frontier.png and frontier.svg."""
    summaries, paths = [run.summary for run in runs], _paths(folder, "", "frontier")
    with _style(summaries[0]):
        if not all(plot_frontier(summaries, path) for path in paths):
            return None
    alt = f"Headline metric against mean cached tokens, {len(runs)} panels: {', '.join(run.name for run in runs)}."
    return Figure("Quality against memory", paths, alt, _QUALITY)


_QUALITY = (
    "Every point is at its method's measured cache length; intervals that would cover each other are drawn beside it. "
    "Left is less memory. The dashed line is the full cache's score."
)


def colors(summary: Mapping[str, Any]) -> list[str]:
    """The palette in the order in which a run's series of methods take colors; the first BUZZ has that of honey."""
    order = list(PALETTE)
    for place, members in enumerate(list(_series(summary).values())[: len(order)]):
        if summary["methods"][members[0]].get("policy") == "buzz":
            order[place], order[HONEY] = order[HONEY], order[place]
            break
    return order


def _series(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """The methods that have samples, by series, in the order in which `buzz.evaluation.show.plot` colors them."""
    found: dict[str, list[str]] = {}
    for name, entry in summary["methods"].items():
        if entry["n"]:
            found.setdefault(series(name, entry.get("policy")), []).append(name)
    return found


def _looks(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Color and kind of line by method."""
    return {
        name: {"color": f"C{number % len(PALETTE)}", "linestyle": _LINES[place % len(_LINES)]}
        for number, members in enumerate(_series(summary).values())
        for place, name in enumerate(members)
    }


@contextlib.contextmanager
def _style(summary: Mapping[str, Any]) -> Iterator[None]:
    import matplotlib
    from cycler import cycler

    settings: Any = {
        "axes.prop_cycle": cycler(color=colors(summary)),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",  # text stays text, for the page's own font and for those who search it
        "svg.hashsalt": "buzz",  # names inside an SVG are random otherwise
    }
    with matplotlib.rc_context(settings):
        yield


def _paths(folder: Path, prefix: str, name: str) -> tuple[Path, Path]:
    return folder / f"{prefix}{name}.png", folder / f"{prefix}{name}.svg"


def _new(panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(7.5 if panels == 1 else 10.5, 4.0), layout="constrained")
    FigureCanvasAgg(drawing)  # no pyplot, so no backend is chosen for the whole process
    axes = drawing.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
    return drawing, axes


def _save(drawing: Any, paths: tuple[Path, Path]) -> None:
    with writing(paths[0]):
        drawing.savefig(paths[0], dpi=_PNG_DPI, metadata={"Software": None})
    with writing(paths[1]):
        drawing.savefig(paths[1], metadata={"Date": None, "Creator": None})


def _quality(run: Run, folder: Path, prefix: str) -> Figure | None:
    paths, headline = _paths(folder, prefix, "quality"), run.summary["run"]["headline"]
    if not all(plot_quality(run.summary, headline, path) for path in paths):
        return None
    alt = f"{headline} of every method against its mean cached tokens, with 95% intervals; the results table has both."
    return Figure("Quality against memory", paths, alt, _QUALITY)


# --- cache length ----------------------------------------------------------------------------------------------------


def _cache(run: Run, folder: Path, prefix: str) -> Figure | None:
    """The measured cache of one sample over its calls."""
    sample = longest_sample(run)
    if sample is None:
        return None
    drawing, (axes,) = _new(1)
    looks, highest = _looks(run.summary), 0.0
    for name, records in run.records.items():
        record = next((record for record in records if record["id"] == sample), None)
        if record is None or name not in looks or not record["cache"].get("curve"):
            continue
        calls, lengths = zip(*record["cache"]["curve"], strict=True)
        axes.plot(calls, lengths, label=name, linewidth=1.6, **looks[name])
        highest = max(highest, *lengths)
    axes.set_xlabel("call (0 is the prompt)")
    axes.set_ylabel("cached tokens per head")
    axes.set_ylim(0, 1.06 * highest)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    paths = _paths(folder, prefix, "cache")
    _save(drawing, paths)
    alt = f"Cached tokens per head after each call, a line a method, for the sample {sample}."
    caption = f"As measured, mean over layers. The sample with the most calls: {sample}."
    return Figure("Cache length over time", paths, alt, caption)


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


def _perplexity(run: Run, folder: Path, prefix: str) -> Figure | None:
    looks = _looks(run.summary)
    found = {name: perplexity_curves(records) for name, records in run.records.items() if name in looks}
    curves = {name: curve for name, curve in found.items() if curve is not None}
    if not curves:
        return None
    drawing, axes = _new(2)
    few = all(len(curve) < 3 for curve in curves.values())
    for column, title in enumerate(("of each part", "of all so far"), 1):
        panel = axes[column - 1]
        for name, curve in curves.items():
            panel.plot(
                curve[:, 0], curve[:, column], label=name, linewidth=1.6, marker="o" if few else "", **looks[name]
            )
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("tokens read")
        panel.set_xlim(left=0)
    axes[0].set_ylabel("perplexity (lower is better)")
    axes[1].legend(fontsize=8, frameon=False)
    paths = _paths(folder, prefix, "perplexity")
    _save(drawing, paths)
    last = ", ".join(f"{name} {curve[-1, 2]:.2f}" for name, curve in curves.items())
    alt = f"Perplexity against tokens read, a line a method. At the end: {last}."
    texts = max(len(records) for records in run.records.values())
    caption = f"{texts} texts, position by position." if texts > 1 else "Left: part by part. Right: everything so far."
    return Figure("Perplexity along the text", paths, alt, caption)


# --- needles ---------------------------------------------------------------------------------------------------------

_COLUMNS = 5  # panels in a row
_LIGHT = 0.5  # cells from here on are so light that figures in them are black


def _needles(run: Run, folder: Path, prefix: str) -> Figure | None:
    """A map of length and depth for each method: of several tasks that of all together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    task, grids = next(iter(needle_grids(run.records).items()), ("", {}))
    if not grids:
        return None
    grid = next(iter(grids.values()))
    down, across = len(grid.depths), len(grid.lengths)
    columns = min(_COLUMNS, len(grids))
    rows = -(-len(grids) // columns)
    size = columns * (0.9 + 0.55 * across), rows * (0.9 + 0.3 * down)
    drawing = Drawing(figsize=size, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(rows, columns, squeeze=False, sharey=True)
    for panel in panels.flat[len(grids) :]:
        panel.set_visible(False)
    for panel, (name, one) in zip(panels.flat, grids.items(), strict=False):
        # Of even lightness steps, also to the color-blind; white where there is no sample.
        panel.pcolormesh(np.ma.masked_invalid(one.found), cmap="cividis", vmin=0, vmax=1, edgecolors="white")
        for (y, x), value in np.ndenumerate(one.found):
            if not np.isnan(value):
                ink = "black" if value >= _LIGHT else "white"
                panel.text(x + 0.5, y + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=ink)
        panel.set_title(name, fontsize=9)
        panel.set_xticks(np.arange(across) + 0.5, [str(length) for length in grid.lengths], fontsize=8)
        panel.set_yticks(np.arange(down) + 0.5, [f"{100 * depth:g}%" for depth in grid.depths], fontsize=8)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylim(down, 0)  # the start of the text is at the top
        panel.set_ylabel("depth", fontsize=8)
    drawing.supxlabel(f"length of the text in {grid.unit}", fontsize=8)
    paths = _paths(folder, prefix, "needles")
    _save(drawing, paths)
    means = ", ".join(f"{name} {100 * np.nanmean(one.found):.0f}%" for name, one in grids.items())
    alt = f"Share of needles found by depth and length, a panel a method. Means: {means}."
    caption = f"Share of needles found{f' ({task})' if task else ''}, in percent. {asked_when(run.config)}"
    return Figure("Needles by length and depth", paths, alt, caption, paged=False)
