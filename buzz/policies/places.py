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
        return self.slot < self.of_head(self.length)

    def of_head(self, figures: torch.Tensor) -> torch.Tensor:
        """What each place's head has of figures [R or 1, heads]: [R or 1, P]."""
        rows = max(len(figures), len(self.head))
        return figures.expand(rows, -1).gather(1, self.head.expand(rows, -1))

    def counted(self, which: torch.Tensor) -> torch.Tensor:
        """How many places of each head are true of `which`, bool [R, P]: int64 [R, heads]."""
        # A head's places lie together; to add up each by itself, all would write to the same few numbers.
        numbers = torch.arange(1, self.heads + 1, device=which.device).expand(len(self.head), -1).contiguous()
        ends = torch.searchsorted(self.head.contiguous(), numbers).expand(len(which), -1)  # behind each head's places
        sums = torch.nn.functional.pad(which.cumsum(dim=1), (1, 0))
        return sums.gather(1, ends).diff(dim=1, prepend=sums[:, :1])

    @property
    def layer(self) -> torch.Tensor:
        """The layer that a place belongs to, int64 [R or 1, P]."""
        return self.head // (self.heads // self.layers)


__all__ = ["Places"]
