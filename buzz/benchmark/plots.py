"""Pictures of a benchmark, as PNG and SVG. Without matplotlib there are tables alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from buzz.evaluation.files import writing

_PANEL = (5.2, 4.0)  # inches
Curves = dict[str, list[tuple[float, float]]]  # of each method, its points


def draw(data: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw what there are results for; returns the names of the PNG files.

    prefill: time and memory against length. decode: ms a token against context, a panel a batch. batch: tokens/s of
    decoding against batch, a panel a context. throughput: end to end against batch.
    """
    rows = {name: section["rows"] for name, section in data["sections"].items()}
    prefill, decode, throughput = (rows.get(name, []) for name in ("prefill", "decode", "throughput"))
    batches, contexts = (sorted({row[key] for row in decode}) for key in ("batch", "context"))
    figures = {
        "prefill": [
            ("ms, one prompt", "prompt tokens", _curves(prefill, "length", "ms"), True),
            ("peak GiB above the weights", "prompt tokens", _curves(prefill, "length", "peak_gib"), True),
        ],
        "decode": [
            (
                f"ms a token, batch {batch}",
                "tokens of context",
                _curves([row for row in decode if row["batch"] == batch], "context", "ms_mean"),
                True,
            )
            for batch in batches
        ],
        "batch": [
            (
                f"tokens a second, {context} tokens of context",
                "rows of the batch",
                _curves([row for row in decode if row["context"] == context], "batch", "tokens_per_s"),
                False,
            )
            for context in (contexts if len(batches) > 1 else [])
        ],
        "throughput": [
            (
                "new tokens a second, prompts included",
                "rows of the batch",
                _curves(throughput, "rows", "tokens_per_s"),
                False,
            )
        ],
    }
    drawn = []
    for name, panels in figures.items():
        panels = [panel for panel in panels if panel[2]]
        if panels and _figure(folder / name, panels):
            drawn.append(f"{name}.png")
    return drawn


def _curves(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> Curves:
    curves: Curves = {}
    for row in rows:
        if row.get(x) is not None and row.get(y) is not None:
            curves.setdefault(row["method"], []).append((row[x], row[y]))
    return {method: sorted(points) for method, points in curves.items()}


def _figure(path: Path, panels: Sequence[tuple[str, str, Curves, bool]]) -> bool:
    try:
        import matplotlib
    except ModuleNotFoundError:
        warnings.warn(f"{path.name} is not drawn: matplotlib is not installed", stacklevel=2)
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL[0] * len(panels), _PANEL[1]), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot, so no backend is chosen for the whole process
    # One look a method, in all panels.
    methods = list(dict.fromkeys(method for _, _, curves, _ in panels for method in curves))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, panel, lambda method: f"C{methods.index(method) % 10}")
    with matplotlib.rc_context({"svg.hashsalt": "buzz"}):
        with writing(path.with_suffix(".png")):
            figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
        with writing(path.with_suffix(".svg")):
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    return True


def _panel(axes: Any, panel: tuple[str, str, Curves, bool], color: Callable[[str], str]) -> None:
    from matplotlib.ticker import NullLocator

    title, x, curves, logarithmic = panel
    for method, points in curves.items():
        axes.plot(
            *zip(*points, strict=True), label=method, color=color(method), marker="o", markersize=4, linewidth=1.2
        )
    ticks = sorted({at for points in curves.values() for at, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{at / 1024:g}k" if at >= 1024 else f"{at:g}" for at in ticks], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    if logarithmic and min(value for points in curves.values() for _, value in points) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=8)
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=title, xlabel=x)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, framealpha=0.8)
