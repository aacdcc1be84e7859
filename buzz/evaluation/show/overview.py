"""Several runs at a glance, such as those of a sweep: on the terminal, and as report.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from buzz.evaluation.show.table import fitting, headline_rows, markdown_rows, notes, reading, text_rows

_DIFFERENCES = [
    "The columns `- full` and `- rival` are paired differences to the full cache and to the best method with another",
    "policy that holds about as much, each with its two-sided p-value, not corrected for the number of comparisons.",
    "The reports of the runs name the rivals.",
]


def text_overview(summary: Mapping[str, Any]) -> str:
    """The results for a terminal: a table a run, a row a method, the run's headline metric alone.

    Args:
        summary: `{"runs": {folder of a run below the report's: its summary}}`.
    """
    blocks = []
    for folder, run in summary["runs"].items():
        title = f"{folder} (n = {run['run']['samples']})"
        header, rows = headline_rows(run)
        columns = fitting(header, rows, ("peak cache", "95% interval", "in bytes", "tokens/s"))
        blocks.append("\n".join([title, "", *text_rows(header, rows, columns), *notes(run)]))
    return "\n\n".join(blocks)


def markdown_overview(summary: Mapping[str, Any], plot: str | None) -> str:
    """report.md of several runs: quality against memory, and the headline metric of every run.

    Args:
        plot: the picture's file; None: there is none.
    """
    lines = [f"# {summary['name']}"]
    if plot:
        lines += ["", f"![quality against mean cache length]({plot})"]
    for folder, run in summary["runs"].items():
        lines += ["", f"## {folder}", "", f"n = {run['run']['samples']}. [All metrics]({folder}/report.md)", ""]
        lines += [*markdown_rows(*headline_rows(run)), *([""] if notes(run) else []), *(f"- {x}" for x in notes(run))]
    headlines = dict.fromkeys(run["run"]["headline"] for run in summary["runs"].values())
    lines += ["", *reading(list(headlines)), *_DIFFERENCES]
    return "\n".join(lines) + "\n"
