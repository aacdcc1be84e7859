"""Passkey retrieval by length and depth of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CELL = re.compile(r"length(\d+)-depth([\d.e+-]+)-\d+")


@dataclass(frozen=True)
class Grid:
    """The share of needles that a method found.

    Args:
        lengths: in words. depths: from 0 (start of the text) to 1 (end).
        recall: float64 [depths, lengths], NaN where there is no sample.
    """

    lengths: list[int]
    depths: list[float]
    recall: np.ndarray


def passkey_grids(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Grid]:
    """A grid for each method with passkey samples, whose ids name their cells; all grids have the same cells."""
    cells: dict[str, dict[tuple[int, float], list[float]]] = {}
    for method, rows in records.items():
        for row in rows:
            match, value = _CELL.fullmatch(row["id"]), row["metrics"].get("recall")
            if match and value is not None:
                cell = int(match.group(1)), float(match.group(2))
                cells.setdefault(method, {}).setdefault(cell, []).append(value)
    lengths = sorted({length for found in cells.values() for length, _ in found})
    depths = sorted({depth for found in cells.values() for _, depth in found})
    grids = {}
    for method, found in cells.items():
        means = [[_mean(found.get((length, depth), [])) for length in lengths] for depth in depths]
        grids[method] = Grid(lengths, depths, np.array(means))
    return grids


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def grid_rows(grid: Grid) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table: depths down, lengths across, in percent."""
    header = ["depth", *(f"{length} words" for length in grid.lengths)]
    rows = [
        [f"{100 * depth:g}%", *("-" if np.isnan(value) else f"{100 * value:.0f}" for value in values)]
        for depth, values in zip(grid.depths, grid.recall, strict=True)
    ]
    return header, rows
