"""What stays moves to the front, of one layer or of several."""

from __future__ import annotations

import pytest
import torch

from buzz.cache import compaction
from buzz.cache.compaction import Block, compact
from buzz.cache.per_row import PerRow
from buzz.cache.schedule import Schedule
from buzz.policies import Held, make_policy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the kernel is interpreted
SIZES = [[9], [9, 9], [9, 5], [9, 9, 3], [12, 9, 9]]  # slots of each row; with a capacity of 4, what has 4 stays


def block_of(rows, length, scored=True, device="cpu"):
    keys = torch.rand(rows, 2, length, 4, device=device)
    return Block(keys, keys + 1, torch.rand(rows, 2, length, device=device) if scored else None)


def expected(block, policy, step, layers):
    """Keys and scores of each row and layer, cut and chosen one by one."""
    found = []
    for place in range(layers * len(step.ends)):
        end = step.ends[place % len(step.ends)]
        keys, scores = block.keys[place, :, :end], block.scores[place, :, :end]
        if policy.plan(end) is not None:
            slots = policy.select(Held(scores[None]), end)[0].expand(2, -1)
            keys, scores = keys.gather(1, slots[..., None].expand(-1, -1, 4)), scores.gather(1, slots)
        found.append((keys, scores))
    return found


@pytest.mark.parametrize("name", ["h2o", "buzz", "tova"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("lengths", SIZES)
@pytest.mark.parametrize("way", ["in place", "into new buffers", "by a kernel"])
def test_slots_are_those_chosen_one_by_one(name, layers, lengths, way, monkeypatch):
    sizes = {
        "h2o": {"heavy": 2, "window": 2},
        "buzz": {"sink": 1, "window": 2, "threshold": 1},
        "tova": {"capacity": 4},
    }
    policy = make_policy(name, **sizes[name])
    step = Schedule(policy, len(lengths)).open(lengths)
    source = block_of(layers * len(lengths), max(lengths), device=DEVICE)
    for place in range(layers * len(lengths)):  # as a layer holds them
        source.scores[place, :, step.ends[place % len(lengths)] :] = 0
    wanted = expected(source, policy, step, layers)
    target = source
    if way == "by a kernel":
        pytest.importorskip("triton")
        monkeypatch.setattr(compaction, "runs_triton", lambda _: True)
    if way != "in place":
        target = Block(*(torch.zeros_like(t)[:, :, : max(n for n, _ in step.after)] for t in source))
    compact(target, source, None, step, layers)
    for place, (keys, scores) in enumerate(wanted):
        kept = keys.shape[1]
        assert kept == step.after[place % len(lengths)][0]
        assert torch.equal(target.keys[place, :, :kept], keys)
        assert torch.equal(target.values[place, :, :kept], keys + 1)
        assert torch.equal(target.scores[place, :, :kept], scores)
        assert not target.scores[place, :, kept:].any()  # a new slot's score starts at zero


def test_scores_of_the_call_decide_where_they_are_given():
    step = Schedule(make_policy("tova", capacity=2), 1).open([5])
    source = block_of(1, 5, scored=False)
    wanted = source.keys[:, :, [1, 4]].clone()
    compact(source, source, torch.tensor([0.0, 2, 0, 1, 3]).expand(1, 2, 5), step, 1)
    assert torch.equal(source.keys[:, :, :2], wanted)


def test_nothing_moves_in_place_where_nothing_is_dropped():
    step = Schedule(make_policy("snapkv", capacity=6, window=2), 2).open([4, 5])
    assert step.evictions
    source, told = block_of(2, 5, scored=False), []
    before = source.keys.clone()
    compact(source, source, None, step, 1, lambda *given: told.append(given))
    assert torch.equal(source.keys, before)
    assert told == []


@pytest.mark.parametrize("lengths", [[9, 9], [9, 7]])
def test_watchers_are_told_by_layer_before_anything_moves(lengths):
    policies = PerRow([make_policy("h2o", heavy=2, window=1)] * 2)
    step = Schedule(policies, 2).open(lengths)
    source = block_of(6, 9)
    before, told = source.keys.clone(), []

    def watch(layer, eviction, slots):
        assert torch.equal(source.keys, before)
        told.append((layer, eviction.rows, slots))

    compact(source, source, None, step, 3, watch)
    rows = [None] if lengths == [9, 9] else [(0,), (1,)]
    assert [(layer, which) for layer, which, _ in told] == [(layer, which) for layer in range(3) for which in rows]
    for layer, which, slots in told:
        for place, row in enumerate(which or (0, 1)):
            moved = before[2 * layer + row].gather(1, slots[place][..., None].expand(-1, -1, 4))
            assert torch.equal(source.keys[2 * layer + row, :, :3], moved)


def test_heads_of_other_processes_have_a_say_where_a_policy_wants_one():
    class Heads:
        def select(self, choose, scores):
            return choose(scores + torch.tensor([9.0, 0, 0, 0, 0]))

    source = block_of(1, 5, scored=False)
    received = torch.tensor([0.0, 2, 0, 1, 3]).expand(1, 2, 5)
    schedule = Schedule(make_policy("tova", capacity=2), 1)
    wanted = source.keys[:, :, [0, 4]].clone()
    compact(source, source, received, schedule.open([5], Heads()), 1)
    assert torch.equal(source.keys[:, :, :2], wanted)
    alone = Schedule(make_policy("h2o"), 1).open([5], Heads())
    assert alone.heads is None
