"""The buffers of one layer: what is allocated, written, and given back."""

from __future__ import annotations

import pytest
import torch

from buzz.cache.columns import Columns
from buzz.cache.layer import BeehiveLayer, Memory, allocate
from buzz.cache.schedule import Schedule
from buzz.cache.stack import Stack
from buzz.policies import make_policy
from buzz.rows import Rows

HEADS, DIM = 2, 4
LOCAL = make_policy("local", window=20)


def numbered(rows, columns, first=0):
    keys = torch.arange(first, first + columns, dtype=torch.float32)
    return keys[None, None, :, None].expand(rows, HEADS, -1, DIM).clone()


class Driven:
    """A layer with its schedule, fed by hand; nothing is evicted."""

    def __init__(self, policy=LOCAL, rows=1, least=0):
        self.memory, self.schedule, self.least = Memory(), Schedule(policy, rows), least
        self.layer = BeehiveLayer(Columns(), self.memory)

    def call(self, counts, first=0):
        step = self.schedule.open(counts)
        keys = numbered(len(counts), max(counts), first)
        seen = self.layer.append(keys, keys + 0.5, step, self.least)
        self.schedule.close(step)
        return keys, seen, step


def test_a_first_prompt_is_borrowed_and_a_first_token_is_not():
    driven = Driven()
    keys, (seen, _), _ = driven.call([5])
    assert driven.layer.borrowed
    assert driven.layer.keys.data_ptr() == keys.data_ptr() == seen.data_ptr()
    driven = Driven()
    driven.call([1])
    assert not driven.layer.borrowed
    assert driven.layer.capacity == 17  # one, and room for some more


def test_tokens_are_written_behind_each_rows_slots():
    driven = Driven(rows=2)
    driven.call([1, 1])
    driven.call([1, 1], first=1)
    address = driven.layer.keys.data_ptr()
    driven.call([3, 1], first=10)  # ragged
    driven.call([1, 1], first=20)  # one token at places of their own
    _, (keys, values), _ = driven.call([0, 2], first=30)
    assert driven.layer.keys.data_ptr() == address
    assert keys[0, 0, :6, 0].tolist() == [0, 1, 10, 11, 12, 20]
    assert keys[1, 1, :6, 0].tolist() == [0, 1, 10, 20, 30, 31]
    assert torch.equal(values[1], keys[1] + 0.5)


def test_buffers_grow_and_keep_what_they_had():
    driven = Driven(make_policy("h2o", heavy=200, window=9), least=2)
    driven.call([1])
    capacity = driven.layer.capacity
    for n in range(1, 40):
        driven.call([1], first=n)
        driven.layer.scores[:, :, n] = n
    assert driven.layer.capacity > capacity
    assert driven.layer.keys[0, 0, :40, 0].tolist() == list(range(40))
    assert driven.layer.scores[0, 0, :40].tolist() == [0.0, *range(1, 40)]
    assert not driven.layer.scores[:, :, 40:].any()


def test_memory_is_what_is_allocated():
    driven = Driven(make_policy("h2o"), rows=2)
    driven.call([1, 1])
    assert driven.memory.nbytes == 2 * HEADS * driven.layer.capacity * (2 * DIM + 1) * 4
    driven.layer.take(Rows([1]))
    assert driven.memory.nbytes == HEADS * driven.layer.capacity * (2 * DIM + 1) * 4
    driven.layer.reset()
    assert (driven.memory.nbytes, driven.layer.capacity, driven.layer.is_initialized) == (0, 0, False)


def test_scores_add_up_or_are_those_of_the_call():
    driven = Driven(make_policy("h2o"))
    _, _, step = driven.call([1])
    for _ in range(2):
        driven.layer.observe(torch.ones(1, HEADS, 1), step)
    assert driven.layer.scores[0, 0, :2].tolist() == [2, 0]
    driven = Driven(make_policy("tova", capacity=1))
    _, _, step = driven.call([2])
    driven.layer.observe(torch.ones(1, HEADS, 2), step)
    assert driven.layer.scores is None
    assert driven.layer.call_scores.sum() == 4


@pytest.mark.parametrize("capacity", [64, 5])
def test_life_in_a_stack(capacity):
    """Buffers to come are the stack's, if it has the room; a layer moves in and out with what it holds."""
    driven = Driven(make_policy("h2o"), rows=1)
    stack = Stack(2, 1, HEADS, capacity, DIM, dtype=torch.float32, device=torch.device("cpu"), scores="kept")
    driven.layer.offer(stack, 1)
    for n in range(6):
        driven.call([1], first=n)
    assert (driven.layer.home is stack) == (capacity == 64)
    if capacity == 5:
        return
    assert stack.keys[1, 0, 0, :6, 0].tolist() == list(range(6))
    assert driven.memory.nbytes == stack.nbytes // 2
    driven.layer.scores[:, :, :6] = 3
    driven.layer.move_out()
    assert driven.layer.home is driven.layer.offered is None
    assert driven.layer.capacity == 64
    stack.keys.zero_()
    assert driven.layer.keys[0, 0, :6, 0].tolist() == list(range(6))
    driven.layer.offer(stack, 0)
    stack.scores.fill_(9)  # of whoever lived there
    driven.layer.move_in(6)
    assert driven.layer.home is stack
    assert stack.scores[0, 0, 0].tolist() == [3.0] * 6 + [0.0] * 58


def test_layers_that_are_alike_get_buffers_in_one_piece():
    layers = [BeehiveLayer(Columns(), Memory()) for _ in range(3)]
    step = Schedule(make_policy("h2o"), 2).open([5, 5])
    block = allocate(layers, numbered(2, 5), 30, step)
    assert block.keys.shape[:3] == (6, HEADS, 30)
    block.keys[2:4] = 7
    assert [layer.keys.sum().item() for layer in layers] == [0, 7 * 2 * HEADS * 30 * DIM, 0]
    assert all(layer.scores.shape == (2, HEADS, 30) for layer in layers)


def test_buffers_made_under_inference_mode_can_be_written_outside():
    driven = Driven()
    with torch.inference_mode():
        driven.call([1])
    driven.call([1])
    assert driven.layer.keys.requires_grad is False
