"""Scores part by part: tables of methods against the tasks of RULER, or the data sets of LongBench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from buzz.evaluation.show.table import NONE, Table, metric_label, shown

Key = tuple[str, int | None]  # task and length


def part_tables(summary: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Titles and rows of the headline metric's tables: for each length methods against tasks, then against lengths.

    A mean is that of its row's figures, each task counting the same. No tables where samples have no parts.
    """
    metric = summary["run"]["headline"]
    found: dict[str, dict[Key, float]] = {}
    for name, entry in summary["methods"].items():
        told = {(part["task"], part["length"]): part["metrics"].get(metric) for part in entry.get("parts", [])}
        if told:
            found[name] = {key: value for key, value in told.items() if value is not None}
    keys = list(dict.fromkeys(key for values in found.values() for key in values))
    if not keys:
        return []
    label, tasks = metric_label(metric), list(dict.fromkeys(task for task, _ in keys))
    lengths = sorted({length for _, length in keys if length is not None})
    tables = []
    parts: list[int | None] = [*lengths] or [None]
    for length in parts:
        title = f"{label} by task" + (f", {length} tokens" if length else "")
        tables.append((title, _table(found, metric, {task: [(task, length)] for task in tasks})))
    if len(lengths) > 1:
        columns = {f"{length} tokens": [(task, length) for task in tasks] for length in lengths}
        tables.append((f"{label} by length", _table(found, metric, columns)))
    return tables


def _table(found: Mapping[str, Mapping[Key, float]], metric: str, columns: Mapping[str, Sequence[Key]]) -> Table:
    """A row a method, a column for each set of parts, and the mean of the row."""
    rows = []
    for name, values in found.items():
        means = [_mean([values[key] for key in keys if key in values]) for keys in columns.values()]
        rows.append([name, *(NONE if mean is None else shown(metric, mean) for mean in [*means, _mean(means)])])
    return ["method", *columns, "mean"], rows


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
