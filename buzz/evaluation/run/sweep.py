"""Sweeps: the runs of a grid one after the other, and a report of all.

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
from buzz.evaluation.files import write_atomically, writing
from buzz.evaluation.models.load import ModelLoader
from buzz.evaluation.models.source import check_model
from buzz.evaluation.paths import user_path
from buzz.evaluation.run.distributed import join
from buzz.evaluation.run.grid import Sweep
from buzz.evaluation.run.runner import run
from buzz.evaluation.show.report.write import write_report
from buzz.evaluation.tasks import make_task


def run_sweep(sweep: Sweep) -> dict[str, Any]:
    """Do all runs of a sweep; equal models are loaded once.

    Data and models are looked up for all runs before the first one starts. In the end the sweep's folder gets
    summary.json and the report of all runs together.

    Returns:
        `{"name": ..., "runs": {folder of the run below the sweep's: its summary}}`, as in summary.json.

    Raises:
        ConfigError: a run cannot be done, or the sweep's folder is that of a run.
        Interrupted: as `buzz.evaluation.run.runner.run`.
    """
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
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report([folder], folder)
