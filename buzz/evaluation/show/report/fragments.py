"""Parts of report.html that need no script: tables, pictures, notes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import yaml

from buzz.evaluation.measure.best import standing
from buzz.evaluation.show.parts import part_tables
from buzz.evaluation.show.report.folders import Run
from buzz.evaluation.show.report.needles import Grid, asked_when, grid_rows, needle_grids
from buzz.evaluation.show.report.pictures import PALETTE, Figure
from buzz.evaluation.show.report.svg import inline_svg
from buzz.evaluation.show.report.tables import MARKS, all_figures, first_table, table
from buzz.evaluation.show.table import CACHE, PAIRED, SPEED, comparison_tables, notes, reading, speed_rows


def figure(drawn: Figure, prefix: str) -> str:
    """A picture that follows the page's colors: one for a page, and another one for a phone."""
    wide, narrow = (
        inline_svg(text, f"{prefix}{kind}-", PALETTE, drawn.colors, drawn.alt, kind)
        for kind, text in (("page", drawn.paths[1].read_text(encoding="utf-8")), ("phone", drawn.narrow))
    )
    return f"<figure>{wide}{narrow}<figcaption>{escape(drawn.caption)}</figcaption></figure>"


def results(run: Run) -> str:
    """The results, what did not finish, how to read them, and every figure there is."""
    order = standing(run.summary, run.records, run.config.get("seed", 0))
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(run.summary))
    prose = "".join(
        f"<p class='quiet'>{escape(text)}</p>" for text in (MARKS, " ".join(reading(run.summary["run"]["metrics"])))
    )
    return (
        first_table(run.summary, order, f"Results of {run.name}")
        + (f"<ul class='notes'>{remarks}</ul>" if remarks else "")
        + "<details><summary>All metrics and figures</summary>"
        + all_figures(run.summary, order, f"All metrics and figures of {run.name}")
        + f"</details><details><summary>How to read the tables</summary>{prose}</details>"
    )


def speed(run: Run) -> str:
    """What decoding after a long prompt took; empty if it was not timed."""
    rows = speed_rows(run.summary)
    return f"{table(rows, 'After a long prompt')}<p class='quiet'>{escape(SPEED)}</p>" if rows[1] else ""


def comparisons(run: Run) -> str:
    """Paired differences to the full cache and to rivals, and shares of the full cache's scores; may be empty."""
    found = [
        f"<h3>{escape(title, quote=False)}</h3>{table(rows, title, left, without=CACHE)}"
        for title, rows, left in comparison_tables(run.summary)
    ]
    return "".join([*found, f"<p class='quiet'>{escape(' '.join(PAIRED))}</p>"]) if found else ""


def parts(run: Run) -> str:
    """The headline metric by task, where samples are of several; may be empty."""
    return "".join(f"<h3>{escape(title)}</h3>{table(rows, title)}" for title, rows in part_tables(run.summary))


def needles(run: Run) -> str:
    """A small map of length and depth for each method, task by task; empty if no needles are asked for."""
    groups = {
        task: f"<div class='maps'>{''.join(_map(method, grid) for method, grid in grids.items())}</div>"
        for task, grids in needle_grids(run.records).items()
    }
    if not groups:
        return ""
    first, *others = groups.items()
    folded = "".join(f"<details><summary>{escape(task)}</summary>{maps}</details>" for task, maps in others)
    of = f", {first[0]}" if others else ""
    return f"{first[1]}<p class='quiet'>Share of needles found{of}, in percent. {asked_when(run.config)}</p>{folded}"


def _map(method: str, grid: Grid) -> str:
    header, rows = grid_rows(grid)
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    body = ""
    for cells, values in zip(rows, grid.found, strict=True):
        tds = "".join(
            f"<td{'' if np.isnan(value) else f' class=m{round(10 * value)}'}>{cell}</td>"
            for cell, value in zip(cells[1:], values, strict=True)
        )
        body += f"<tr><th scope='row'>{cells[0]}</th>{tds}</tr>"
    caption = f"<caption>{escape(method)}</caption>"
    return f"<table class='map'>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def about(run: Run) -> str:
    """What the run depends on: its facts and its config."""
    facts = run.environment
    model, versions, command = facts.get("model") or {}, facts.get("versions") or {}, facts.get("command") or []
    names: Sequence[tuple[str, object]] = [
        ("run", run.name),
        ("model", run.summary["run"]["model"]),
        ("dtype, device", ", ".join(str(model[key]) for key in ("dtype", "device") if key in model)),
        ("machine", facts.get("device_name")),
        ("processes", facts.get("processes")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("commit", facts.get("git")),
        ("command", " ".join(map(str, command))),
        ("finished", run.summary["run"].get("finished") or "no"),
    ]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in names if value)
    config = escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
    return (
        f"<dl>{rows}</dl><details><summary>The whole config of {escape(run.name)}</summary>"
        f"<pre tabindex='0'>{config}</pre></details>"
    )
