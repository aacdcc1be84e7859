"""Calls that are read twice, without a model: integers of the copy, and what layers hear."""

from __future__ import annotations

import pytest
import torch

from buzz.cache import PerRow
from buzz.cache import echo as module
from buzz.cache.calls import Calls
from buzz.cache.echo import Hearing
from buzz.policies import ScoreSpec, make_policy
from buzz.rows import Rows
from tests.policies.twice import Once, Twice


def hearing(policies, counts, layers=1, columns=None):
    """Of a first call of so many tokens per row."""
    calls = Calls(policies, [0])
    columns = columns or max(counts)
    mask = torch.tensor([[0] * (columns - n) + [1] * n for n in counts])
    return Hearing(calls.begin(len(counts), columns, mask), calls.schedule_of)


def test_every_row_is_cut_as_it_would_be_alone():
    policy = PerRow([Twice(chunk=5), Twice(chunk=5), Twice(chunk=5, capacity=3)])
    copies = hearing([policy], [14, 12, 8]).copies  # the second row lets go of nothing
    assert [tuple(copy.begins) for copy in copies] == [(0, 0, 0), (5, 0, 5), (10, 0, 8)]
    assert [tuple(copy.counts) for copy in copies] == [(5, 0, 5), (5, 0, 3), (4, 0, 0)]
    assert [copy.heard == copy.counts for copy in copies] == [True] * 3
    assert [copy.width for copy in copies] == [5, 5, 4]


def test_a_lead_in_does_not_count(monkeypatch):
    monkeypatch.setattr(module, "_LEAD", 8)
    one = hearing([Twice(chunk=5)], [14, 13])
    assert [tuple(copy.begins) for copy in one.copies] == [(0, 0), (0, 0), (2, 2)]
    assert [tuple(copy.counts) for copy in one.copies] == [(5, 5), (10, 10), (12, 11)]
    assert [tuple(copy.heard) for copy in one.copies] == [(5, 5), (5, 5), (4, 3)]
    assert one.repeat(one.copies[2]).steps[0].spec == ScoreSpec(False, (4, 3), "largest")


@pytest.mark.parametrize(
    ("policies", "counts", "columns"),
    [
        ([Twice()], [12], 12),
        ([Twice()], [1], 30),
        ([Twice(capacity=20, lazy=-1)], [20], 20),  # is due, and keeps all
        ([Once(), make_policy("h2o", heavy=3, window=3)], [30], 30),
    ],
)
def test_what_lets_go_of_nothing_or_does_not_ask_is_read_once(policies, counts, columns):
    assert hearing(policies, counts, columns=columns).copies == []


def test_a_step_is_no_text():
    calls = Calls([Twice(capacity=3, lazy=-3)], [0])
    assert not calls.begin(1, 1).steps[0].echoes


def test_a_copy_stands_behind_what_each_layer_holds():
    window = make_policy("local", window=4)
    one = hearing([Twice(chunk=5), window, Twice(chunk=3)], [14, 13])
    assert one.slots(0) == one.slots(1) == 14 + 3  # the smallest chunk that a layer asks for
    call = one.repeat(one.copies[1])
    assert (call.counts, call.seen, call.width, call.last_position) == ([3, 3], [14, 13], 3, 16)
    for step in call.steps:
        assert (step.starts, step.counts, step.evictions) == ((14, 13), (3, 3), [])
    assert [step.spec for step in call.steps] == [
        ScoreSpec(False, (3, 3), "largest"),
        None,
        ScoreSpec(False, (3, 3), "largest"),
    ]
    assert one.last_positions([20, 19]) == [23, 22]


def test_the_first_reading_is_asked_for_what_echo_says():
    assert hearing([Twice(mean=2.0)], [14]).call.steps[0].spec == ScoreSpec(False, None, "mean", 2)
    assert hearing([Twice()], [14]).call.steps[0].spec is None
    # Nothing accumulates and nothing is evicted: nobody reads what there would be.
    step = hearing([Twice(mean=2.0, of="call")], [9]).call.steps[0]
    assert (step.echoes, step.scores, step.spec) == (True, False, None)


def test_layers_hear_the_largest_of_their_own_slots():
    one = hearing([PerRow([Twice(mean=1.0), Twice(mean=2.0)])], [14, 13])
    first = torch.arange(14.0).expand(2, 2, -1)
    one.take(0, first, Rows([14, 13]), one.call.steps[0])
    generator = torch.Generator().manual_seed(0)
    heard = []
    for copy in one.copies:
        step = one.repeat(copy).steps[0]
        heard.append(torch.rand(2, 2, max(step.ends), generator=generator))
        one.take(0, heard[-1].clone(), Rows(step.ends), step)
    most = torch.stack([scores[:, :, :14] for scores in heard]).amax(0)
    most[1, :, 13:] = 0  # the second row's own copy
    expected = most + first * torch.tensor([1.0, 2.0])[:, None, None]
    assert torch.equal(one.scores(0), expected)
