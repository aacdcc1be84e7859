"""When rows evict: integers of one call, and what several evictions are as one."""

from __future__ import annotations

import pytest
import torch

from buzz.cache.per_row import PerRow
from buzz.cache.schedule import Eviction, Ragged, Schedule
from buzz.policies import Held, make_policy

CPU = torch.device("cpu")
LOCAL = make_policy("local", window=5)


def schedule_at(policy, lengths):
    """Rows with so many slots each."""
    schedule = Schedule(policy, len(lengths))
    schedule.close(schedule.open(lengths))
    return schedule


def test_a_step_knows_where_rows_start_end_and_evict():
    schedule = schedule_at(LOCAL, [5, 3])
    step = schedule.open([1, 1])
    assert (step.starts, step.counts, step.ends, step.after) == ((5, 3), (1, 1), [6, 4], [(5, 0), (4, 0)])
    assert [(e.rows, e.length, e.kept) for e in step.evictions] == [((0,), 6, 5)]
    assert (step.uniform, step.staying) == (False, [1])
    schedule.close(step)
    assert (schedule.states, schedule.evictions) == ([(5, 0), (4, 0)], [1, 0])


def test_rows_in_one_state_evict_together_and_all_rows_need_no_names():
    step = schedule_at(LOCAL, [5, 5]).open([1, 1])
    assert [e.rows for e in step.evictions] == [None]
    assert step.uniform
    assert step.staying == []


def test_a_row_without_tokens_is_not_called():
    step = schedule_at(LOCAL, [5, 5]).open([0, 1])
    assert [e.rows for e in step.evictions] == [(1,)]
    assert step.after == [(5, 0), (5, 0)]


def test_what_is_moved_and_what_is_dropped_as_one():
    """SnapKV ends a short prompt with an eviction that drops nothing, which matters where buffers are new."""
    policy = make_policy("snapkv", capacity=6, window=2)
    step = Schedule(policy, 3).open([9, 4, 9])
    assert isinstance(step.moves, Ragged)
    assert (step.moves.rows, step.moves.lengths, step.moves.ends) == (None, (9, 4, 9), (6, 4, 6))
    assert (step.moves.length, step.moves.kept) == (9, 6)
    assert isinstance(step.drops, Eviction)
    assert (step.drops.rows, step.drops.length, step.drops.kept, step.drops.ends) == ((0, 2), 9, 6, None)
    assert step.moves is step.moves
    nothing = Schedule(LOCAL, 2).open([1, 2])
    assert nothing.moves is nothing.drops is None
    step = schedule_at(LOCAL, [5, 5]).open([1, 2])
    assert step.drops is step.moves


@pytest.mark.parametrize("name", ["h2o", "buzz", "streaming"])
@pytest.mark.parametrize("layers", [1, 3])
def test_several_evictions_select_what_each_does(name, layers):
    sizes = {"h2o": {"heavy": 3, "window": 2}, "buzz": {"window": 2, "threshold": 3}, "streaming": {"window": 4}}[name]
    policies = [make_policy(name, **sizes), make_policy(name, **{**sizes, "window": 3}), make_policy(name, **sizes)]
    step = Schedule(PerRow(policies), 3).open([20, 25, 12])
    ragged = step.moves
    scores = torch.rand(layers * 3, 2, 25) if policies[0].score_spec else None
    slots = ragged.select(Held(scores), CPU, layers)
    assert slots.shape[::2] == (layers * 3, ragged.kept)
    told = {(layer, eviction.length): part for layer, eviction, part in ragged.apart(slots, layers)}
    for layer in range(layers):
        for row, (policy, length) in enumerate(zip(policies, (20, 25, 12), strict=True)):
            place = layer * 3 + row
            seen = None if scores is None else scores[place : place + 1, :, :length]
            alone = policy.select(Held(seen), length)
            assert torch.equal(slots[place : place + 1, :, : alone.shape[2]].expand_as(alone), alone)
            assert torch.equal(told[layer, length].expand_as(alone), alone)


def test_slots_that_no_score_decides_are_chosen_once():
    step = Schedule(make_policy("streaming", window=3), 2).open([9, 12])
    assert step.moves.select(Held(), CPU) is step.moves.select(Held(), CPU)


def test_scores_of_one_call_are_asked_for_when_an_eviction_reads_them():
    tova = make_policy("tova", capacity=5)
    assert Schedule(tova, 1).open([3]).spec is None
    assert Schedule(tova, 1).open([6]).spec == tova.score_spec
    assert Schedule(make_policy("h2o"), 1).open([3]).spec is not None  # they add up
    rows = PerRow([make_policy("snapkv", window=w) for w in (3, 4)])
    assert Schedule(rows, 2).open([3, 3]).score_spec.queries == (3, 4)


def test_texts_are_asked_for_other_scores_than_steps():
    comb, h2o = make_policy("comb"), make_policy("h2o")
    assert comb.prompt_spec != comb.score_spec
    step, text = (Schedule(comb, 2).open(counts, several=counts != [1, 1]) for counts in ([1, 1], [1, 3]))
    assert (step.spec, step.steps) == (comb.score_spec, None)
    assert (text.spec, text.score_spec, text.steps) == (comb.prompt_spec, comb.score_spec, (0,))
    assert Schedule(comb, 2).open([2, 3], several=True).steps is None
    assert Schedule(h2o, 2).open([1, 3], several=True).steps is None  # they would get the same
    with pytest.raises(ValueError, match=r"same attention for scores \(prompt_spec\)"):
        PerRow([comb, make_policy("comb", afar=5)])


def test_buffers_have_room_up_to_the_bound():
    assert Schedule(LOCAL, 1).open([3]).bound == 6
    assert Schedule(LOCAL, 1).open([3]).capacity == 6
    full = Schedule(make_policy("full"), 2).open([3, 320])
    assert full.capacity == full.bound == 320 + 320 // 16


def test_positions_are_those_of_the_slots():
    assert schedule_at(LOCAL, [3, 3]).open([2, 2]).positions(2, CPU).tolist() == [[3, 4]]
    step = schedule_at(LOCAL, [3, 1]).open([2, 1])
    assert step.positions(2, CPU).tolist() == [[3, 4], [1, 2]]
    assert step.positions(2, CPU) is step.positions(2, CPU)


def test_rows_can_be_taken_with_their_policies():
    rows = PerRow([make_policy("local", window=w) for w in (2, 9)])
    schedule = schedule_at(rows, [5, 5])
    schedule.take([1, 0, 0])
    assert (schedule.states, schedule.evictions) == ([(5, 0), (2, 0), (2, 0)], [0, 1, 1])
    assert [e.rows for e in schedule.open([1, 1, 1]).evictions] == [(1, 2)]
