"""What a policy is shown when it chooses which slots stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from buzz.policies.shares import HeadShares


class Asked(NamedTuple):
    """What a policy asks of the call that evicts (`Policy.reads`), of Hq query heads, float32; else None.

    mean, covariance: how the queries of a row's last call are distributed, and so those to come: [R, Hq, D] and
        [R, Hq, D, D], both of queries times the scale of attention, turned as if they came later: by the rotation
        matrix averaged over the 512 positions that follow the call. The first 4 tokens of a text are left out, whose
        queries are unlike the others. So `keys @ mean` is the mean logit of a key that is cached with its original
        position.
    projected: [R, H, S], how much each slot can change the layer's output: the sum of the components, without their
        signs, of what the output projection makes of the slot's value; the mean over the query heads of the group. S is
        at least the slots of the longest head; what lies past a head's end means nothing.

    Where layers share, their heads stand one after another.
    """

    mean: torch.Tensor | None = None
    covariance: torch.Tensor | None = None
    projected: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Asked | None], dim: int) -> Asked | None:
        """Those of several layers, as more rows (dim 0) or as more heads (dim 1); None of Nones."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        norms = [part.projected for part in known if part.projected is not None]
        if norms:  # the longest head of each layer has as many slots as it has
            most = max(t.shape[-1] for t in norms)
            known = [part._replace(projected=_widened(t, most)) for part, t in zip(known, norms, strict=True)]
        return cls(*(None if t[0] is None else torch.cat(t, dim) for t in zip(*known, strict=True)))

    def rows(self, index: torch.Tensor) -> Asked:
        """Of the rows of an index int64 [N]."""
        return Asked(*(None if t is None else t.index_select(0, index) for t in self))


class Held(NamedTuple):
    """What the slots of some rows hold, oldest first.

    Equal heads, for `Policy.select`: scores float32 [R, H, L], keys and values [R, H, L, D]. Heads that share a pool,
    for `Policy.share`: scores [R, P], keys and values [R, P, D] (`buzz.policies.places.Places` says which slot of
    which head is where), or [R, H, L, D] as they are where these heads are equal still, P being H * L.

    scores: what `Policy.score_spec` asks for, or what was heard where a call was read twice; None where nothing is
    asked for. keys, values: as they are cached. asked: "queries" (mean and covariance) and "projected", of the call
    that evicts. These only where `Policy.reads` names them; else None. shares: of the heads that share, where
    `Policy.measured`.
    """

    scores: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    asked: Asked | None = None
    shares: HeadShares | None = None

    @property
    def device(self) -> torch.device:
        """Where it is; the CPU where nothing is shown."""
        return next((t.device for t in self[:3] if t is not None), torch.device("cpu"))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is shown."""
        return all(t is None for t in self[:3])

    @property
    def shape(self) -> torch.Size:
        """[R, H, L] of equal heads, [R, P] of a pool. Something must be shown."""
        if self.scores is not None:
            return self.scores.shape
        return next(t.shape[:-1] for t in self[1:3] if t is not None)

    def scored(self, name: str) -> torch.Tensor:
        """The scores. Raises ValueError, in the name of a policy, where there are none."""
        return _shown(name, "scores, float32 [R, H, length]", self.scores)

    def keyed(self, name: str) -> torch.Tensor:
        """The keys. Raises ValueError, in the name of a policy, where there are none."""
        return _shown(name, "keys [R, H, length, D]", self.keys)

    def valued(self, name: str) -> torch.Tensor:
        """The values. Raises ValueError, in the name of a policy, where there are none."""
        return _shown(name, "values [R, H, length, D]", self.values)

    def projected(self, name: str) -> torch.Tensor:
        """The norms of projected values of equal heads, float32 [R, H, L]. Raises ValueError, in the name of a policy,
        where there are none."""
        norms = None if self.asked is None else self.asked.projected
        norms = _shown(name, "the norms of projected values [R, H, length]", norms)
        room = self.shape[-1]  # in a pool more than any head holds
        return _widened(norms, room)[..., :room]

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Held:
        """With scores, keys and values changed alike, as far as they are shown."""
        scores, keys, values = (None if t is None else change(t) for t in self[:3])
        return self._replace(scores=scores, keys=keys, values=values)

    def rows(self, index: torch.Tensor, length: int) -> Held:
        """Of the rows of an index int64 [N], the first `length` slots of each head."""
        asked = None if self.asked is None else self.asked.rows(index)
        return self.each(lambda t: t.index_select(0, index)[:, :, :length])._replace(asked=asked)


def _widened(norms: torch.Tensor, slots: int) -> torch.Tensor:
    """Norms [.., S] of so many slots at least: 0 for those that are not there."""
    return torch.nn.functional.pad(norms, (0, max(0, slots - norms.shape[-1])))


def _shown(name: str, what: str, tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError(f"{name}: select needs {what}")
    return tensor


__all__ = ["Asked", "Held"]
