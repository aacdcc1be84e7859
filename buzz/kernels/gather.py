"""Slots that stay, from one buffer into another or to the front of their own, in one Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.kernels.layout import check_rows

_SLOTS = 32  # of a program


@triton.jit
def _gather(
    SOURCE, SLOTS, TARGET,
    source_row, source_head, source_slot, slots_row, slots_head, target_row, target_head, target_slot, heads, kept,
    D: tl.constexpr, D_PADDED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    n, d = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, D_PADDED)
    slots = tl.load(SLOTS + row * slots_row + head * slots_head + n, mask=n < kept, other=0)
    inside = (n < kept)[:, None] & (d < D)[None, :]
    places = SOURCE + row * source_row + head * source_head + slots[:, None] * source_slot + d[None, :]
    x = tl.load(places, mask=inside, other=0.0)
    places = TARGET + row * target_row + head * target_head + n[:, None].to(tl.int64) * target_slot + d[None, :]
    tl.store(places, x, mask=inside)


def gather_slots(source: torch.Tensor, slots: torch.Tensor, target: torch.Tensor) -> None:
    """Write the slots of `source` to `target`, which must not share memory with it.

    Args:
        source: [B, H, L, D], the last axis contiguous.
        slots: int64 [B or 1, H or 1, K], the last axis contiguous, each in 0 .. L - 1 (which nobody checks).
        target: [B, H, K, D] in source's dtype, the last axis contiguous.

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_rows(source=source, slots=slots, target=target)
    B, H, _, D = source.shape
    kept = target.shape[2]
    stride = [0 if size == 1 else stride for size, stride in zip(slots.shape[:2], slots.stride()[:2], strict=True)]
    with torch.cuda.device_of(source):
        _gather[(triton.cdiv(kept, _SLOTS), B * H)](
            source, slots, target, *source.stride()[:3], *stride, *target.stride()[:3], H, kept,
            D=D, D_PADDED=triton.next_power_of_2(D), N=_SLOTS,
        )  # fmt: skip


@triton.jit
def _pack(
    BUFFER, SLOTS, ROWS, buffer_row, buffer_head, buffer_slot, slots_row, slots_head, heads, kept,
    D: tl.constexpr, D_PADDED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One head's slots, some after others. What a step reads lies behind all that the steps before have written."""
    row, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    BUFFER += tl.load(ROWS + row) * buffer_row + head * buffer_head
    d = tl.arange(0, D_PADDED)
    for start in range(0, kept, N):
        n = start + tl.arange(0, N)
        slots = tl.load(SLOTS + row * slots_row + head * slots_head + n, mask=n < kept, other=0)
        inside = (n < kept)[:, None] & (d < D)[None, :]
        x = tl.load(BUFFER + slots[:, None] * buffer_slot + d[None, :], mask=inside, other=0.0)
        tl.debug_barrier()  # all is read that this step writes over
        tl.store(BUFFER + n[:, None] * buffer_slot + d[None, :], x, mask=inside)


def pack_slots(buffer: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Bring slots of some rows of a buffer to its front, in place.

    Args:
        buffer: [B, H, C, D], the last axis contiguous.
        slots: int64 [R or 1, H or 1, K], the last axis contiguous, each in 0 .. C - 1 (which nobody checks). As far as
            they ascend, this is what is at the front then; behind that anything that the row has held.
        rows: int64 [R], which rows of the buffer.

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_rows(buffer=buffer, slots=slots, rows=rows)
    (_, heads, _, dim), kept = buffer.shape, slots.shape[2]
    stride = [0 if size == 1 else stride for size, stride in zip(slots.shape[:2], slots.stride()[:2], strict=True)]
    with torch.cuda.device_of(buffer):
        _pack[(len(rows) * heads,)](
            buffer, slots, rows, *buffer.stride()[:3], *stride, heads, kept,
            D=dim, D_PADDED=triton.next_power_of_2(dim), N=_SLOTS,
        )  # fmt: skip


__all__ = ["gather_slots", "pack_slots"]
