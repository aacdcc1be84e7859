"""The gate of an MLP in one Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ELEMENTS = 2048  # of a program


@triton.jit
def _silu_gate(GATE, UP, elements, ELEMENTS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = n < elements
    dtype = GATE.dtype.element_ty
    gate = tl.load(GATE + n, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(UP + n, mask=inside, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(GATE + n, (opened * up).to(dtype), mask=inside)


def silu_gate_(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, written to `gate`, which is returned; float16 or bfloat16 tensors of one shape.

    silu is rounded before it is multiplied, as transformers does it.

    Raises:
        ValueError: not contiguous, or of different shapes.
    """
    if gate.shape != up.shape or not gate.is_contiguous() or not up.is_contiguous():
        raise ValueError(f"gate {tuple(gate.shape)} and up {tuple(up.shape)} must be contiguous and alike")
    with torch.cuda.device_of(gate):
        _silu_gate[(triton.cdiv(gate.numel(), _ELEMENTS),)](gate, up, gate.numel(), ELEMENTS=_ELEMENTS)
    return gate
