"""Integers of a batch's rows: Python's for decisions, and the same on a device, where they are brought once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch


class Rows(tuple[int, ...]):
    """One integer per row, immutable."""

    def on(self, device: torch.device) -> torch.Tensor:
        """The integers as int64 [B]. Copied at the first call for a device, which does not wait for it."""
        return self.once(device, lambda: brought(self, torch.int64, device))

    def beside(self, *others: Rows, device: torch.device) -> torch.Tensor:
        """These integers and others of the same rows as int32 [B, 1 + others]; copied as by `on`."""
        return self.once((others, device), lambda: brought(list(zip(self, *others, strict=True)), torch.int32, device))

    def once(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` gives, which is the same for these integers and a key: made at the first call for it."""
        known: dict[Hashable, torch.Tensor] = self.__dict__.setdefault("_once", {})
        if key not in known:
            known[key] = make()
        return known[key]


def brought(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of some numbers on a device, which is not waited for."""
    # From pageable memory a copy may wait until the device has done all that it was given.
    pinned = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=pinned).to(device, non_blocking=True)
