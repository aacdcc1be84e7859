"""What policies have in common that compress a prompt once and keep what comes later."""

from __future__ import annotations

import torch

from buzz.policies.base import LONGEST, Policy
from buzz.policies.held import Held
from buzz.policies.lengths import Plan
from buzz.policies.places import Places
from buzz.policies.ranking import ends_and_highest
from buzz.policies.sharing import share


class PromptPolicy(Policy):
    """A row's first call is compressed to `capacity` slots a head; what comes later is never evicted.

    So the cache grows with the answer, and a text that is read token by token is not compressed at all. A prompt that
    fits is left alone for good. `sampled` marks a row whose first call is over. All heads hold equally many slots when
    they share, in rooms of equal size, since none has evicted before.
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

    def worth(self, held: Held, end: torch.Tensor) -> torch.Tensor:
        """What slots are ranked by, float32 [R, H, L]; anything past `end`, and of slots that stay anyway.

        Args:
            held: of equal heads, [R, H, L].
            end: slots that they hold, int64, broadcast to [R, H, L]; what lies past them is undefined.
        """
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
        if length <= self.capacity:
            alike = (1, 1) if held.is_empty else held.shape[:2]
            return torch.arange(length, device=held.device).expand(*alike, -1)
        worth = self.worth(held, torch.full((), length, device=held.device))[..., :length]
        return ends_and_highest(worth, self.capacity, *self.ends)

    def share(
        self, held: Held, places: Places, kept: int, length: int, sampled: int = 0, chosen: int | None = None
    ) -> torch.Tensor:
        sink, window = self.ends
        worth = self.worth(by_head(held, places), places.length[:, :1, None])
        return share(
            worth.flatten(1), places, kept, chosen, sink=sink, window=window, floor=self.least_share
        )  # fmt: skip

    def _widest(self) -> dict[str, int]:
        return {"capacity": self.most.get("capacity", LONGEST)}


def by_head(held: Held, places: Places) -> Held:
    """What a pool holds [R, P] as [R, heads, P / heads], where all heads hold equally much in rooms of equal size."""
    return held.each(lambda t: t if t.dim() == 4 else t.unflatten(1, (places.heads, -1)))
