"""Slots that stay, from where heads held them to where they are dealt to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.kernels.layout import check_rows, check_whole

_CHUNK = 1024  # places of a head that a program looks at together
_SLOTS = 64  # that a program brings over


@triton.jit
def _count(STAY, BEGIN, LENGTH, COUNT, size, begin_row, length_row, heads, N: tl.constexpr):
    unit, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    begin = tl.load(BEGIN + unit * begin_row + head)
    end = begin + tl.load(LENGTH + unit * length_row + head)
    number = tl.zeros([N], tl.int32)
    for start in range(begin, end, N):
        place = start + tl.arange(0, N)
        number += (tl.load(STAY + unit * size + place, mask=place < end, other=0) != 0).to(tl.int32)
    tl.store(COUNT + tl.program_id(0), tl.sum(number, 0).to(tl.int64))


@triton.jit
def _list(
    STAY, BEGIN, LENGTH, BEFORE, TO, ORDER, GOAL, size, begin_row, length_row, heads, most, N: tl.constexpr
):  # fmt: skip
    unit, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    begin = tl.load(BEGIN + unit * begin_row + head)
    end = begin + tl.load(LENGTH + unit * length_row + head)
    before, to = tl.load(BEFORE + tl.program_id(0)), tl.load(TO + tl.program_id(0))
    done = before * 0
    for start in range(begin, end, N):
        place = start + tl.arange(0, N)
        stay = tl.load(STAY + unit * size + place, mask=place < end, other=0) != 0
        at = done + tl.cumsum(stay.to(tl.int32), 0) - 1
        wanted = stay & (before + at < most)
        tl.store(ORDER + unit * most + before + at, place.to(tl.int64), mask=wanted)
        tl.store(GOAL + unit * most + before + at, to + at, mask=wanted)
        done += tl.sum(stay.to(tl.int64), 0)


@triton.jit
def _move(
    SOURCE, ORDER, FROM, TARGET, GOAL, INTO,
    source_row, source_head, source_slot, slots, first, size, order_row, target_row, places, goal_row, number,
    D: tl.constexpr, D_PADDED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(1).to(tl.int64)
    n, d = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, D_PADDED)
    place = tl.load(ORDER + unit * order_row + n, mask=n < number, other=-1) - first
    here = (n < number) & (place >= 0) & (place < size)  # in this part of the source
    goal = tl.load(GOAL + unit * goal_row + n, mask=here, other=0)
    place = tl.where(here, place, 0)
    at = tl.load(FROM + unit) * source_row + place // slots * source_head + place % slots * source_slot
    inside = (here & (goal < places))[:, None] & (d < D)[None, :]
    x = tl.load(SOURCE + at[:, None] + d[None, :], mask=inside, other=0.0)
    to = tl.load(INTO + unit) * target_row + goal * D
    tl.store(TARGET + to[:, None] + d[None, :], x, mask=inside)


def count_stays(stay: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, chunk: int = _CHUNK) -> torch.Tensor:
    """How many slots of each head stay, int64 [U, heads].

    Args:
        stay: bool [U, P], contiguous.
        begin, length: int64 [U or 1, heads], where each head's slots are. The last axis is contiguous.
        chunk: how the work is cut up; a power of two.

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_whole(stay=stay)
    check_rows(begin=begin, length=length)
    units, heads = len(stay), begin.shape[1]
    counts = torch.empty(units, heads, dtype=torch.int64, device=stay.device)
    with torch.cuda.device_of(stay):
        _count[(units * heads,)](
            stay.view(torch.uint8), begin, length, counts, stay.shape[1], *_row_strides(begin, length), heads, N=chunk
        )
    return counts


def list_stays(
    stay: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, before: torch.Tensor, to: torch.Tensor, most: int,
    chunk: int = _CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The places of slots that stay, ascending, and those where each head's go, from `to` on: int64 [U, most].

    Of a unit with fewer slots 0 behind the last of them.

    Args:
        stay, begin, length: as of `count_stays`.
        before: int64 [U, heads], contiguous, slots that stay of the heads before.
        to: int64 [U, heads], contiguous.

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_whole(stay=stay, before=before, to=to)
    check_rows(begin=begin, length=length)
    units, heads = before.shape
    order, goal = torch.zeros(2, units, most, dtype=torch.int64, device=stay.device)
    with torch.cuda.device_of(stay):
        _list[(units * heads,)](
            stay.view(torch.uint8), begin, length, before, to, order, goal,
            stay.shape[1], *_row_strides(begin, length), heads, most, N=chunk,
        )  # fmt: skip
    return order, goal


def move_slots(
    source: torch.Tensor, order: torch.Tensor, rows: torch.Tensor, target: torch.Tensor, goal: torch.Tensor,
    into: torch.Tensor, first: int = 0,
) -> None:  # fmt: skip
    """Write places of `source` to places of `target`, which must not share memory with it.

    Args:
        source: [B, H, L, D], the last axis contiguous: places first .. first + H * L - 1 of each row.
        order: int64 [U, K], places; those that are not of this source are passed over. The last axis is contiguous.
        rows: int64 [U], which of the source each unit is.
        target: [units, P, D], contiguous but for the first axis, in source's dtype.
        goal: as order, places in the target.
        into: int64 [U], which of the target each unit is.

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_rows(source=source, order=order, goal=goal, rows=rows, into=into)
    check_whole(target=target[:1])
    _, heads, slots, dim = source.shape
    units, number = order.shape
    with torch.cuda.device_of(source):
        _move[(triton.cdiv(number, _SLOTS), units)](
            source, order, rows, target, goal, into, *source.stride()[:3], slots, first, heads * slots,
            order.stride(0), target.stride(0), target.shape[1], goal.stride(0), number,
            D=dim, D_PADDED=triton.next_power_of_2(dim), N=_SLOTS,
        )  # fmt: skip


def _row_strides(*tensors: torch.Tensor) -> list[int]:
    return [0 if len(t) == 1 else t.stride(0) for t in tensors]


__all__ = ["count_stays", "list_stays", "move_slots"]
