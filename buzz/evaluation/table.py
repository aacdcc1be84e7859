"""A run's results as a table: on the terminal and in report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
_NONE = "-"


def metric_label(name: str) -> str:
    """How a metric is called in tables and plots."""
    return _LABELS.get(name, name)


def results_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the results table: metrics in percent, cache lengths in tokens, time in seconds."""
    metrics = summary["run"]["metrics"]
    header = ["method", "n", *map(metric_label, metrics), "mean cache", "peak cache", "reduction", "seconds"]
    return header, [_cells(name, entry, metrics) for name, entry in summary["methods"].items()]


def _cells(name: str, entry: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    if not entry["n"]:
        return [name, "0", *[_NONE] * (len(metrics) + 4)]
    cache = entry["cache"]
    return [
        name,
        str(entry["n"]),
        *(f"{100 * entry['metrics'][metric]['mean']:.2f}" for metric in metrics),
        f"{cache['mean_tokens']:.1f}",
        f"{cache['peak_tokens']:.0f}",
        f"{cache['reduction']:.2f}x",
        f"{entry['seconds']['total']:.1f}",
    ]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """One line for each method that did not finish."""
    entries = summary["methods"].items()
    return [f"{name} did not finish: {entry['failed']}" for name, entry in entries if "failed" in entry]


def text_table(summary: Mapping[str, Any]) -> str:
    """The results for a terminal: columns aligned, names at the left, numbers at the right."""
    header, rows = results_rows(summary)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_aligned(header, widths), "  ".join("-" * width for width in widths)]
    return "\n".join([*lines, *(_aligned(row, widths) for row in rows), *notes(summary)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])


def markdown_report(summary: Mapping[str, Any], plot: str | None) -> str:
    """report.md: what was run, the table, how to read it, and the plot if there is one."""
    header, rows = results_rows(summary)
    run = summary["run"]
    table = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    lines = [f"# {run['name']}", "", f"{run['task']} with {run['model']}, greedy decoding.", ""]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
    lines += ["", *(f"- {note}" for note in notes(summary))]
    lines += [
        "Scores are means over the samples, in percent (95% intervals: summary.json). Cache lengths are tokens per",
        "head over the decode calls, as measured; the reduction is against a cache that never evicts.",
    ]
    if plot:
        lines += ["", f"![quality against mean cache length]({plot})"]
    return "\n".join(lines) + "\n"
