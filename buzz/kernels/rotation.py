"""Rotation of many tokens by their angles in one Triton kernel, which reads and writes every element once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.kernels.layout import check_rows

_TOKENS, _HEADS = 8, 8  # of a program


@triton.jit
def _rotate(
    X, COS, SIN, OUT,
    x_row, x_head, x_token, out_row, out_head, out_token, cos_row, cos_token, sin_row, sin_token, heads, tokens,
    HALF: tl.constexpr, HALF_PADDED: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """One program rotates a few tokens of a few heads: their angles are read once."""
    row = tl.program_id(2).to(tl.int64)
    t, h = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, HALF_PADDED)
    inside = (t < tokens)[:, None] & (h < HALF)[None, :]
    t = t.to(tl.int64)[:, None]
    cosines, sines = COS + row * cos_row + t * cos_token + h, SIN + row * sin_row + t * sin_token + h
    cos1, cos2 = tl.load(cosines, mask=inside, other=0.0), tl.load(cosines + HALF, mask=inside, other=0.0)
    sin1, sin2 = tl.load(sines, mask=inside, other=0.0), tl.load(sines + HALF, mask=inside, other=0.0)
    cos1, cos2, sin1, sin2 = (cos1.to(tl.float32), cos2.to(tl.float32), sin1.to(tl.float32), sin2.to(tl.float32))
    first = tl.program_id(1) * HEADS
    for head in range(first, min(first + HEADS, heads)):
        places = X + row * x_row + head * x_head + t * x_token + h
        x1 = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        x2 = tl.load(places + HALF, mask=inside, other=0.0).to(tl.float32)
        places = OUT + row * out_row + head * out_head + t * out_token + h
        tl.store(places, (x1 * cos1 + x2 * sin1).to(OUT.dtype.element_ty), mask=inside)
        tl.store(places + HALF, (x2 * cos2 + x1 * sin2).to(OUT.dtype.element_ty), mask=inside)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x * cos + swapped(x) * sin, where `swapped` changes the halves of the last axis: half-precision only.

    Args:
        x: [B, H, L, D], float16 or bfloat16, D even, the last axis contiguous.
        cos, sin: [L, D], or [1 or B, 1, L, D], in x's dtype, the last axis contiguous; the signs of the halves are in
            `sin`.

    Returns:
        [B, H, L, D] in the order in memory that x has; float32 arithmetic, rounded once.

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_rows(x=x, cos=cos, sin=sin)
    B, H, L, D = x.shape
    cos, sin = (t[None, None] if t.dim() == 2 else t for t in (cos, sin))
    row = 0 if len(cos) == 1 else 1
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _rotate[(triton.cdiv(L, _TOKENS), triton.cdiv(H, _HEADS), B)](
            x, cos, sin, out,
            *x.stride()[:3], *out.stride()[:3],
            row * cos.stride(0), cos.stride(2), row * sin.stride(0), sin.stride(2), H, L,
            HALF=D // 2, HALF_PADDED=triton.next_power_of_2(D // 2), TOKENS=_TOKENS, HEADS=_HEADS,
        )  # fmt: skip
    return out
