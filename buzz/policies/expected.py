"""Expected attention: what queries to come would look at, were they like those of the prompt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from buzz.policies.base import Policy, Scope
from buzz.policies.held import Held
from buzz.policies.prompts import PromptPolicy


@dataclass(frozen=True, repr=False)
class ExpectedAttentionPolicy(PromptPolicy):
    """The slots that queries to come are expected to read most (Devoto et al., arXiv 2510.00636).

    Queries to come are taken as normally distributed, with the mean m and covariance C of the prompt's own, turned by
    the rotation averaged over the positions ahead (`buzz.policies.held.Asked`). A key k then expects exp(k.m +
    k.C.k / 2); divided by their sum over the slots behind the sink, averaged over the query heads of the group, and
    times the norm of the slot's value, that is its worth. The sink stays, as in the paper's release.

    Ours: prompts alone are compressed, in their first call. The output projection is not known to a policy, so the norm
    is that of the value itself, as in the paper's release. With a `scope` above "head" heads share as in AdaKV, which
    the paper combines it with.

    Args:
        capacity: slots that a head of a prompt keeps, in the mean over the heads that share, in tokens; above `sink`.
        sink: first slots that always stay, in tokens; part of the capacity.
        scope: heads that share their slots out: none ("head"), those of a "layer", of the "model".
        floor: part of the capacity that every head has at least where heads share, from 0 to 1.
    """

    capacity: int = 256
    sink: int = 4
    scope: Scope = "head"
    floor: float = 0.2

    name: ClassVar[str] = "expected_attention"
    least: ClassVar[dict[str, int]] = {"capacity": 1, "sink": 0}
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"floor": (0, 1)}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"scope": get_args(Scope)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.capacity <= self.sink:
            raise ValueError(
                f"expected_attention: capacity must be above sink, got capacity {self.capacity}, sink {self.sink}"
            )

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"keys", "values", "queries"})

    @property
    def positions(self) -> Literal["cache", "original"] | None:
        return "original"  # keys must be turned already

    @property
    def ends(self) -> tuple[int, int]:
        return self.sink, 0

    @property
    def least_share(self) -> float:
        return self.floor

    def worth(self, held: Held, end: torch.Tensor) -> torch.Tensor:
        keys = held.keyed(self.name).float()  # [R, H, L, D]
        asked = held.asked
        if asked is None or asked.mean is None or asked.covariance is None:
            raise ValueError(f"{self.name}: select needs the moments of queries")
        rows, heads = keys.shape[:2]
        means = asked.mean.view(rows, heads, -1, keys.shape[-1])  # [R, H, group, D]
        covariances = asked.covariance.view(*means.shape, -1)  # [R, H, group, D, D]
        slots = torch.arange(keys.shape[2], device=keys.device)
        apart = (slots < self.sink) | (slots >= end)  # [.., L]
        total = torch.zeros(keys.shape[:-1], device=keys.device)
        for mean, covariance in zip(means.unbind(2), covariances.unbind(2), strict=True):
            logits = (keys @ mean[..., None])[..., 0] + ((keys @ covariance) * keys).sum(-1) / 2
            total += logits.masked_fill(apart, -torch.inf).softmax(dim=-1)
        norms = held.valued(self.name).float().norm(dim=-1)
        return total / means.shape[2] * norms

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity, ("capacity",))
        capacity = round(tokens)
        if capacity <= self.sink:
            raise ValueError(f"{self.name}: a budget of {tokens:g} tokens leaves nothing beside sink={self.sink}")
        return dataclasses.replace(self, capacity=capacity)
