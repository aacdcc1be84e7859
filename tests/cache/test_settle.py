"""Which layers are compacted together, and into which buffers."""

from __future__ import annotations

import pytest
import torch

from buzz.cache import settle as module
from buzz.cache.columns import Columns
from buzz.cache.layer import BeehiveLayer, Memory
from buzz.cache.schedule import Schedule
from buzz.cache.settle import Waiting, settle, settle_prompt, settle_stack
from buzz.cache.stack import Stack
from buzz.policies import make_policy

LOCAL = make_policy("local", window=4)


def prompted(length, policy=LOCAL, rows=1, heads=2):
    """A layer with a first prompt, and its step."""
    layer, step = BeehiveLayer(Columns(), Memory()), Schedule(policy, rows).open([length] * rows)
    keys = torch.arange(length, dtype=torch.float32)[None, None, :, None].expand(rows, heads, -1, 4)
    layer.append(keys, keys, step, 0)
    return layer, step


def groups(tokens, schedules, layers=None):
    """How layers are grouped, each with the group that it ends."""
    waiting, found = Waiting(), []
    for i, schedule in enumerate(schedules):
        layer = prompted(8)[0] if layers is None else layers[i]
        found.append(waiting.add(i, layer, schedule, tokens, last=i == len(schedules) - 1))
    return found


def test_a_long_prompt_waits_for_nobody():
    assert groups(3073, [0, 0, 0]) == [[[0]], [[1]], [[2]]]


def test_layers_wait_as_long_as_there_is_room_for_one_more(monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER", 100)
    assert groups(30, [0] * 5) == [[], [], [[0, 1, 2]], [], [[3, 4]]]
    assert groups(50, [0] * 3) == [[], [[0, 1]], [[2]]]


def test_layers_that_are_not_alike_do_not_wait_for_each_other():
    assert groups(30, [0, 0, 1, 0]) == [[], [], [[0, 1]], [[2], [3]]]
    others = [prompted(8)[0], prompted(8, heads=3)[0], prompted(8, heads=3)[0]]
    assert groups(30, [0, 0, 0], others) == [[], [[0]], [[1, 2]]]


def test_a_prompt_leaves_the_models_tensors():
    layers, told = [prompted(9)[0] for _ in range(3)], []
    step = prompted(9)[1]
    theirs = [layer.keys for layer in layers]
    settle_prompt(layers, step, 0, lambda index, *_: told.append(index))
    assert told == [0, 1, 2]
    for layer, keys in zip(layers, theirs, strict=True):
        assert not layer.borrowed
        assert layer.keys.data_ptr() != keys.data_ptr()
        assert layer.keys[0, 0, :4, 0].tolist() == [5, 6, 7, 8]
        assert keys[0, 0, :, 0].tolist() == list(range(9))
        assert layer.capacity == 5


@pytest.mark.parametrize(("least", "moved"), [(0, True), (500, False)])
def test_much_memory_is_given_back_and_little_is_not(least, moved):
    layer, _ = prompted(2)
    settle(layer, prompted(2)[1], 600)
    assert layer.capacity == 600
    schedule = Schedule(LOCAL, 1)
    schedule.close(schedule.open([4]))
    step = schedule.open([1])
    settle(layer, step, least)
    assert layer.capacity == (5 if moved else 600)


def test_a_step_without_evictions_touches_nothing():
    layer, step = prompted(3)
    settle(layer, step, 0)
    layer.call_scores, keys = torch.ones(1), layer.keys
    settle(layer, Schedule(LOCAL, 1).open([1]), 0)
    assert layer.keys is keys
    assert layer.call_scores is None


def test_a_stack_is_settled_if_all_live_there():
    policy = make_policy("tova", capacity=3)
    stack = Stack(2, 1, 2, 6, 4, dtype=torch.float32, device=torch.device("cpu"), scores="call")
    layers = [BeehiveLayer(Columns(), Memory()) for _ in range(2)]
    stack.keys.copy_(torch.arange(6.0)[:, None].expand(2, 1, 2, 6, 4))
    for index, layer in enumerate(layers):
        layer.adopt(stack.layer(index), stack)
    schedule = Schedule(policy, 1)
    schedule.close(schedule.open([3]))
    step = schedule.open([1])
    stack.call_scores[..., :4] = torch.tensor([0.0, 3, 2, 1])
    layers[0].adopt(stack.layer(0), None)
    assert not settle_stack(stack, layers, step)
    assert stack.keys[0, 0, 0, :4, 0].tolist() == [0, 1, 2, 3]
    layers[0].adopt(stack.layer(0), stack)
    assert settle_stack(stack, layers, step)
    assert [stack.keys[i, 0, 0, :3, 0].tolist() for i in range(2)] == [[1, 2, 3]] * 2
    stack.keys.copy_(torch.arange(6.0)[:, None].expand(2, 1, 2, 6, 4))
    for layer, scores in zip(layers, ([0.0, 1, 2, 3], [3.0, 2, 1, 0]), strict=True):
        layer.call_scores = torch.tensor(scores).expand(1, 2, 4)  # observed here, which counts before the stack's
    assert settle_stack(stack, layers, step)
    assert [stack.keys[i, 0, 0, :3, 0].tolist() for i in range(2)] == [[1, 2, 3], [0, 1, 2]]
    assert layers[0].call_scores is None
