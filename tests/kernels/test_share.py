"""The Triton kernels against sorting: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("triton")

from buzz.kernels.share import share_out
from buzz.policies.sharing import share
from tests.policies.test_sharing import asked, shared

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def shared_out(worth, places, kept, rule, **cut):
    sink, window, floor, ceiling, layer_ceiling, budgets = rule
    least = max(1, sink + window, int(floor * kept)) if budgets is None else budgets.on(torch.device(DEVICE))
    bounded = layer_ceiling is not None and places.layers > 1
    return share_out(
        worth.to(DEVICE), places.begin.to(DEVICE), places.length.to(DEVICE), places.layers, kept * places.heads,
        sink=sink, window=window, least=least,
        most=worth.shape[1] if ceiling is None else int(ceiling * kept),
        layer_most=int(layer_ceiling * kept * (places.heads // places.layers)) if bounded else None, **cut,
    ).cpu()  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(shared())
def test_shares_equal_those_of_a_sort(case):
    worth, places, kept, rule = case
    cut = {"chunk": 8, "tile": 16}  # so that most of it spans several
    assert torch.equal(shared_out(worth, places, kept, rule, **cut), share(worth, places, kept, **asked(rule)))
