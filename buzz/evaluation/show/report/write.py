"""Writes a report: finds the runs, draws the pictures, and puts report.md and report.html beside them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.files import write_atomically
from buzz.evaluation.measure.summary import compared_with
from buzz.evaluation.paths import short, user_path
from buzz.evaluation.show.report.folders import Run, find_runs, load_run
from buzz.evaluation.show.report.markdown import render_markdown
from buzz.evaluation.show.report.page import render_page
from buzz.evaluation.show.report.pictures import Figure, drawable, frontier_figure, look_of, run_figures

NO_PICTURES = "matplotlib is not installed, so the report has no pictures"


def write_report(folders: Sequence[str | Path], output: str | Path, against: Sequence[str] = ()) -> list[Path]:
    """Write report.md, report.html and the pictures of one run, or of several together.

    Of a run that is not finished, what is there is reported. Where matplotlib is not installed, pictures are left out,
    with a warning.

    Args:
        folders: run folders, or folders that hold some, such as a sweep's.
        output: the folder to write to; made if it does not exist. Equal runs give equal files.
        against: methods with which all others are compared, beside the full cache and each one's best rival.

    Returns:
        The files that were written, report.md first.

    Raises:
        ConfigError: a folder holds no run, a file in it is damaged, or no sample is finished; a run does not have a
            method of `against`; or the output cannot be a folder. WriteError: a file cannot be written.
    """
    runs = [_compared(run, against) for run in _load(find_runs(folders))]
    target = user_path(output, "output", "a folder is wanted")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{short(target)} cannot be written ({error.strerror or error})"
        raise ConfigError("output", what, "choose another folder") from error
    figures: list[list[Figure]] = [[] for _ in runs]
    shared, look = None, look_of([run.summary for run in runs])
    if not drawable():
        warnings.warn(NO_PICTURES, stacklevel=2)
    elif len(runs) == 1:
        figures = [run_figures(runs[0], target, look)]
    else:
        names = _prefixes(runs)
        figures = [run_figures(run, target, look, prefix) for run, prefix in zip(runs, names, strict=True)]
        shared = frontier_figure(runs, target, look)
    title = runs[0].name if len(runs) == 1 else _common_name(runs)
    page = render_page(title, runs, figures, shared)
    text = render_markdown(title, runs, figures, shared, target)
    paths = [target / "report.md", target / "report.html"]
    for path, content in zip(paths, (text, page), strict=True):
        write_atomically(path, content)
    drawn = [*([shared] if shared else []), *(figure for row in figures for figure in row)]
    return [*paths, *(path for figure in drawn for path in figure.paths)]


def _load(paths: Sequence[Path]) -> list[Run]:
    """The runs; of several, those without a finished sample are left out, with a warning."""
    if len(paths) == 1:
        return [load_run(paths[0])]
    runs = []
    for path in paths:
        if not (path / "summary.json").exists() and not any((path / "samples").glob("*.jsonl")):
            warnings.warn(f"{path} is left out: it has not begun", stacklevel=3)
            continue
        runs.append(load_run(path))
    if not runs:
        raise ConfigError(str(paths[0]), "and the other runs have not begun", "run them first")
    return runs


def _compared(run: Run, against: Sequence[str]) -> Run:
    """The run with its methods compared with some more of them."""
    summary = run.summary
    for name in against:
        done = [method for method, rows in run.records.items() if rows]
        if name not in done:
            raise ConfigError(
                "--against", f"{run.name} has no samples of {name!r}", f"one of {', '.join(done) or '(none)'} is wanted"
            )
        summary = compared_with(summary, run.records, name, run.config.get("seed", 0))
    return replace(run, summary=summary)


def _prefixes(runs: Sequence[Run]) -> list[str]:
    """What the names of each run's pictures begin with; no two alike."""
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", run.name) for run in runs]
    return [
        f"{name}-" if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}-"
        for place, name in enumerate(names)
    ]


def _common_name(runs: Sequence[Run]) -> str:
    """The name of the folder that all runs are in."""
    parents = [str(run.path.resolve().parent) for run in runs]
    return os.path.basename(os.path.commonpath(parents)) or f"{len(runs)} runs"
