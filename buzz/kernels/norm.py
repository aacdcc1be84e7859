"""RMS norms in one Triton kernel each: of many tokens, of a sum that is kept as well, of what is added to one, and of
the queries and keys of a decode step.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from buzz.kernels.early import early_launch, let_next_start, wait_for_last
from buzz.kernels.layout import check_rows

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
    X, ADDEND, BIAS, ADDEND_WEIGHT, WEIGHT, SUM, OUT, rows, width, parts, epsilon, factor,
    ROWS: tl.constexpr, WIDTH_PADDED: tl.constexpr, OFFSET: tl.constexpr, ADDS: tl.constexpr, IN_PARTS: tl.constexpr,
    BIASED: tl.constexpr, SCALED: tl.constexpr, NORMS_ADDEND: tl.constexpr, NORMS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program has ROWS rows. What is multiplied or normed before it is added is rounded before that.

    ADDEND [rows, width], or IN_PARTS float32 [parts, rows, width], whose sum it is.
    """
    if EARLY:
        let_next_start()
    n, row = tl.arange(0, WIDTH_PADDED), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (n < width)[None, :]
    at = row[:, None].to(tl.int64) * width + n[None, :]
    dtype = OUT.dtype.element_ty
    if EARLY:
        wait_for_last()
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        addend = tl.load(ADDEND + at, mask=inside, other=0.0).to(tl.float32)
        if IN_PARTS:
            places = ADDEND + at
            for _ in range(1, parts):
                places += rows * width
                addend += tl.load(places, mask=inside, other=0.0)
            if BIASED:
                addend += tl.load(BIAS + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
            addend = addend.to(dtype).to(tl.float32)
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


def settle(
    x: torch.Tensor,
    parts: torch.Tensor | None = None,
    *,
    bias: torch.Tensor | None = None,
    factor: float = 1.0,
    parts_weight: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    epsilon: float = 0.0,
    offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + factor * (the sum of the parts + bias), and the `rms_norm` of it as it is rounded; between two products.

    The sum of the parts is rounded, and so is what is made of it before it is added, as a layer's modules do it. The
    kernel may start before the one before it has ended (`buzz.kernels.early`), as those of a decode step do.

    Args:
        x: [R, width], float16, bfloat16 or float32, contiguous.
        parts: float32 [S, R, width], contiguous (`buzz.kernels.skinny.skinny_parts`); None: x as it is.
        bias: [width], in x's dtype.
        parts_weight: [width], of an `rms_norm` of the parts' sum before it is added.
        weight: [width], of the norm that is given; None: the sum is given twice.
    """
    return _launch(
        x, weight, epsilon, offset, addend=parts, addend_weight=parts_weight, factor=factor, bias=bias, in_parts=True,
        early=early_launch(x.device),
    )  # fmt: skip


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    offset: float,
    *,
    addend: torch.Tensor | None = None,
    addend_weight: torch.Tensor | None = None,
    factor: float = 1.0,
    bias: torch.Tensor | None = None,
    in_parts: bool = False,
    early: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum and its norm; x in the place of a sum that is none, the sum in that of a norm that is none."""
    check_rows(bias=bias, addend_weight=addend_weight, weight=weight)
    x, width = x.contiguous(), x.shape[-1]
    addend = None if addend is None else addend.contiguous()
    early = early or {}
    total = x if addend is None else torch.empty_like(x)
    out = total if weight is None else torch.empty_like(x)
    rows, padded = x.numel() // width, triton.next_power_of_2(width)
    several = max(1, _ELEMENTS // padded)
    with torch.cuda.device_of(x):
        _rms_norm[(triton.cdiv(rows, several),)](
            x, *(x if t is None else t for t in (addend, bias, addend_weight, weight)), total, out,
            rows, width, len(addend) if in_parts and addend is not None else 1, epsilon, factor,
            ROWS=several, WIDTH_PADDED=padded, OFFSET=float(offset), ADDS=addend is not None, IN_PARTS=in_parts,
            BIASED=bias is not None, SCALED=factor != 1.0, NORMS_ADDEND=addend_weight is not None,
            NORMS=weight is not None, EARLY=bool(early), num_warps=min(16, max(4, padded // 512)), **early,
        )  # fmt: skip
    return total, out


@triton.jit
def _norm_heads(
    X, Q_WEIGHT, K_WEIGHT, size, q_pieces, q_width, k_width, epsilon,
    WIDTH_PADDED: tl.constexpr, OFFSET: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program has one piece of one row, which has `size` elements."""
    if EARLY:
        let_next_start()
    X += tl.program_id(1).to(tl.int64) * size
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
    """`rms_norm` of the queries and keys of a token of each row, in place; x is returned.

    It may start before the kernel before it has ended (`buzz.kernels.early`), as those of a decode step do.

    Args:
        x: [R, q_size + k_size + any], contiguous. The first q_size elements of a row are normed in pieces as long as
            `q_weight`, the next k_size in pieces as long as `k_weight`; the rest stays.
        q_weight, k_weight: in x's dtype, contiguous.

    Raises:
        ValueError: a tensor is not contiguous, or pieces do not fill what they are of.
    """
    check_rows(q_weight=q_weight, k_weight=k_weight)
    q_width, k_width = len(q_weight), len(k_weight)
    rows, size = x.shape
    if q_size % q_width or k_size % k_width or q_size + k_size > size or not x.is_contiguous():
        sizes = f"pieces of {q_width} in {q_size} and of {k_width} in {k_size}"
        raise ValueError(f"x {tuple(x.shape)} must be contiguous and hold whole {sizes}")
    early = early_launch(x.device)
    padded = triton.next_power_of_2(max(q_width, k_width))
    with torch.cuda.device_of(x):
        _norm_heads[(q_size // q_width + k_size // k_width, rows)](
            x, q_weight, k_weight, size, q_size // q_width, q_width, k_width, epsilon,
            WIDTH_PADDED=padded, OFFSET=float(offset), EARLY=bool(early),
            num_warps=min(16, max(1, padded // 256)), **early,
        )  # fmt: skip
    return x
