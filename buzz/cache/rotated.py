"""A layer's keys as a model rotates them to their slots, kept from one step to the next on a CPU."""

from __future__ import annotations

import torch

from buzz.cache.memory import Memory

Angles = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of all slots


class Rotated:
    """A second buffer of keys, beside those that are cached as they were projected: a step rotates its own keys alone.

    Nothing is rotated twice, so they are to the bit what rotating all anew would give. It is good as long as all slots
    stay where they are; a layer forgets it when they move.

    Args:
        capacity: slots a head.
        memory: what the layers of the cache have allocated, which this adds to.

    Attributes:
        by: the angles of the step before. keys: [B, H, capacity, D], rotated by these, finite past a row's end; None:
            nothing has been kept yet.
    """

    def __init__(self, capacity: int, memory: Memory) -> None:
        self._capacity, self._memory = capacity, memory
        self.by: Angles | None = None
        self.keys: torch.Tensor | None = None

    def is_by(self, angles: Angles) -> bool:
        """Whether the step before had these angles: the same, or, of a model that was patched anew, equal ones."""
        if self.by is None or not (self.by is angles or all(map(torch.equal, self.by, angles))):
            return False
        self.by = angles
        return True

    def forget(self, by: Angles | None = None) -> None:
        """Give the memory back; `by` are the angles now."""
        if self.keys is not None:
            self._memory.nbytes -= self.keys.nbytes
        self.by, self.keys = by, None

    def fill(self, keys: torch.Tensor) -> torch.Tensor:
        """Keep the keys [B, H, S, D] of all slots; gives `keys`."""
        # Normal tensors even under inference mode, and zeros: as in a layer's own buffers.
        with torch.inference_mode(False):
            kept = keys.new_zeros(*keys.shape[:2], self._capacity, keys.shape[3])
        kept[:, :, : keys.shape[2]] = keys
        self._memory.nbytes += kept.nbytes
        self.keys = kept
        return kept

    def add(self, keys: torch.Tensor, at: slice | torch.Tensor) -> torch.Tensor:
        """Keep a step's keys [B, H, 1, D] too, in slots `at` as `Slots.query_slots` names them; gives `keys`."""
        assert self.keys is not None
        if isinstance(at, slice):
            self.keys[:, :, at] = keys
        else:
            self.keys[torch.arange(len(keys), device=keys.device), :, at[:, 0, 0]] = keys[:, :, 0]
        return self.keys


__all__ = ["Rotated"]
