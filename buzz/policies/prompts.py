"""What policies have in common that compress a prompt once and keep what comes later."""

from __future__ import annotations

import torch

from buzz.policies.base import LONGEST, Plan, Policy
from buzz.policies.held import Held
from buzz.policies.places import Places
from buzz.policies.ranking import ends_and_highest
from buzz.policies.sharing import share


class PromptPolicy(Policy):
    """A row's first call is compressed to `capacity` slots a head; what comes later is never evicted.

    So the cache grows with the answer, and a text that is read token by token is not compressed at all. A prompt that
    fits is left alone for good. `sampled` marks a row whose first call is over. All heads hold equally many slots when
    they share, since none has evicted before.
    """

    capacity: int

    @property
    def ends(self) -> tuple[int, int]:
        """How many of the first and of the last slots of every head stay."""
        raise NotImplementedError

    @property
    def least_share(self) -> float:
        """Part of the capacity that a head has at least, where heads share."""
        return 0.0

    def worth(self, held: Held, length: int) -> torch.Tensor:
        """What slots are ranked by, float32 [R, H, length], of equal heads; of slots that stay anyway anything."""
        raise NotImplementedError

    @property
    def bounded(self) -> bool:
        return False

    @property
    def sizable(self) -> bool:
        return True

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        if sampled or not length:
            return None
        kept = min(length, self.capacity)
        return Plan(kept, kept)

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        worth = self.worth(held, length)
        if length <= self.capacity:
            return torch.arange(length, device=worth.device).expand(*worth.shape[:2], -1)
        return ends_and_highest(worth, self.capacity, *self.ends)

    def share(self, held: Held, places: Places, length: int, sampled: int = 0) -> torch.Tensor:
        at = places.unpacked(length).expand(held.shape[0], -1)  # [R, heads * length]
        kept = self.divide(
            held.each(lambda t: _gathered(t, at, places.heads)), min(length, self.capacity), places.layers
        )
        return at.new_zeros(held.shape, dtype=torch.bool).scatter(1, at, kept.flatten(1))

    def divide(self, held: Held, kept: int, layers: int) -> torch.Tensor:
        """`share` for equal heads without a free place between them: a mask, bool [R, heads, length]."""
        _, heads, length = held.shape
        sink, window = self.ends
        return share(
            self.worth(held, length).flatten(1), Places.equal(heads, layers, length, held.device), kept,
            sink=sink, window=window, floor=self.least_share,
        ).unflatten(1, (heads, length))  # fmt: skip

    def _widest(self) -> dict[str, int]:
        return {"capacity": self.most.get("capacity", LONGEST)}


def _gathered(tensor: torch.Tensor, at: torch.Tensor, heads: int) -> torch.Tensor:
    """The places of an index [R, N] of what a pool holds, [R, P, ...], as [R, heads, N / heads, ...]."""
    index = at.view(*at.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
    return tensor.gather(1, index).unflatten(1, (heads, -1))
