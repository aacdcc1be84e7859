"""Buffers that layers share."""

from __future__ import annotations

import pytest
import torch

from buzz.cache.per_row import PerRow
from buzz.cache.schedule import Schedule
from buzz.cache.stack import Stack
from buzz.policies import Held, make_policy

CPU = torch.device("cpu")


def stack_of(scores=None, layers=3, rows=2, capacity=8):
    return Stack(layers, rows, 2, capacity, 4, dtype=torch.float32, device=CPU, scores=scores)


def test_views_share_memory_with_the_whole():
    stack = stack_of("kept")
    stack.layer(1).keys.fill_(7)
    stack.layer(2).scores.fill_(3)
    assert stack.keys[1].eq(7).all()
    assert not stack.keys[[0, 2]].any()
    block = stack.block(1, 2)
    assert (block.keys.shape, block.scores.shape) == ((4, 2, 8, 4), (4, 2, 8))
    assert block.keys[:2].eq(7).all()
    block.scores.zero_()
    assert not stack.scores.any()


@pytest.mark.parametrize(("scores", "floats"), [(None, 8), ("kept", 9), ("call", 9)])
def test_bytes_are_those_of_its_tensors(scores, floats):
    stack = stack_of(scores)
    assert stack.nbytes == 4 * floats * 3 * 2 * 2 * 8
    assert (stack.scores is not None, stack.call_scores is not None) == (scores == "kept", scores == "call")
    assert (stack.layer(0).scores is None) == (scores != "kept")


def test_what_fits():
    stack, like = stack_of("kept"), torch.zeros(2, 2, 30, 4)
    assert stack.fits(like, 8, scored=True)
    assert not stack.fits(like, 9, scored=True)
    assert not stack.fits(like, 8, scored=False)
    assert not stack.fits(like.half(), 8, scored=True)
    assert not stack.fits(like[:1], 8, scored=True)
    assert not stack.fits(like[..., :3], 8, scored=True)


def test_buffers_are_normal_tensors_under_inference_mode():
    with torch.inference_mode():
        assert not stack_of("kept").keys.is_inference()


@pytest.mark.parametrize("name", ["h2o", "tova", "local"])
def test_all_layers_evict_at_once_as_each_would_alone(name):
    """Rows in states of their own; watched by layer."""
    sizes = [{"h2o": {"heavy": n, "window": 1}, "tova": {"capacity": n}, "local": {"window": n}}[name] for n in (3, 5)]
    schedule = Schedule(PerRow([make_policy(name, **size) for size in sizes]), 2)
    step = schedule.open([6, 7])
    stack = stack_of({"h2o": "kept", "tova": "call", "local": None}[name])
    for tensor in (stack.keys, stack.values, stack.scores, stack.call_scores):
        if tensor is not None:
            tensor.copy_(torch.rand(tensor.shape))
    before = stack.keys.clone()
    scores = stack.call_scores if stack.scores is None else stack.scores.clone()
    told = []
    received = None if stack.call_scores is None else stack.call_scores.flatten(0, 1)
    stack.evict(step, received, lambda layer, eviction, slots: told.append((layer, eviction.length, slots.shape[-1])))
    assert len(told) == 6
    assert {layer for layer, *_ in told} == {0, 1, 2}
    for layer in range(3):
        for row, (policy, end) in enumerate(zip(step.policies, step.ends, strict=True)):
            seen = None if scores is None else scores[layer, row : row + 1, :, :end]
            slots = policy.select(Held(seen), end)[0].expand(2, -1)
            kept = slots.shape[1]
            expected = before[layer, row].gather(1, slots[..., None].expand(-1, -1, 4))
            assert torch.equal(stack.keys[layer, row, :, :kept], expected)
            if stack.scores is not None:
                assert torch.equal(stack.scores[layer, row, :, :kept], seen[0].gather(1, slots))
                assert not stack.scores[layer, row, :, kept:end].any()
