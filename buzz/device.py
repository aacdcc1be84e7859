"""Where the Triton kernels run."""

from __future__ import annotations

import functools
import importlib.util

import torch

HALF = (torch.float16, torch.bfloat16)


def runs_triton(x: torch.Tensor) -> bool:
    """Whether x lies on a CUDA device, and Triton is installed."""
    return x.is_cuda and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
