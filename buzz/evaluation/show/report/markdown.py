"""report.md: the tables of report.html, and links to the pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from buzz.evaluation.show.overview import markdown_overview
from buzz.evaluation.show.parts import part_tables
from buzz.evaluation.show.report.folders import Run
from buzz.evaluation.show.report.needles import asked_when, grid_rows, needle_grids
from buzz.evaluation.show.report.pictures import Figure
from buzz.evaluation.show.table import markdown_report, markdown_rows
from buzz.evaluation.show.verdict import verdicts

PAGE = "The page [report.html](report.html) has the same, answers side by side{hive}."
HIVE = ", and the hive view: which heads hold which tokens, call by call"


def render_markdown(
    title: str, runs: Sequence[Run], figures: Sequence[Sequence[Figure]], shared: Figure | None, folder: Path
) -> str:
    """The text of report.md.

    Args:
        figures: of each run.
        shared: the picture of all runs, if there are several.
        folder: where the report and its pictures are.
    """
    page = PAGE.format(hive=HIVE if any(run.hives for run in runs) else "")
    if len(runs) == 1:
        quality = [figure for figure in figures[0] if figure.quality]
        others = [figure for figure in figures[0] if figure not in quality]
        text = markdown_report(runs[0].summary, quality[0].paths[0].name if quality else None)
        lines = [*_parts(runs[0], "##"), *_pictures(others), *_needles(runs[0], "##")]
    else:
        summaries = {_relative(run.path, folder): run.summary for run in runs}
        text = markdown_overview({"name": title, "runs": summaries}, shared.paths[0].name if shared else None)
        lines = []
        for run, drawn in zip(runs, figures, strict=True):
            others = [figure for figure in drawn if shared is None or not figure.quality]
            more = [*_parts(run, "###"), *_pictures(others, "###"), *_needles(run, "###")]
            lines += ["", f"## Figures of {run.name}", *more] if more else []
    title_line, rest = text.rstrip("\n").split("\n", 1)
    found = verdicts({run.name: run.summary for run in runs})
    told = [line for one in found for line in ("", f"**{one.sentence}** {one.figures}".rstrip())]
    return "\n".join([title_line, *told, rest, *lines, "", page]) + "\n"


def _relative(path: Path, folder: Path) -> str:
    """How a link from the report gets to a run's folder."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _pictures(figures: Sequence[Figure], heading: str = "##") -> list[str]:
    lines = []
    for figure in figures:
        link = f"![{figure.alt}]({figure.paths[0].name})"
        lines += ["", f"{heading} {figure.title}", "", link, "", figure.caption]
    return lines


def _parts(run: Run, heading: str) -> list[str]:
    lines = []
    for title, rows in part_tables(run.summary):
        lines += ["", f"{heading} {title}", "", *markdown_rows(*rows)]
    return lines


def _needles(run: Run, heading: str) -> list[str]:
    """The maps of the first group alone: of several tasks that of all together. The page has the others."""
    for task, grids in needle_grids(run.records).items():
        of = f" ({task})" if task else ""
        lines = ["", f"{heading} Needles found by length and depth{of}, in percent", "", asked_when(run.config)]
        for method, grid in grids.items():
            lines += ["", f"**{method}**", "", *markdown_rows(*grid_rows(grid))]
        return lines
    return []
