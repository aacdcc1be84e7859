"""Pictures of a run beside quality against memory: cache length over time, and perplexity along a text."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from buzz.evaluation.files import writing
from buzz.evaluation.show.plot import draw_panels, in_rows, save, series
from buzz.evaluation.show.report.folders import Run
from buzz.evaluation.show.report.lines import name_lines, plot_lines, turns
from buzz.evaluation.show.report.needles import Grid, asked_when, needle_grids
from buzz.evaluation.show.table import metric_label

# Ten colors that differ in hue and lightness; the page has a second set for a dark background, in the same order.
PALETTE = (
    *("#5c6470", "#2f8f83", "#8d5aa3", "#c98200", "#b4482f"),
    *("#3b6fa8", "#7b8c2c", "#c0608c", "#80603f", "#95908a"),
)
HONEY = 3  # the palette's color for BUZZ, whatever its place among the methods
_OWN = ("name", "output", "methods", "wandb", "hive")  # keys of a config in which runs that are drawn together differ
_WINDOWS = 48  # windows of a text in a picture, at most
_PNG_DPI = 150


@dataclass(frozen=True)
class Figure:
    """A picture on disk.

    Args:
        paths: the same picture as PNG and SVG.
        alt: what is to be seen, for those who do not see it.
        caption: how to read it.
        narrow: another one of the same for a phone, as SVG text.
        colors: those that it may have, in the order in which series of methods take them.
        paged: whether the page shows it; else it has the same in another form.
    """

    title: str
    paths: tuple[Path, Path]
    alt: str
    caption: str
    narrow: str = ""
    colors: Sequence[str] = PALETTE
    paged: bool = True

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
    """Draw what a run's data allow: quality, cache length, perplexity and needles. Equal runs give equal files.

    Args:
        folder: where `<prefix>quality.png`, `<prefix>quality.svg` and so on go.
    """
    drawers = (_quality, _cache, _perplexity, _needles)
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
    return Figure(title, paths, alt, caption, text.getvalue().decode("utf-8"), look.colors)


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
        plot_lines(axes, curves, looks, zero=True)
        axes.set_xlabel("call (0 is the prompt)")
        axes.set_ylabel("cached tokens per head")
        axes.set_ylim(0, 1.06 * max(curve[:, 1].max() for curve in curves.values()))
        name_lines(drawing, axes, curves, looks)
        return drawing

    alt = f"Cached tokens per head after each call, a line a method, for the sample {sample}."
    caption = f"As measured, mean over layers. The sample with the most calls: {sample}.{turns([curves], zero=True)}"
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
    panels = [{name: curve[:, [0, column]] for name, curve in curves.items()} for column in (1, 2)]
    few = all(len(curve) < 3 for curve in curves.values())

    def draw(narrow: bool) -> Any:
        drawing, axes = _new(2, narrow)
        for panel, lines, title in zip(axes, panels, ("of each part", "of all so far"), strict=True):
            plot_lines(panel, lines, looks, zero=False, marker="o" if few else "")
            panel.set_title(title, fontsize=9 if narrow else 10)
            panel.set_xlabel("tokens read")
            panel.set_ylabel("perplexity (lower is better)")
            panel.set_xlim(left=0)
            name_lines(drawing, panel, lines, looks)
        return drawing

    last = ", ".join(f"{name} {curve[-1, 2]:.2f}" for name, curve in curves.items())
    alt = f"Perplexity against tokens read, a line a method. At the end: {last}."
    texts = max(len(records) for records in run.records.values())
    caption = f"{texts} texts, position by position." if texts > 1 else "First part by part, then everything so far."
    facts = (
        "Perplexity along the text",
        _paths(folder, prefix, "perplexity"),
        alt,
        f"{caption}{turns(panels, zero=False)}",
    )
    return _drawn(draw, look, *facts)


# --- needles ---------------------------------------------------------------------------------------------------------

_COLUMNS = 5  # panels in a row
_LIGHT = 0.5  # cells from here on are so light that figures in them are black


def _needles(run: Run, folder: Path, look: Look, prefix: str) -> Figure | None:
    """A map of length and depth for each method: of several tasks that of all together."""
    task, grids = next(iter(needle_grids(run.records).items()), ("", {}))
    if not grids:
        return None
    means = ", ".join(f"{name} {100 * np.nanmean(one.found):.0f}%" for name, one in grids.items())
    alt = f"Share of needles found by depth and length, a panel a method. Means: {means}."
    caption = f"Share of needles found{f' ({task})' if task else ''}, in percent. {asked_when(run.config)}"
    facts = "Needles by length and depth", _paths(folder, prefix, "needles"), alt, caption
    drawn = _drawn(lambda narrow: _needle_maps(grids, 2 if narrow else _COLUMNS), look, *facts)
    return None if drawn is None else replace(drawn, paged=False)


def _needle_maps(grids: Mapping[str, Grid], columns: int) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    grid = next(iter(grids.values()))
    down, across = len(grid.depths), len(grid.lengths)
    columns = min(columns, len(grids))
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
    return drawing
