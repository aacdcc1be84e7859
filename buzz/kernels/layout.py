"""How tensors lie in memory: kernels walk through them by strides, and read something else where those are others."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def check_rows(**tensors: torch.Tensor | None) -> None:
    """Raises ValueError, with the name: the last axis of a tensor is not contiguous."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            what = f"{name} {tuple(tensor.shape)} must be contiguous in its last axis"
            raise ValueError(f"{what}, got strides {tensor.stride()}")


def check_whole(**tensors: torch.Tensor | None) -> None:
    """Raises ValueError, with the name: a tensor is not contiguous."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} {tuple(tensor.shape)} must be contiguous, got strides {tensor.stride()}")


def check_matrices(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], **tensors: torch.Tensor | None
) -> None:
    """`check_whole` of matrices, what is added to their products, and more."""
    for name, given in (("weights", weights), ("biases", biases)):
        tensors |= {f"{name}[{index}]": tensor for index, tensor in enumerate(given)}
    check_whole(**tensors)


__all__ = ["check_matrices", "check_rows", "check_whole"]
