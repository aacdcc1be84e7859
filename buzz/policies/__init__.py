"""Eviction policies: which slots of a KV cache stay. They know no cache and no model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from buzz.policies.base import Policy, RowPolicies, Scope
from buzz.policies.buzz import BuzzFastPolicy, BuzzNoMaxPolicy, BuzzPolicy
from buzz.policies.comb import CombPolicy
from buzz.policies.expected import ExpectedAttentionPolicy
from buzz.policies.full import FullPolicy
from buzz.policies.h2o import H2OPolicy
from buzz.policies.held import Asked, Held
from buzz.policies.keydiff import KeyDiffPolicy
from buzz.policies.kvzip import KVzipPolicy
from buzz.policies.lengths import Plan, Steady
from buzz.policies.places import Places
from buzz.policies.random import RandomPolicy
from buzz.policies.shares import HeadShares
from buzz.policies.snapkv import PyramidKVPolicy, SnapKVPolicy
from buzz.policies.specs import ScoreSpec
from buzz.policies.streaming import LocalPolicy, StreamingPolicy
from buzz.policies.tova import TovaPolicy
from buzz.words import hint, shown

# The registry: a new policy is one file, one line here and one row in the documentation.
POLICIES: Mapping[str, type[Policy]] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            FullPolicy,
            CombPolicy,
            LocalPolicy,
            StreamingPolicy,
            H2OPolicy,
            BuzzPolicy,
            BuzzFastPolicy,
            BuzzNoMaxPolicy,
            SnapKVPolicy,
            PyramidKVPolicy,
            TovaPolicy,
            KVzipPolicy,
            ExpectedAttentionPolicy,
            KeyDiffPolicy,
            RandomPolicy,
        )
    }
)


def make_policy(name: str, **params: Any) -> Policy:
    """Build a policy by its name.

    Raises:
        ValueError: no such policy (names the nearest one, and lists all), or a parameter out of its range.
        TypeError: not a name, no such parameter (names the nearest one), or a parameter of the wrong type.
    """
    if isinstance(name, Policy):
        raise TypeError(f"make_policy takes the name of a policy, got a policy: use {shown(name)} as it is")
    if not isinstance(name, str):
        raise TypeError(f"make_policy takes the name of a policy, got {shown(name)}")
    if name not in POLICIES:
        raise ValueError(f"unknown policy {shown(name)}{hint(name, POLICIES)}, choose one of {', '.join(POLICIES)}")
    POLICIES[name].refuse_unknown(params)
    return POLICIES[name](**params)


__all__ = [
    "POLICIES",
    "Asked",
    "CombPolicy",
    "FullPolicy",
    "HeadShares",
    "Held",
    "Places",
    "Plan",
    "Policy",
    "RowPolicies",
    "Scope",
    "ScoreSpec",
    "Steady",
    "make_policy",
]
