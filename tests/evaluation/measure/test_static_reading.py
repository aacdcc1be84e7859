"""Given tokens in static memory: the logits, and what the cache held, are those of the model's own forward."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.decoding import feed
from buzz.decoding.arena import Off, Uncaptured
from buzz.decoding.capture import Captured
from buzz.evaluation.measure.batch import Reading, new_cache
from tests.evaluation.toys import POLICIES, job, model_of, numbers

COMB = buzz.make_policy("comb", capacity=10, sink=1, window=4, lazy=3, beyond=1)
POLICY = {**POLICIES, "comb": COMB, "tova": buzz.make_policy("tova", capacity=10)}
FIRST = [numbers(9, 1), numbers(5, 2), numbers(7, 3)]
REST = [numbers(24, 4), numbers(24, 5), numbers(40, 6)]  # two rows leave at once, one goes on
AHEAD = [numbers(6, 7), numbers(8, 8), numbers(3, 9)]


class Counting(Uncaptured):
    """Counts the steps."""

    def __init__(self) -> None:
        self.steps = 0

    def prepare(self, step):
        def run():
            self.steps += 1
            step()

        return run


def read(model, policy, positions, run, chunk=None, ahead=()):
    jobs = [job(ids, policy) for ids in FIRST]
    with buzz.patch_model(model) as handle, torch.inference_mode():
        handle.engine.run = run
        reading = Reading(model, new_cache(model, jobs, positions), FIRST, REST, chunk, ahead)
        steps = [(rows.tolist(), logits.clone()) for rows, logits in reading]
        assert not handle.engine.lock.locked()
    return steps, reading.held


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize(("chunk", "ahead"), [(None, ()), (4, ()), (None, AHEAD)])
@pytest.mark.parametrize("name", ["full", "streaming", "h2o", "buzz", "comb", "tova"])
def test_steps_are_those_of_the_forward(name, chunk, ahead, positions, family, monkeypatch):
    monkeypatch.setattr(feed, "WORTH", 16)
    model, run = model_of(family), Counting()
    plain, before = read(model, POLICY[name], positions, Off(), chunk, ahead)
    static, held = read(model, POLICY[name], positions, run, chunk, ahead)
    assert run.steps == 40
    assert len(plain) == len(static) == 41
    for (rows, logits), (others, found) in zip(plain, static, strict=True):
        assert rows == others
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
    for row, known in before.items():
        assert held[row].lengths == known.lengths
        assert held[row].heads == known.heads


def test_short_stretches_are_not_worth_it(monkeypatch):
    monkeypatch.setattr(feed, "WORTH", 24)
    model, run = model_of("llama"), Counting()
    read(model, COMB, "cache", run)
    assert run.steps == 24  # the last row has sixteen more


def test_the_engine_is_free_once_a_reading_is_given_up(monkeypatch):
    monkeypatch.setattr(feed, "WORTH", 1)
    model = model_of("llama")
    with buzz.patch_model(model) as handle, torch.inference_mode():
        handle.engine.run = Uncaptured()
        jobs = [job(ids, COMB) for ids in FIRST]
        steps = iter(Reading(model, new_cache(model, jobs, None), FIRST, REST))
        next(steps), next(steps)
        assert handle.engine.lock.locked()
        steps.close()
        assert not handle.engine.lock.locked()


def test_another_call_in_static_memory_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(feed, "WORTH", 1)
    model, run = model_of("llama"), Counting()
    with buzz.patch_model(model) as handle, torch.inference_mode():
        handle.engine.run = run
        handle.engine.lock.acquire()
        jobs = [job(ids, COMB) for ids in FIRST]
        assert len(list(Reading(model, new_cache(model, jobs, None), FIRST, REST))) == 41
        assert run.steps == 0
        handle.engine.lock.release()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("name", ["full", "h2o", "buzz", "comb"])
def test_captured_steps_are_those_of_the_forward(name, positions, monkeypatch):
    monkeypatch.setattr(feed, "WORTH", 16)
    model = model_of("llama").cuda()
    plain, _ = read(model, POLICY[name], positions, Off())
    captured, _ = read(model, POLICY[name], positions, Captured(compiled=False))
    for (rows, logits), (others, found) in zip(plain, captured, strict=True):
        assert rows == others
        torch.testing.assert_close(found, logits, atol=1e-3, rtol=1e-3)
