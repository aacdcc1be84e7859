"""Sweeps: the runs of a grid one after the other, and what they say together.

`buzz.evaluation.run.grid` makes the runs of a sweep's config. Each has a folder of its own and goes on where that
stops, so a sweep that was interrupted does, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import user_path
from buzz.evaluation.run.grid import Sweep, expand, is_sweep, load_sweep
from buzz.evaluation.show.plot import plot_frontier
from buzz.evaluation.show.table import fitting, headline_rows, markdown_rows, notes, reading, text_rows

PLOTS = ("frontier.png", "frontier.svg")


def run_sweep(sweep: Sweep) -> dict[str, Any]:
    """Do all runs of a sweep; equal models are loaded once.

    Data and models are looked up for all runs before the first one starts. In the end the sweep's folder gets
    summary.json, report.md and the frontier plots.

    Returns:
        `{"name": ..., "runs": {folder of the run below the sweep's: its summary}}`, as in summary.json.

    Raises:
        ConfigError: a run cannot be done, or the sweep's folder is that of a run.
        Interrupted: as `buzz.evaluation.run.runner.run`.
    """
    # Here, so that a mistake in a config is told before torch is read.
    from buzz.evaluation.models.load import ModelLoader
    from buzz.evaluation.run.distributed import join
    from buzz.evaluation.run.runner import run

    folder = user_path(sweep.output, "output", "a folder is wanted")
    if (folder / "config.yaml").exists():
        raise ConfigError("output", f"{folder} holds a run", "choose another folder for the sweep")
    _look_up(sweep)
    loader, summaries, group = ModelLoader(), {}, join()
    for number, config in enumerate(sweep.runs, 1):
        if group.main and len(sweep.runs) > 1:
            print(f"run {number} of {len(sweep.runs)}: {config.name}", file=sys.stderr)
        summaries[config.name] = run(config, loader)
    summary = {"name": sweep.name, "runs": summaries}
    group.by_main(lambda: _write(folder, summary))
    return summary


def _look_up(sweep: Sweep) -> None:
    """Find what is wrong with the data or the model of any run."""
    from buzz.evaluation.models.load import check_model
    from buzz.evaluation.tasks import make_task

    if len(sweep.runs) == 1:
        return  # the run itself comes to it at once
    tasks = [config.task for config in sweep.runs]
    models = [config.model for config in sweep.runs]
    for index, task in enumerate(tasks):
        if task not in tasks[:index]:
            make_task(task).load()
    for index, model in enumerate(models):
        if model not in models[:index]:
            check_model(model)


def _write(folder: Path, summary: Mapping[str, Any]) -> None:
    from buzz.evaluation.files import write_atomically, writing
    from buzz.evaluation.show.report import write_report

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    summaries = list(summary["runs"].values())
    plotted = [plot_frontier(summaries, folder / name) for name in PLOTS]
    write_atomically(folder / "report.md", sweep_report(summary, PLOTS[0] if all(plotted) else None))
    write_report([folder], folder)


def sweep_table(summary: Mapping[str, Any]) -> str:
    """A sweep's results for a terminal: a table a run, a row a method, the run's headline metric alone."""
    blocks = []
    for folder, run in summary["runs"].items():
        title = f"{folder} (n = {run['run']['samples']})"
        header, rows = headline_rows(run)
        columns = fitting(header, rows, ("peak cache", "95% interval", "in bytes"))
        blocks.append("\n".join([title, "", *text_rows(header, rows, columns), *notes(run)]))
    return "\n\n".join(blocks)


def sweep_report(summary: Mapping[str, Any], plot: str | None) -> str:
    """report.md of a sweep: the frontier plot, and the headline metric of every run."""
    lines = [f"# {summary['name']}"]
    if plot:
        lines += ["", f"![quality against mean cache length]({plot})"]
    for folder, run in summary["runs"].items():
        lines += ["", f"## {folder}", "", f"n = {run['run']['samples']}. [All metrics]({folder}/report.md)", ""]
        lines += [*markdown_rows(*headline_rows(run)), *([""] if notes(run) else []), *(f"- {x}" for x in notes(run))]
    headlines = dict.fromkeys(run["run"]["headline"] for run in summary["runs"].values())
    lines += ["", *reading(list(headlines)), *_DIFFERENCES]
    return "\n".join(lines) + "\n"


_DIFFERENCES = [
    "The columns `- full` and `- rival` are paired differences to the full cache and to the best method with another",
    "policy that holds about as much, each with its two-sided p-value, not corrected for the number of comparisons.",
    "The reports of the runs name the rivals.",
]

__all__ = ["PLOTS", "Sweep", "expand", "is_sweep", "load_sweep", "run_sweep", "sweep_report", "sweep_table"]
