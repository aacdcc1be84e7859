"""Samples that are made rather than read: the options of their grids, and a limit that is spread over one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from buzz.evaluation.config.schema import parsed_by, said
from buzz.evaluation.errors import ConfigError

Cell = TypeVar("Cell")


def listed(kinds: tuple[type, ...], holds: Callable[[Any], bool], wanted: str) -> Any:
    """Field metadata: a list of at least one value of one of these types, none twice, each of which `holds`.

    The first type is the one that the values get: an integer is made a number where numbers are wanted.
    """

    def parse(raw: Any, where: str) -> list[Any]:
        good = isinstance(raw, list) and raw and all(type(value) in kinds and holds(value) for value in raw)
        if not good or len(set(raw)) < len(raw):
            raise ConfigError(where, said(raw), wanted)
        return [kinds[0](value) for value in raw]

    return parsed_by(parse)


def length_list(least: int, unit: str) -> Any:
    """Field metadata of `lengths`: different integers of at least `least`."""
    wanted = f"a list of different integers of at least {least} ({unit}) is wanted"
    return listed((int,), lambda value: value >= least, wanted)


def depth_list() -> Any:
    """Field metadata of `depths`: different shares of a text."""
    wanted = "a list of different numbers from 0.0 to 1.0 is wanted"
    return listed((float, int), lambda value: 0 <= value <= 1, wanted)


def spread(
    cells: Sequence[Cell], per_cell: int, limit: int | None, taken: Callable[[Cell, int], bool]
) -> list[tuple[Cell, int]]:
    """Pairs of a cell and an index below `per_cell`: one sample of every cell, then the second of every cell, ...

    Args:
        limit: at most so many. A round that is cut short takes cells spread over the whole grid; None: all.
        taken: whether a sample is among those that are wanted at all.
    """
    samples: list[tuple[Cell, int]] = []
    for index in range(per_cell):
        left = [cell for cell in cells if taken(cell, index)]
        count = len(left) if limit is None else min(limit - len(samples), len(left))
        # In the middle of `count` equal stretches of the grid; every cell if there are as many.
        samples += [(left[(2 * i + 1) * len(left) // (2 * count)], index) for i in range(count)]
    return samples


def check_size(lengths: Sequence[int], samples: int, limit: int | None, most: int, unit: str) -> None:
    """Refuse samples whose texts, all of which are held in memory, are longer than `most` in all.

    Args:
        lengths: of which there are equally many samples each. samples: of all lengths together.

    Raises:
        ConfigError: they are.
    """
    whole = sum(lengths) * samples // len(lengths)
    if limit is not None and limit < samples:
        whole = max(lengths) * limit
    if whole > most:
        raise ConfigError("task.lengths", f"the texts have {whole} {unit} in all", f"at most {most} is wanted")
