"""Needles by length and depth of the text: of passkey, and of RULER's tasks that ask for one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CELL = re.compile(r"(?:(\w+)/)?length(\d+)-depth([\d.e+-]+)-\d+")
_FOUND = ("recall", "string_match_all")  # metrics that say whether a needle was found
ALL = "all tasks"


@dataclass(frozen=True)
class Grid:
    """The share of needles that a method found.

    Args:
        lengths: in `unit`. depths: from 0 (start of the text) to 1 (end).
        found: float64 [depths, lengths], NaN where there is no sample.
        unit: what lengths count: words, or tokens.
    """

    lengths: list[int]
    depths: list[float]
    found: np.ndarray
    unit: str = "words"


def needle_grids(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Grid]]:
    """The grids of each task by method: of the samples whose ids name their cells. All grids have the same cells.

    Returns:
        By task, and by method. Ids without a task (passkey) have the task ""; of several tasks there is one more,
        `ALL`, which comes first: all samples together.
    """
    cells: dict[str, dict[str, dict[tuple[int, float], list[float]]]] = {}
    for method, rows in records.items():
        for row in rows:
            match = _CELL.fullmatch(row["id"])
            value = next((row["metrics"][name] for name in _FOUND if row["metrics"].get(name) is not None), None)
            if match and value is not None:
                cell = int(match.group(2)), float(match.group(3))
                for task in (match.group(1) or "", ALL):
                    cells.setdefault(task, {}).setdefault(method, {}).setdefault(cell, []).append(value)
    several = len(cells) > 2  # ALL is one
    places = [place for methods in cells.values() for found in methods.values() for place in found]
    lengths, depths = sorted({length for length, _ in places}), sorted({depth for _, depth in places})
    order = ([ALL] if several else []) + [task for task in cells if task != ALL]
    return {
        task: {
            method: Grid(lengths, depths, _means(found, lengths, depths), "tokens" if task else "words")
            for method, found in cells[task].items()
        }
        for task in order
    }


def _means(
    found: Mapping[tuple[int, float], Sequence[float]], lengths: Sequence[int], depths: Sequence[float]
) -> np.ndarray:
    return np.array([[_mean(found.get((length, depth), [])) for length in lengths] for depth in depths])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def grid_rows(grid: Grid) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table: depths down, lengths across, in percent."""
    header = ["depth", *(f"{length} {grid.unit}" for length in grid.lengths)]
    rows = [
        [f"{100 * depth:g}%", *("-" if np.isnan(value) else f"{100 * value:.0f}" for value in values)]
        for depth, values in zip(grid.depths, grid.found, strict=True)
    ]
    return header, rows


def asked_when(config: Mapping[str, Any]) -> str:
    """A line that says whether the question was known when the text was compressed."""
    if config.get("task", {}).get("query_aware", True):
        return "The question was part of the prompt that was compressed."
    return "The texts were compressed before the question was read."
