"""RMS norms in one Triton kernel each: of many tokens, of a sum that is kept as well, of what is added to one, and of
the queries and keys of one token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.kernels.early import early_launch, let_next_start, wait_for_last

_ELEMENTS = 2048  # of a program that norms several narrow rows


@triton.jit
def _normed(x, WEIGHT, n, width, epsilon, OFFSET: tl.constexpr):
    """Rows x [ROWS, len(n)], float32, which are zero past `width`."""
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / width + epsilon)
    weight = tl.load(WEIGHT + n, mask=n < width, other=0.0).to(tl.float32)
    if OFFSET != 0.0:
        weight += OFFSET
    return x * scale[:, None] * weight[None, :]


@triton.jit
def _rms_norm(
    X, ADDEND, ADDEND_WEIGHT, WEIGHT, SUM, OUT, rows, width, epsilon, factor,
    ROWS: tl.constexpr, WIDTH_PADDED: tl.constexpr, OFFSET: tl.constexpr, ADDS: tl.constexpr, SCALED: tl.constexpr,
    NORMS_ADDEND: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """One program has ROWS rows. What is multiplied or normed before it is added is rounded before that."""
    n, row = tl.arange(0, WIDTH_PADDED), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (n < width)[None, :]
    at = row[:, None].to(tl.int64) * width + n[None, :]
    dtype = OUT.dtype.element_ty
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        addend = tl.load(ADDEND + at, mask=inside, other=0.0).to(tl.float32)
        if SCALED:
            addend = (addend * factor).to(dtype).to(tl.float32)
        if NORMS_ADDEND:
            addend = _normed(addend, ADDEND_WEIGHT, n, width, epsilon, OFFSET).to(dtype).to(tl.float32)
        total = (x + addend).to(dtype)
        tl.store(SUM + at, total, mask=inside)
        x = total.to(tl.float32)
    if NORMS:
        tl.store(OUT + at, _normed(x, WEIGHT, n, width, epsilon, OFFSET).to(dtype), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float = 0.0) -> torch.Tensor:
    """x / sqrt(mean(x²) + epsilon) * (offset + weight) over the last axis; float32 arithmetic, rounded once.

    Args:
        x: [..., width], float16 or bfloat16. weight: [width], in x's dtype, contiguous.
    """
    return _launch(x, weight, epsilon, offset)[1]


def add_rms_norm(
    x: torch.Tensor,
    addend: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    offset: float = 0.0,
    factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + factor * addend (alike), and the `rms_norm` of it as it is rounded; the product is rounded, too."""
    return _launch(x, weight, epsilon, offset, addend=addend, factor=factor)


def add_normed(
    x: torch.Tensor,
    addend: torch.Tensor,
    addend_weight: torch.Tensor,
    epsilon: float,
    offset: float = 0.0,
    weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x + rms_norm(addend) (alike), and with a `weight` the `rms_norm` of the sum as it is rounded, else None.

    So layers add that norm what a block gives (Gemma 3, OLMo 2). The norm of the addend is rounded before the sum.
    """
    total, out = _launch(x, weight, epsilon, offset, addend=addend, addend_weight=addend_weight)
    return total, None if weight is None else out


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    offset: float,
    *,
    addend: torch.Tensor | None = None,
    addend_weight: torch.Tensor | None = None,
    factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum and its norm; x in the place of a sum that is none, the sum in that of a norm that is none."""
    x, width = x.contiguous(), x.shape[-1]
    addend = None if addend is None else addend.contiguous()
    total = x if addend is None else torch.empty_like(x)
    out = total if weight is None else torch.empty_like(x)
    rows, padded = x.numel() // width, triton.next_power_of_2(width)
    several = max(1, _ELEMENTS // padded)
    with torch.cuda.device_of(x):
        _rms_norm[(triton.cdiv(rows, several),)](
            x, *(x if t is None else t for t in (addend, addend_weight, weight)), total, out,
            rows, width, epsilon, factor,
            ROWS=several, WIDTH_PADDED=padded, OFFSET=float(offset), ADDS=addend is not None, SCALED=factor != 1.0,
            NORMS_ADDEND=addend_weight is not None, NORMS=weight is not None,
            num_warps=min(16, max(4, padded // 512)),
        )  # fmt: skip
    return total, out


@triton.jit
def _norm_heads(
    X, Q_WEIGHT, K_WEIGHT, q_pieces, q_width, k_width, epsilon,
    WIDTH_PADDED: tl.constexpr, OFFSET: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program has one piece."""
    if EARLY:
        let_next_start()
    piece, WEIGHT, width = tl.program_id(0), Q_WEIGHT, q_width
    if piece >= q_pieces:
        piece, WEIGHT, width, X = piece - q_pieces, K_WEIGHT, k_width, X + q_pieces * q_width
    n = tl.arange(0, WIDTH_PADDED)
    weight = tl.load(WEIGHT + n, mask=n < width, other=0.0).to(tl.float32)
    if OFFSET != 0.0:
        weight += OFFSET
    if EARLY:
        wait_for_last()
    places = X + piece * width + n
    x = tl.load(places, mask=n < width, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + epsilon)
    tl.store(places, (x * scale * weight).to(X.dtype.element_ty), mask=n < width)


def norm_heads_(
    x: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    q_size: int,
    k_size: int,
    epsilon: float,
    offset: float = 0.0,
) -> torch.Tensor:
    """`rms_norm` of the queries and keys of one token, in place; x is returned.

    It may start before the kernel before it has ended (`buzz.kernels.early`), as those of a decode step do.

    Args:
        x: [q_size + k_size + any], contiguous. The first q_size elements are normed in pieces as long as `q_weight`,
            the next k_size in pieces as long as `k_weight`; the rest stays.
        q_weight, k_weight: in x's dtype, contiguous.

    Raises:
        ValueError: x is not contiguous, or pieces do not fill what they are of.
    """
    q_width, k_width = len(q_weight), len(k_weight)
    if q_size % q_width or k_size % k_width or q_size + k_size > x.numel() or not x.is_contiguous():
        sizes = f"pieces of {q_width} in {q_size} and of {k_width} in {k_size}"
        raise ValueError(f"x {tuple(x.shape)} must be contiguous and hold whole {sizes}")
    early = early_launch(x.device)
    padded = triton.next_power_of_2(max(q_width, k_width))
    with torch.cuda.device_of(x):
        _norm_heads[(q_size // q_width + k_size // k_width,)](
            x, q_weight, k_weight, q_size // q_width, q_width, k_width, epsilon,
            WIDTH_PADDED=padded, OFFSET=float(offset), EARLY=bool(early),
            num_warps=min(16, max(1, padded // 256)), **early,
        )  # fmt: skip
    return x
