"""How the Triton kernels of attention are cut up. Results differ in rounding alone; the defaults were measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiles:
    """How `received` is cut up; None: as is best known for the dtype and head dimension.

    Args:
        queries, keys: of a tile, powers of two, at least 16. A program has one block of keys for all of its queries.
        warps: of a program.
        stages: tiles of queries that are on their way at once.
        registers: of a thread at most, which decides how many programs share a multiprocessor; 0: no limit.
    """

    queries: int | None = None
    keys: int | None = None
    warps: int | None = None
    stages: int | None = None
    registers: int | None = None


@dataclass(frozen=True)
class Launch:
    """How `attend_step` is cut up.

    None: as is best known for the dtype, the group, and how many rows, heads and slots there are (`buzz.kernels.step`).

    Args:
        slots: slots that a program looks at together, a power of two, with `dot` at least 16.
        splits: programs that share a row and KV head. One needs no second kernel.
        programs: programs per multiprocessor at most, over all rows and heads, where these are not more.
        warps: of a program.
        stages: depth of the pipeline of loads; 1: none.
        dot: matrix products for the heads of a group, padded to 16; None: from 3 heads on, for which the registers
            would not do otherwise.
        score_slots: slots whose scores one program updates, a power of two.
        early: the kernels may start before those before them have ended (`buzz.kernels.early`), where the device can.
    """

    slots: int | None = None
    splits: int | None = None
    programs: int | None = None
    warps: int | None = None
    stages: int | None = None
    dot: bool | None = None
    score_slots: int = 1024
    early: bool = True
