"""Slots of a pool to other places of the same pool, in their order: read once and written once, without a copy.

A slot that goes down may be written where another one still has to be read, which goes down then as well and comes
before it; likewise upwards. So the two kinds never meet. Of each, programs take tiles of places in the order in which
they depend on each other, say that a tile is read, and before they write wait for those that they write over. They are
at work already, or done, so the waits end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.kernels.layout import check_whole

_TILE = 64  # places


@triton.jit
def _shift(
    KEYS, VALUES, GOALS, ROWS, TICKETS, READ, size, tiles, units, row_stride,
    UP: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    unit = (tl.program_id(0) % units).to(tl.int64)
    READ += unit * tiles
    tile = tl.atomic_add(TICKETS + unit, 1)
    if UP:
        tile = tiles - 1 - tile
    place, d = tile * N + tl.arange(0, N), tl.arange(0, D_PADDED)
    goal = tl.load(GOALS + unit * size + place, mask=place < size, other=-1)
    moves = ((goal > place) & (goal < size)) if UP else ((goal >= 0) & (goal < place))
    inside = moves[:, None] & (d < D)[None, :]
    row = tl.load(ROWS + unit) * row_stride
    at = row + place[:, None].to(tl.int64) * D + d[None, :]
    keys, values = tl.load(KEYS + at, mask=inside, other=0.0), tl.load(VALUES + at, mask=inside, other=0.0)
    tl.debug_barrier()
    tl.atomic_xchg(READ + tile, 1, sem="release")
    lowest = tl.min(tl.where(moves, goal, size), 0).to(tl.int32)
    highest = tl.max(tl.where(moves, goal, -1), 0).to(tl.int32)
    if lowest <= highest:
        for other in range(lowest // N, highest // N + 1):
            while tl.atomic_add(READ + other, 0, sem="acquire") == 0:
                pass
        tl.debug_barrier()
        at = row + goal[:, None] * D + d[None, :]
        tl.store(KEYS + at, keys, mask=inside)
        tl.store(VALUES + at, values, mask=inside)


def shift_slots(
    keys: torch.Tensor, values: torch.Tensor, goals: torch.Tensor, rows: torch.Tensor, tile: int = _TILE
) -> None:
    """Bring slots to other places of their row, in place.

    Args:
        keys, values: [units, P, D], contiguous.
        goals: int64 [U, P], contiguous: where the slot of each place goes, ascending; -1: nowhere.
        rows: int64 [U], which of the pool's units each is.
        tile: places that a program brings over; a power of two.

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_whole(keys=keys, values=values, goals=goals, rows=rows)
    (units, size), dim = goals.shape, keys.shape[2]
    tiles = triton.cdiv(size, tile)
    told = torch.zeros(2, units * (tiles + 1), dtype=torch.int32, device=keys.device)
    with torch.cuda.device_of(keys):
        for up in (False, True):
            _shift[(units * tiles,)](  # the first axis alone takes more than 65,535
                keys, values, goals, rows, told[int(up)], told[int(up), units:], size, tiles, units, keys.stride(0),
                UP=up, D=dim, D_PADDED=triton.next_power_of_2(dim), N=tile,
            )  # fmt: skip


__all__ = ["shift_slots"]
