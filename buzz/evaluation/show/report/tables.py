"""Tables of report.html: the first one, which has what a method is judged by, and those with everything."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from buzz.evaluation.measure.best import Standing
from buzz.evaluation.show.table import (
    NONE,
    Table,
    answer_cell,
    answer_column,
    cache_cells,
    failed_cell,
    metric_label,
    results_rows,
    shown,
    shown_interval,
    shown_p,
    speed_cell,
)

_INTERVAL = re.compile(r"(\S+) (\[[^]]*\])(?: (p\S+))?")  # a figure, its interval, and a p-value
_KL = "fidelity_kl"
# Columns of the results table without an interval that have a best, and the figure that it is the best of.
_MEASURED = {"mean cache": "mean_tokens", "MiB": "mean_mib"}
MARKS = (
    "A hexagon and bold figures mark the best of a column, and all that cannot be told from it: by a paired difference "
    "whose 95% interval contains 0 or whose p-value is 0.05 or more; where there is no interval, within 10%. Methods "
    "are compared with those that hold about as much (mean cache within 10%), never with the full cache. If no method "
    "is left behind, as with a handful of samples, none is marked. Nor is a speed: what runs first pays for warming up."
)


@dataclass(frozen=True)
class Cell:
    """`small` stands below the text: its interval, or the same in other units. `best`: it is marked."""

    text: str
    small: str = ""
    best: bool = False


@dataclass(frozen=True)
class Body:
    """Rows that belong together, each with as many leading names as the table says.

    Args:
        title: a row above them; empty: none.
        name: of the kind, for the style sheet.
    """

    rows: Sequence[Sequence[Cell]]
    title: str = ""
    name: str = ""


def _table(header: Sequence[str], bodies: Sequence[Body], label: str, left: int = 1) -> str:
    """A table in a box of its own, inside which it scrolls sideways.

    Args:
        label: for those who do not see it. left: the first so many columns are names.
    """
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    parts = []
    for body in bodies:
        title = f"<th scope='rowgroup' colspan='{len(header)}'><span>{escape(body.title)}</span></th>"
        title = f"<tr class='title'>{title}</tr>" if body.title else ""
        rows = "".join(f"<tr>{''.join(_cell(c, i < left) for i, c in enumerate(row))}</tr>" for row in body.rows)
        kind = f" class='{body.name}'" if body.name else ""
        parts.append(f"<tbody{kind}>{title}{rows}</tbody>")
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(label)}'>"
        f"<table data-left='{left}'><thead><tr>{head}</tr></thead>{''.join(parts)}</table></div>"
    )


def _cell(cell: Cell, name: bool) -> str:
    small = f" <small>{escape(cell.small)}</small>" if cell.small else ""
    if name:
        return f"<th scope='row'>{escape(cell.text)}{small}</th>"
    if cell.best:
        return f"<td class='best'><b>{escape(cell.text)}</b>{small}<span class='unseen'> best</span></td>"
    return f"<td>{escape(cell.text)}{small}</td>"


def table(rows: Table, label: str, left: int = 1, without: Collection[str] = ()) -> str:
    """A table of texts; intervals stand below their figures.

    Args:
        label: for those who do not see it. left: the first so many columns are names.
        without: columns to leave out, by their heads.
    """
    header, texts = rows
    columns = [column for column, name in enumerate(header) if name not in without]
    body = Body([[_split(row[column]) for column in columns] for row in texts])
    return _table([header[column] for column in columns], [body], label, left)


def _split(text: str) -> Cell:
    parts = _INTERVAL.fullmatch(text)
    return Cell(parts.group(1), "\n".join(filter(None, parts.groups()[1:]))) if parts else Cell(text)


# --- tables of a run's methods ---------------------------------------------------------------------------------------


def first_table(summary: Mapping[str, Any], order: Standing, label: str) -> str:
    """What a method is judged by: the headline metric, the distance from the full cache, lengths, memory and speed."""
    run = summary["run"]
    metrics = list(dict.fromkeys([run["headline"], *([_KL] if _KL in run["metrics"] else [])]))
    paired = any("full" in entry.get("paired", {}) for entry in summary["methods"].values())
    header = [metric_label(metrics[0]), *(["minus full"] if paired else []), *map(metric_label, metrics[1:])]
    answer, rows = answer_column(summary), {}
    for name, entry in summary["methods"].items():
        marked = {figure for figure, names in order.best.items() if name in names}
        cells = [_metric(entry, metric, metric in marked) for metric in metrics]
        if name == order.reference and metrics[-1] == _KL:
            cells[-1] = replace(cells[-1], small="rounding")  # its distance from itself
        if paired:
            cells.insert(1, _difference(entry, metrics[0]))
        tokens, _, reduction, mib, in_bytes = cache_cells(entry)
        cells += [
            *(Cell(answer_cell(entry)) for _ in answer),
            Cell(tokens, "" if reduction == NONE else reduction, "mean_tokens" in marked),
            Cell(mib, "" if in_bytes == NONE else in_bytes, "mean_mib" in marked),
            Cell(speed_cell(entry)),
        ]
        rows[name] = cells
    header += [*answer, "cached tokens", "MiB", "tokens/s"]
    return _table(["method", *header], _bodies(summary, order, rows), label)


def all_figures(summary: Mapping[str, Any], order: Standing, label: str) -> str:
    """Every metric and every figure of the cache."""
    header, texts = results_rows(summary, intervals=True)
    metrics = summary["run"]["metrics"]
    columns = [None, *metrics, *map(_MEASURED.get, header[2 + len(metrics) :])]  # but the first, the method's name
    rows = {
        name: [
            replace(_split(text), best=name in order.best.get(figure or "", ()))
            for text, figure in zip(cells, columns, strict=True)
        ]
        for name, *cells in texts
    }
    return _table(header, _bodies(summary, order, rows), label)


def _metric(entry: Mapping[str, Any], metric: str, best: bool) -> Cell:
    if not entry["n"]:
        return Cell(failed_cell(entry))
    found = entry["metrics"].get(metric)
    return Cell(shown(metric, found["mean"]), shown_interval(metric, found["ci95"]), best) if found else Cell(NONE)


def _difference(entry: Mapping[str, Any], metric: str) -> Cell:
    """The paired difference to the full cache, and its p-value."""
    pair = entry.get("paired", {}).get("full", {}).get("metrics", {}).get(metric)
    if pair is None:
        return Cell(NONE)
    p = shown_p(pair["p"])
    return Cell(shown(metric, pair["difference"], sign=True), f"p{'' if p.startswith('<') else '='}{p}")


def _bodies(summary: Mapping[str, Any], order: Standing, rows: Mapping[str, list[Cell]]) -> list[Body]:
    """The full cache on top as the reference, the others by how much they hold, and those without samples."""
    bodies = []
    if order.reference is not None:
        bodies.append(Body([[Cell(order.reference, "reference"), *rows[order.reference]]], name="reference"))
    for group in order.groups:
        caches = [summary["methods"][name]["cache"] for name in group]
        held, share = (sum(cache[key] for cache in caches) / len(caches) for key in ("mean_tokens", "reduction"))
        title = f"about {held:.0f} cached tokens, {share:.2g}x less" if len(order.groups) > 1 else ""
        bodies.append(Body([[Cell(name), *rows[name]] for name in group], title))
    ranked = {order.reference, *(name for group in order.groups for name in group)}
    rest = [[Cell(name), *cells] for name, cells in rows.items() if name not in ranked]
    return [*bodies, Body(rest)] if rest else bodies
