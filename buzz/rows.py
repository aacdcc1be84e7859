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
