"""Random policies for hypothesis, of whatever parameters their classes have."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import warnings
from collections.abc import Sequence
from functools import lru_cache

from hypothesis import strategies as st

from buzz.policies import POLICIES, Policy

SIZES = 9  # values tried of each integer parameter, from the least on: small, so that short streams evict often
MOST = 3000  # policies tried of a family; all of them where there are no more


def small_values(family: type[Policy], field: dataclasses.Field) -> list:
    """What is tried of a parameter, its default first."""
    if field.name in family.least:
        low = family.least[field.name]
        return [None] * (field.default is None) + list(range(low, low + SIZES))
    if field.name in family.ranges:
        low, high = family.ranges[field.name]
        return sorted({field.default, low, min(high, low + 0.4), min(high, low + 1)}, key=lambda v: v != field.default)
    if isinstance(field.default, bool):
        return [field.default, not field.default]
    return sorted(family.choices.get(field.name, [field.default]), key=lambda word: word != field.default)


@lru_cache
def legal(family: type[Policy]) -> list[Policy]:
    """Policies of a family with small parameters, the simplest first: all of them, or some drawn once and for all."""
    fields = dataclasses.fields(family)
    values = [small_values(family, field) for field in fields]
    tried = itertools.product(*(range(len(some)) for some in values))
    if math.prod(map(len, values)) > MOST:
        draw = random.Random(0)
        tried = sorted((tuple(draw.randrange(len(some)) for some in values) for _ in range(MOST)), key=sum)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for places in tried:
            chosen = {field.name: some[at] for field, some, at in zip(fields, values, places, strict=True)}
            try:
                found.append(family(**chosen))
            except ValueError:  # parameters that contradict each other
                continue
    return found


def policies_of(families: Sequence[type[Policy]] = tuple(POLICIES.values())) -> st.SearchStrategy[Policy]:
    """A policy of one of the families."""
    return st.sampled_from(families).flatmap(lambda family: st.sampled_from(legal(family)))


def settings_of(names: Sequence[str]) -> st.SearchStrategy[tuple[str, dict]]:
    """The name of one of some policies, and parameters."""
    drawn = policies_of([POLICIES[name] for name in names])
    return drawn.map(lambda policy: (policy.name, dataclasses.asdict(policy)))
