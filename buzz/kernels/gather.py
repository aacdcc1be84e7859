"""Slots that stay, from one buffer into another, in one Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

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
    """
    B, H, _, D = source.shape
    kept = target.shape[2]
    stride = [0 if size == 1 else stride for size, stride in zip(slots.shape[:2], slots.stride()[:2], strict=True)]
    with torch.cuda.device_of(source):
        _gather[(triton.cdiv(kept, _SLOTS), B * H)](
            source, slots, target, *source.stride()[:3], *stride, *target.stride()[:3], H, kept,
            D=D, D_PADDED=triton.next_power_of_2(D), N=_SLOTS,
        )  # fmt: skip


__all__ = ["gather_slots"]
