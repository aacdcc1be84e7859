"""Where the slots of several heads lie that share the room of one pool."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Places(NamedTuple):
    """The slots of a row's heads in one pool, oldest first, those of a head together; each has a length of its own.

    heads: how many of them share, the layers' one after another where layers share too. layers: how many of these.
    head: int64 [R or 1, P], the head that a place belongs to. slot: int64 [R or 1, P], which of the head's slots it is,
    at least its length where the place is free. length: int64 [R or 1, heads], the slots of each head.
    """

    heads: int
    layers: int
    head: torch.Tensor
    slot: torch.Tensor
    length: torch.Tensor

    @classmethod
    def equal(cls, heads: int, layers: int, length: int, device: torch.device) -> Places:
        """Heads that hold equally many slots, with no free place between them."""
        head = torch.arange(heads, device=device).repeat_interleave(length)[None]
        slot = torch.arange(length, device=device).repeat(heads)[None]
        return cls(heads, layers, head, slot, torch.full((1, heads), length, device=device))

    @property
    def taken(self) -> torch.Tensor:
        """Which places hold a slot: bool [R or 1, P]."""
        return self.slot < self.length.gather(1, self.head)

    @property
    def layer(self) -> torch.Tensor:
        """The layer that a place belongs to, int64 [R or 1, P]."""
        return self.head // (self.heads // self.layers)

    def unpacked(self, length: int) -> torch.Tensor:
        """The taken places where every head holds `length` slots: int64 [R or 1, heads * length], head after head."""
        return (~self.taken).to(torch.uint8).argsort(dim=-1, stable=True)[:, : self.heads * length]


__all__ = ["Places"]
