"""The Triton kernel against torch, to the bit: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("triton")

from buzz.kernels.recency import weigh
from buzz.policies.ranking import by_recency
from tests.policies.test_sharing import places_of, shared

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(worth, places):
    here = [t.to(DEVICE) for t in (worth, places.begin, places.length)]
    found = weigh(*here, here[2].float().reciprocal()).cpu()
    taken = places.taken.expand(len(worth), -1)
    assert torch.equal(found[taken].nan_to_num(nan=-1.0), by_recency(worth, places)[taken].nan_to_num(nan=-1.0))


@settings(max_examples=20, deadline=None)
@given(shared())
def test_worth_by_recency_equals_that_of_torch(case):
    worth, places, _, _ = case
    check(worth, places)


def test_heads_longer_than_what_a_program_takes_at_once():
    places = places_of([[3000, 1, 130]], [[3100, 4, 130]], 3)
    check(torch.rand(2, places.size), places)
