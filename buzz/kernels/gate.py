"""The gate of an MLP in one Triton kernel, and the activations that open one."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

Activation = Literal["silu", "gelu_tanh"]

_ELEMENTS = 2048  # of a program


@triton.jit
def opened(gate, ACTIVATION: tl.constexpr):
    """The activation of float32 numbers: silu, or gelu in the approximation by tanh."""
    tl.static_assert(ACTIVATION == "silu" or ACTIVATION == "gelu_tanh")
    if ACTIVATION == "silu":
        y = gate / (1.0 + tl.exp(-gate))
    else:
        # (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)), and z = sqrt(2 / pi) (x + 0.044715 x^3)
        y = gate / (1.0 + tl.exp(-1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate)))
    return y


@triton.jit
def _gate(GATE, UP, elements, ELEMENTS: tl.constexpr, ACTIVATION: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = n < elements
    dtype = GATE.dtype.element_ty
    gate = tl.load(GATE + n, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(UP + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(GATE + n, (opened(gate, ACTIVATION).to(dtype).to(tl.float32) * up).to(dtype), mask=inside)


def gate_(gate: torch.Tensor, up: torch.Tensor, activation: Activation = "silu") -> torch.Tensor:
    """activation(gate) * up, written to `gate`, which is returned; float16 or bfloat16 tensors of one shape.

    The activation is rounded before it is multiplied, as transformers does it.

    Args:
        activation: silu, or gelu_tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.

    Raises:
        ValueError: not contiguous, or of different shapes.
    """
    if gate.shape != up.shape or not gate.is_contiguous() or not up.is_contiguous():
        raise ValueError(f"gate {tuple(gate.shape)} and up {tuple(up.shape)} must be contiguous and alike")
    with torch.cuda.device_of(gate):
        _gate[(triton.cdiv(gate.numel(), _ELEMENTS),)](
            gate, up, gate.numel(), ELEMENTS=_ELEMENTS, ACTIVATION=activation
        )
    return gate
