"""What a policy is shown when it chooses which slots stay."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Held(NamedTuple):
    """What the slots of some rows hold, oldest first.

    Equal heads, for `Policy.select`: scores float32 [R, H, L], keys and values [R, H, L, D]. Heads that share a pool,
    for `Policy.share`: scores [R, P], keys and values [R, P, D] (`buzz.policies.places.Places` says which slot of
    which head is where).

    scores: what `Policy.score_spec` asks for; None where it asks for nothing. keys, values: as they are cached, only
    where `Policy.reads` names them; else None.
    """

    scores: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where it is; the CPU where nothing is shown."""
        return next((t.device for t in self if t is not None), torch.device("cpu"))

    def scored(self, name: str) -> torch.Tensor:
        """The scores. Raises ValueError, in the name of a policy, where there are none."""
        return _shown(name, "scores, float32 [R, H, length]", self.scores)

    def valued(self, name: str) -> torch.Tensor:
        """The values. Raises ValueError, in the name of a policy, where there are none."""
        return _shown(name, "values [R, H, length, D]", self.values)

    def rows(self, index: torch.Tensor, length: int) -> Held:
        """Of the rows of an index int64 [N], the first `length` slots of each head."""
        return Held(*(None if t is None else t.index_select(0, index)[:, :, :length] for t in self))


def _shown(name: str, what: str, tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError(f"{name}: select needs {what}")
    return tensor


__all__ = ["Held"]
