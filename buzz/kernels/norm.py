"""RMS norms of many tokens in one Triton kernel each, alone or of a sum that is kept as well."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rms_norm(X, ADDEND, WEIGHT, SUM, OUT, width, epsilon, WIDTH_PADDED: tl.constexpr, ADDS: tl.constexpr):
    """One program has one token."""
    n = tl.arange(0, WIDTH_PADDED)
    inside, at = n < width, tl.program_id(0).to(tl.int64) * width + n
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        total = (x + tl.load(ADDEND + at, mask=inside, other=0.0).to(tl.float32)).to(SUM.dtype.element_ty)
        tl.store(SUM + at, total, mask=inside)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + epsilon)
    weight = tl.load(WEIGHT + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + at, (x * scale * weight).to(OUT.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + epsilon) * weight over the last axis; float32 arithmetic, rounded once.

    Args:
        x: [..., width], float16 or bfloat16. weight: [width], in x's dtype, contiguous.
    """
    return _launch(x, None, weight, epsilon)[1]


def add_rms_norm(
    x: torch.Tensor, addend: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + addend (alike), and the `rms_norm` of it as it is rounded."""
    return _launch(x, addend.contiguous(), weight, epsilon)


def _launch(
    x: torch.Tensor, addend: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    x, width = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    total = x if addend is None else torch.empty_like(x)
    padded = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _rms_norm[(x.numel() // width,)](
            x, x if addend is None else addend, weight, total, out, width, epsilon,
            WIDTH_PADDED=padded, ADDS=addend is not None, num_warps=min(16, max(4, padded // 512)),
        )  # fmt: skip
    return total, out
