"""The worth of slots by their age, head by head, in one pass over a pool."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.kernels.layout import check_rows, check_whole

_CHUNK = 1024  # slots of a head that a program takes together, at most


@triton.jit
def _weigh(
    WORTH, OUT, BEGIN, LENGTH, INVERSE, size, begin_row, length_row, inverse_row, heads, N: tl.constexpr
):  # fmt: skip
    """One head of one row; its free places are left as they are."""
    row, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    begin = tl.load(BEGIN + row * begin_row + head)
    length = tl.load(LENGTH + row * length_row + head).to(tl.int32)
    inverse = tl.load(INVERSE + row * inverse_row + head)
    first = row * size + begin
    for start in range(0, length, N):
        slot = start + tl.arange(0, N)
        worth = tl.load(WORTH + first + slot, mask=slot < length)
        tl.store(OUT + first + slot, worth * (slot + 1).to(tl.float32) * inverse, mask=slot < length)


def weigh(worth: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """As `buzz.policies.ranking.by_recency`, to the bit; free places hold anything.

    Args:
        worth: float32 [R, P], contiguous.
        begin, length: int64 [R or 1, heads], as of `buzz.policies.places.Places`; the last axis is contiguous.
        inverse: float32, 1 / length, of its shape.

    Returns:
        float32 [R, P].

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_whole(worth=worth)
    check_rows(begin=begin, length=length, inverse=inverse)
    (rows, size), heads = worth.shape, begin.shape[1]
    lies = (begin, length, inverse)
    out = torch.empty_like(worth)
    chunk = min(_CHUNK, triton.next_power_of_2(triton.cdiv(size, heads)))
    with torch.cuda.device_of(worth):
        _weigh[(rows * heads,)](
            worth, out, *lies, size, *(0 if len(t) == 1 else t.stride(0) for t in lies), heads, N=chunk,
            num_warps=min(4, max(1, chunk // 256)),
        )  # fmt: skip
    return out


__all__ = ["weigh"]
