"""Integers of a batch's rows: Python's for decisions, and the same on a device, where they are brought once."""

from __future__ import annotations

import torch


class Rows(tuple[int, ...]):
    """One integer per row, immutable."""

    def on(self, device: torch.device) -> torch.Tensor:
        """The integers as int64 [B]. Copied at the first call for a device, which does not wait for it."""
        known: dict[torch.device, torch.Tensor] = self.__dict__.setdefault("_on", {})
        if device not in known:
            known[device] = torch.tensor(self, dtype=torch.int64).to(device, non_blocking=True)
        return known[device]

    def beside(self, *others: Rows, device: torch.device) -> torch.Tensor:
        """These integers and others of the same rows as int32 [B, 1 + others]; copied once, as by `on`."""
        known: dict[tuple[tuple[Rows, ...], torch.device], torch.Tensor] = self.__dict__.setdefault("_beside", {})
        key = (others, device)
        if key not in known:
            columns = torch.tensor(list(zip(self, *others, strict=True)), dtype=torch.int32)
            known[key] = columns.to(device, non_blocking=True)
        return known[key]
