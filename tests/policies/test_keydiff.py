"""KeyDiff against a reference of plain lists."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import Held, RowPolicies, make_policy
from buzz.rows import Rows


def naive_kept(keys: list[list[float]], capacity: int) -> list[int]:
    """The slots of one head whose keys have the lowest cosine with the mean direction."""

    def norm(vector):
        return math.sqrt(sum(x * x for x in vector))

    directions = [[x / norm(key) for x in key] if norm(key) else key for key in keys]
    mean = [sum(column) / len(keys) for column in zip(*directions, strict=True)]
    cosines = []
    for direction in directions:
        dot = sum(a * b for a, b in zip(direction, mean, strict=True))
        cosines.append(dot / norm(mean) if norm(mean) else dot)
    return sorted(sorted(range(len(keys)), key=lambda i: (cosines[i], i))[:capacity])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 20)), min_size=1, max_size=3), st.integers(0, 2**16))
def test_what_stays_equals_the_reference(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    longest = max(capacity + more for capacity, more in sizes) + 2
    keys = torch.randn(len(sizes), 2, longest, 4, generator=generator)  # what lies past a row's end is no zero
    rows = RowPolicies(make_policy("keydiff", capacity=capacity) for capacity, _ in sizes)
    lengths = [capacity + more for capacity, more in sizes]
    together = type(rows[0]).select_rows(rows, Held(keys=keys), Rows(lengths), Rows([0] * len(sizes)))
    for row, (policy, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = policy.select(Held(keys=keys[row : row + 1, :, :length]), length)
        for head in range(2):
            expected = naive_kept(keys[row, head, :length].tolist(), policy.capacity)
            assert alone[0, head].tolist() == together[row, head, : policy.capacity].tolist() == expected


def test_the_odd_key_stays_and_ties_go_to_the_older():
    keys = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] + [[2.0, 0.0]])[None, None]
    assert make_policy("keydiff", capacity=3).select(Held(keys=keys), 7)[0, 0].tolist() == [0, 1, 5]


def test_it_evicts_at_every_call_beyond_its_capacity():
    policy = make_policy("keydiff", capacity=9)
    assert policy.trace(20, 3) == [9] * 4
    assert (policy.score_spec, policy.reads, policy.is_blind) == (None, {"keys"}, False)
    assert policy.positions == "original"
    with pytest.raises(ValueError, match="keydiff: select needs keys"):
        policy.select(Held(), 10)


def test_keys_that_are_no_numbers_leave_as_many_slots():
    keys = torch.randn(1, 1, 6, 2, generator=torch.Generator().manual_seed(0))
    keys[0, 0, 2] = torch.nan
    policy = make_policy("keydiff", capacity=4)
    assert policy.select(Held(keys=keys), 6)[0, 0].tolist() == [0, 1, 2, 3]
    rows = type(policy).select_rows(RowPolicies([policy]), Held(keys=keys), Rows([6]), Rows([0]))
    assert rows[0, 0].tolist() == [0, 1, 2, 3]
