"""The calls of a cache without a cache: integers in, integers out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from buzz.cache import Curve, PerRow
from buzz.cache.calls import Calls
from buzz.policies import make_policy

FOUR, NINE = make_policy("local", window=4), make_policy("local", window=9)


def mixed():
    """Three layers, of which the last two count."""
    return Calls([FOUR, NINE, FOUR], counted=[1, 2])


def run(calls, columns, rows=2, nbytes=0, mask=None):
    call = calls.begin(rows, columns, mask)
    assert [calls.pass_layer() for _ in calls.schedule_of] == [False] * (len(calls.schedule_of) - 1) + [True]
    calls.close(nbytes)
    return call


def test_layers_with_equal_policies_share_a_schedule():
    calls = mixed()
    assert (calls.schedule_of, calls.groups) == ([0, 1, 0], {0: [0, 2], 1: [1]})
    assert [calls.policy(layer) for layer in range(3)] == [FOUR, NINE, FOUR]
    assert calls.row_policies(1, 2) == [NINE, NINE]
    assert Calls([PerRow([FOUR, NINE])], [0]).row_policies(0, 2) == [FOUR, NINE]


def test_policies_of_rows_go_with_the_rows():
    calls = Calls([PerRow([FOUR, NINE, FOUR])], [0])
    run(calls, 1, rows=3)
    calls.take([1, 0, 1, 2])
    assert calls.row_policies(0, 4) == [NINE, FOUR, NINE, FOUR]
    calls.take([2])
    assert calls.row_policies(0, 1) == [NINE]


def test_lengths_and_figures():
    calls = mixed()
    calls.curve = Curve()
    assert (calls.lengths(0), calls.is_empty, calls.stats(7)["evictions"]) == ([], True, [])
    run(calls, 6)
    assert [calls.lengths(layer) for layer in range(3)] == [[4, 4], [6, 6], [4, 4]]
    assert (calls.tokens, calls.columns.seen, calls.states(1)) == ([6, 6], 6, [(6, 0)] * 2)
    assert calls.stats(7)["mean_tokens"] == [5, 5]
    run(calls, 1, nbytes=100)
    run(calls, 1, nbytes=300)
    assert calls.stats(7) == {
        **{"mean_tokens": [5.75, 5.75], "peak_tokens": [6, 6], "evictions": [1.5, 1.5]},
        **{"calls": 3, "nbytes": 7, "mean_nbytes": 200, "peak_nbytes": 300},
    }
    assert calls.curve.lengths == [[5, 5], [5.5, 5.5], [6, 6]]
    assert calls.curve.row_bytes == [0, 50, 150]


def test_a_call_knows_what_was_before_it():
    calls = mixed()
    run(calls, 3, mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert (calls.tokens, calls.lengths(1)) == ([2, 3], [2, 3])
    call = calls.begin(2, 1)
    assert (call.first, call.seen, call.counts, call.counted) == (3, [2, 3], [1, 1], 1)
    cpu = torch.device("cpu")
    assert call.query_columns(cpu).tolist() == [[3]]
    assert call.query_positions(cpu).tolist() == [[2], [3]]
    assert call.query_slots(cpu).tolist() == [[2], [3]]
    assert (call.last_position, call.last_slot) == (3, 3)
    calls.close(0)
    assert call.seen == [2, 3]


def test_columns_of_ragged_calls_are_those_of_the_tokens():
    call = mixed().begin(2, 3, torch.tensor([[0, 1, 1], [0, 0, 1]]))
    cpu = torch.device("cpu")
    assert (call.width, call.empty) == (2, False)
    assert call.query_columns(cpu)[0].tolist() == [1, 2]
    assert call.query_columns(cpu)[1, 0] == 2
    assert mixed().begin(1, 2, torch.zeros(1, 2)).empty


def test_one_call_at_a_time():
    calls = mixed()
    calls.begin(2, 1)
    with pytest.raises(RuntimeError, match="the call before was interrupted"):
        calls.begin(2, 1)
    calls.touched = True
    calls.cancel()
    assert calls.open is not None  # a layer has taken it in
    calls.touched = False
    calls.cancel()
    assert calls.open is None
    calls.begin(2, 1)
    calls.clear()
    with pytest.raises(ValueError, match="the cache holds 3 rows, the call has 2"):
        run(calls, 1, rows=3) and calls.begin(2, 1)


def test_layers_that_have_passed_a_forgotten_call_do_not_count_for_the_next():
    calls = mixed()
    calls.begin(1, 2, torch.zeros(1, 2))  # pads alone: no layer takes in anything
    calls.pass_layer()
    calls.cancel()
    run(calls, 1, rows=1)


@given(st.lists(st.integers(1, 12), max_size=4), st.integers(0, 3), st.booleans())
def test_what_is_rewound_was_never_there(chunks, steps, passed):
    calls, twin = mixed(), mixed()
    for c in (calls, twin):
        c.curve = Curve()
        run(c, 2)
        for columns in chunks:
            run(c, columns)
    mark = calls.mark()
    for _ in range(steps):
        run(calls, 1, nbytes=5)
    if passed:
        calls.begin(2, 1)
        calls.pass_layer()
    calls.rewind(mark)
    run(calls, 1, nbytes=9)
    run(twin, 1, nbytes=9)
    figures = [{**c.stats(0), "evictions": None} for c in (calls, twin)]  # nothing evicts in what is rewound, or counts
    assert figures[0] == figures[1]
    assert (calls.tokens, calls.columns.seen, calls.curve) == (twin.tokens, twin.columns.seen, twin.curve)
    assert [calls.states(schedule) for schedule in calls.groups] == [twin.states(schedule) for schedule in twin.groups]


def test_rows_can_be_taken():
    calls = mixed()
    calls.curve = Curve()
    run(calls, 3, mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    calls.take([1, 1, 0])
    assert (calls.tokens, calls.lengths(2), calls.curve.lengths) == ([3, 3, 2], [3, 3, 2], [[3, 3, 2]])
    assert calls.stats(0)["mean_tokens"] == [3, 3, 2]
    run(calls, 1, rows=3)
    with pytest.raises(ValueError, match="column 0 of row 2 was a pad"):
        calls.begin(3, 1, torch.ones(3, 5))


def test_clearing_forgets_all_but_what_was_asked_for():
    calls = mixed()
    calls.curve = Curve()
    run(calls, 20)
    calls.clear()
    assert (calls.is_empty, calls.tokens, calls.columns.seen, len(calls.curve)) == (True, [], 0, 0)
    run(calls, 3, rows=5)
    assert calls.lengths(0) == [3] * 5
