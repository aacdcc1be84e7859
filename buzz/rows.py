"""Integers of a batch's rows: Python's for decisions, and the same on a device, where they are brought once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Rows(tuple[int, ...]):
    """One integer per row, immutable."""

    def on(self, device: torch.device) -> torch.Tensor:
        """The integers as int64 [B]. Copied at the first call for a device, which does not wait for it."""
        known: dict[torch.device, torch.Tensor] = self.__dict__.setdefault("_on", {})
        if device not in known:
            known[device] = brought(self, torch.int64, device)
        return known[device]

    def beside(self, *others: Rows, device: torch.device) -> torch.Tensor:
        """These integers and others of the same rows as int32 [B, 1 + others]; copied as by `on`."""
        known: dict[tuple[tuple[Rows, ...], torch.device], torch.Tensor] = self.__dict__.setdefault("_beside", {})
        key = (others, device)
        if key not in known:
            known[key] = brought(list(zip(self, *others, strict=True)), torch.int32, device)
        return known[key]


def brought(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of some numbers on a device, which is not waited for."""
    # From pageable memory a copy may wait until the device has done all that it was given.
    pinned = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=pinned).to(device, non_blocking=True)
