"""Eviction policies: which slots of a KV cache stay. They know no cache and no model."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from buzz.policies.base import Plan, Policy, RowPolicies, ScoreSpec, Steady
from buzz.policies.buzz import BuzzFastPolicy, BuzzNoMaxPolicy, BuzzPolicy
from buzz.policies.full import FullPolicy
from buzz.policies.h2o import H2OPolicy
from buzz.policies.random import RandomPolicy
from buzz.policies.snapkv import PyramidKVPolicy, SnapKVPolicy
from buzz.policies.streaming import LocalPolicy, StreamingPolicy
from buzz.policies.tova import TovaPolicy

# The registry: a new policy is one file, one line here and one row in the documentation.
POLICIES: Mapping[str, type[Policy]] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            FullPolicy,
            LocalPolicy,
            StreamingPolicy,
            H2OPolicy,
            BuzzPolicy,
            BuzzFastPolicy,
            BuzzNoMaxPolicy,
            SnapKVPolicy,
            PyramidKVPolicy,
            TovaPolicy,
            RandomPolicy,
        )
    }
)


def make_policy(name: str, **params: Any) -> Policy:
    """Build a policy by its name.

    Raises:
        ValueError: no such policy (lists them), or a parameter out of its range.
        TypeError: no such parameter (names the nearest one), or a parameter of the wrong type.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}, choose one of {', '.join(POLICIES)}")
    policy = POLICIES[name]
    known = [field.name for field in dataclasses.fields(policy)]
    for param in params:
        if param not in known:
            near = difflib.get_close_matches(param, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TypeError(f"{name}: unknown parameter {param!r}{hint}, it takes {', '.join(known)}")
    return policy(**params)


__all__ = ["POLICIES", "Plan", "Policy", "RowPolicies", "ScoreSpec", "Steady", "make_policy"]
