"""Where the Triton kernels run, and where they pay."""

from __future__ import annotations

import functools
import importlib.util

import torch

HALF = (torch.float16, torch.bfloat16)
_LARGE = 1 << 23  # elements: a prompt of 2048 tokens in a model 4096 wide


def runs_triton(x: torch.Tensor) -> bool:
    """Whether x lies on a CUDA device, and Triton is installed."""
    return x.is_cuda and _has_triton()


def is_large(x: torch.Tensor) -> bool:
    """Whether one kernel instead of several of PyTorch's saves the device more than the host needs to launch it.

    A launch of a Triton kernel takes the host as long as some five of PyTorch's.
    """
    return x.numel() >= _LARGE


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
