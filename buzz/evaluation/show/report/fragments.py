"""Parts of report.html that need no script: tables, pictures, notes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import numpy as np
import yaml

from buzz.evaluation.show.report.folders import Run
from buzz.evaluation.show.report.needles import Grid, grid_rows, passkey_grids
from buzz.evaluation.show.report.pictures import PALETTE, Figure, colors
from buzz.evaluation.show.report.svg import inline_svg
from buzz.evaluation.show.table import (
    PAIRED,
    SPEED,
    Table,
    comparison_tables,
    headline_rows,
    notes,
    reading,
    results_rows,
    speed_rows,
)

_INTERVAL = re.compile(r"(\S+) (\[.*)")  # a figure, and its interval with whatever follows


def table(rows: Table, label: str, left: int = 1) -> str:
    """A table; the first `left` columns are names. Intervals stand below their figures."""
    header, cells = rows
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr>{''.join(_cell(cell, column < left) for column, cell in enumerate(row))}</tr>" for row in cells
    )
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(label)}'>"
        f"<table data-left='{left}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, name: bool) -> str:
    if name:
        return f"<th scope='row'>{escape(text)}</th>"
    parts = _INTERVAL.fullmatch(text)
    if not parts:
        return f"<td>{escape(text)}</td>"
    return f"<td>{escape(parts.group(1))} <small>{escape(parts.group(2))}</small></td>"


def figure(drawn: Figure, prefix: str, run: Run) -> str:
    """A picture that follows the page's colors."""
    svg = inline_svg(drawn.paths[1].read_text(encoding="utf-8"), prefix, PALETTE, colors(run.summary), drawn.alt)
    return f"<figure>{svg}<figcaption>{escape(drawn.caption)}</figcaption></figure>"


def results(run: Run) -> str:
    """The results table, what did not finish, and how to read it."""
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(run.summary))
    prose = " ".join(reading(run.summary["run"]["metrics"]))
    return (
        table(results_rows(run.summary, intervals=True), "Results of all methods")
        + (f"<ul class='notes'>{remarks}</ul>" if remarks else "")
        + f"<p class='quiet'>{escape(prose)}</p>"
    )


def speed(run: Run) -> str:
    """What decoding after a long prompt took; empty if it was not timed."""
    rows = speed_rows(run.summary)
    return f"{table(rows, 'After a long prompt')}<p class='quiet'>{escape(SPEED)}</p>" if rows[1] else ""


def headline(run: Run) -> str:
    """The headline metric alone."""
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(run.summary))
    return table(headline_rows(run.summary), f"Results of {run.name}") + (
        f"<ul class='notes'>{remarks}</ul>" if remarks else ""
    )


def comparisons(run: Run) -> str:
    """Paired differences to the full cache and to rivals, and shares of the full cache's scores; may be empty."""
    found = [
        f"<h3>{escape(title, quote=False)}</h3>{table(rows, title, left)}"
        for title, rows, left in comparison_tables(run.summary)
    ]
    return "".join([*found, f"<p class='quiet'>{escape(' '.join(PAIRED))}</p>"]) if found else ""


def passkey(run: Run) -> str:
    """A small map of length and depth for each method; empty if the task is another."""
    maps = [_map(method, grid) for method, grid in passkey_grids(run.records).items()]
    if not maps:
        return ""
    return f"<div class='maps'>{''.join(maps)}</div><p class='quiet'>Share of needles found, in percent.</p>"


def _map(method: str, grid: Grid) -> str:
    header, rows = grid_rows(grid)
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    body = ""
    for cells, values in zip(rows, grid.recall, strict=True):
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
