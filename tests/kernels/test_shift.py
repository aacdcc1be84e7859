"""The Triton kernel against a copy: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from buzz.kernels.shift import shift_slots

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def moved(size, number, rows, seed, device=DEVICE):
    """Goals of `number` places of each row, in an order that stays: some go up and some down, in runs."""
    generator = torch.Generator().manual_seed(seed)

    def ascending():
        runs = torch.randn(rows, size, generator=generator).cumsum(dim=1)  # so that neighbours are chosen together
        return runs.topk(number).indices.sort(dim=1).values.to(device)

    return torch.full((rows, size), -1, device=device).scatter_(1, ascending(), ascending())


def check(size, number, units, rows, dim, seed, **cut):
    pool = torch.randn(2, units, size, dim, device=DEVICE).to(torch.bfloat16)
    goals = moved(size, number, len(rows), seed)
    expected = pool.clone()
    for row, unit in enumerate(rows):
        source = (goals[row] >= 0).nonzero()[:, 0]
        expected[:, unit, goals[row, source]] = pool[:, unit, source]
    shift_slots(pool[0], pool[1], goals, torch.tensor(rows, device=DEVICE), **cut)
    assert torch.equal(pool, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.data())
def test_slots_go_where_they_are_told(size, data):
    number = data.draw(st.integers(1, size))
    rows = data.draw(st.sampled_from([[0], [1, 0], [2]]))
    check(size, number, 3, rows, data.draw(st.sampled_from([1, 6, 16])), data.draw(st.integers(0, 2**16)), tile=8)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU")
@pytest.mark.parametrize("seed", range(10))
def test_programs_wait_for_each_other(seed):
    """Many at once, far more than are at work together."""
    check(200_000 + seed, 150_000, 3, [2, 0], 128, seed)
