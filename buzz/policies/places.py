"""Where the slots of several heads lie that share the room of one pool."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Places(NamedTuple):
    """The slots of a row's heads in one pool, oldest first, those of a head together; each has a length of its own.

    heads: how many of them share, the layers' one after another where layers share too. layers: how many of these.
    size: places of a row, P. begin: int64 [R or 1, heads], where the room of each head begins, which ends where the
    next one's does; the first one's is 0. length: int64 [R or 1, heads], the slots of each head, from its begin on; the
    rest of its room is free. first: where those of one layer are looked at alone, the number of the first of them among
    all that share.
    """

    heads: int
    layers: int
    size: int
    begin: torch.Tensor
    length: torch.Tensor
    first: int = 0

    @classmethod
    def equal(cls, heads: int, layers: int, length: int, device: torch.device) -> Places:
        """Heads that hold equally many slots, with no free place between them."""
        begin = torch.arange(heads, device=device)[None] * length
        return cls(heads, layers, heads * length, begin, torch.full((1, heads), length, device=device))

    @property
    def head(self) -> torch.Tensor:
        """The head that a place belongs to, int64 [R or 1, P]."""
        place = torch.arange(self.size, device=self.begin.device).expand(len(self.begin), -1).contiguous()
        return torch.searchsorted(self.begin.contiguous(), place, right=True) - 1

    @property
    def slot(self) -> torch.Tensor:
        """Which of its head's slots a place holds, at least the head's length where it is free: int64 [R or 1, P]."""
        place = torch.arange(self.size, device=self.begin.device).expand(len(self.begin), -1)
        return place - self.begin.gather(1, self.head)

    @property
    def taken(self) -> torch.Tensor:
        """Which places hold a slot: bool [R or 1, P]."""
        return self.slot < self.of_head(self.length)

    def of_head(self, figures: torch.Tensor) -> torch.Tensor:
        """What each place's head has of figures [R or 1, heads]: [R or 1, P]."""
        rows = max(len(figures), len(self.begin))
        return figures.expand(rows, -1).gather(1, self.head.expand(rows, -1))

    def counted(self, which: torch.Tensor) -> torch.Tensor:
        """How many places of each head are true of `which`, bool [R, P]: int64 [R, heads]."""
        # A head's places lie together; to add up each by itself, all would write to the same few numbers.
        sums = torch.nn.functional.pad(which.cumsum(dim=1), (1, 0))
        ends = torch.nn.functional.pad(self.begin[:, 1:], (0, 1), value=self.size)  # behind each head's places
        return sums.gather(1, ends.expand(len(which), -1)).diff(dim=1, prepend=sums[:, :1])

    @property
    def layer(self) -> torch.Tensor:
        """The layer that a place belongs to, int64 [R or 1, P]."""
        return self.head // (self.heads // self.layers)


__all__ = ["Places"]
