"""Random policies for hypothesis, of whatever parameters their classes have."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from functools import lru_cache

from hypothesis import strategies as st

from buzz.policies import POLICIES, Policy

SIZES = 9  # values tried of each integer parameter, from the least on: small, so that short streams evict often


@lru_cache
def legal(family: type[Policy]) -> list[Policy]:
    """All policies of a family with small parameters, the smallest first."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for values in itertools.product(*(range(low, low + SIZES) for low in family.least.values())):
            try:
                found.append(family(**dict(zip(family.least, values, strict=True))))
            except ValueError:  # parameters that contradict each other
                continue
    return found


def policies_of(families: Sequence[type[Policy]] = tuple(POLICIES.values())) -> st.SearchStrategy[Policy]:
    """A policy of one of the families."""
    return st.sampled_from(families).flatmap(lambda family: st.sampled_from(legal(family)))


def settings_of(names: Sequence[str]) -> st.SearchStrategy[tuple[str, dict]]:
    """The name of one of some policies, and parameters."""
    drawn = policies_of([POLICIES[name] for name in names])
    return drawn.map(lambda policy: (policy.name, {name: getattr(policy, name) for name in policy.least}))
