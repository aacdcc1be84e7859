"""Calls that are read twice: what stays is what a naive second reading says."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import buzz
from buzz.cache import PerRow
from buzz.policies import Held, Plan
from tests.conftest import left_pad, tiny_llama, tokens
from tests.models.tiny import CASES, tiny
from tests.patching.naive_readings import naive_scores
from tests.policies.twice import Once, Twice

pytestmark = [
    pytest.mark.filterwarnings("ignore:every layer of this model has a sliding window"),
    pytest.mark.filterwarnings("ignore:this model's rotary angles"),
]
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}


def watched(policy, model, positions="original"):
    """A cache, and the slots of its evictions, (layer, rows, slots) each."""
    cache, evictions = buzz.BeehiveCache(policy, model, positions), []
    cache.on_evict = lambda layer, eviction, slots: evictions.append((layer, eviction.rows, slots.clone()))
    return cache, evictions


def assert_heaviest(policy, slots, scores):
    """slots [H, kept] of scores [H, n]: those that the policy selects, but for ties."""
    expected = policy.select(Held(scores[None]), scores.shape[1])[0]
    torch.testing.assert_close(scores.gather(1, slots), scores.gather(1, expected), atol=1e-5, rtol=1e-4)
    assert (slots[:, 1:] > slots[:, :-1]).all()


@torch.no_grad()
def check_prompt(model, policy, positions, lead=0):
    """A prompt of one row against the naive reading, in the layers that the policy decides over."""
    ids = tokens(1, 23, seed=3)
    scores = naive_scores(model, ids, policy.chunk, policy.mean, lead=lead)
    values = model(ids, use_cache=True).past_key_values
    with buzz.patch_model(model):
        cache, evictions = watched(policy, model, positions)
        model(ids, past_key_values=cache)
    decided = [layer for layer, window in enumerate(cache._shape.windows) if window is None]
    assert [layer for layer, *_ in evictions if layer in decided] == decided
    for layer, _, slots in evictions:
        if layer in decided:
            assert_heaviest(policy, slots[0], scores[layer])
            whole = values.layers[layer].values[0]  # [H, n, D]
            kept = whole.gather(1, slots[0][..., None].expand(-1, -1, whole.shape[2]))
            torch.testing.assert_close(cache.layers[layer].values[0, :, : policy.capacity], kept, atol=1e-4, rtol=1e-4)
            if policy.score_spec is not None and policy.score_spec.accumulate:
                held = cache.layers[layer].scores[0, :, : policy.capacity]
                torch.testing.assert_close(held, scores[layer].gather(1, slots[0]), atol=1e-4, rtol=1e-3)


OPTIONS = [{"mean": 4.0}, {"of": "sum"}, {"of": "call", "mean": 1.0}, {"of": "echo"}, {"chunk": 1}, {"chunk": 99}]
BOTH = pytest.mark.parametrize("positions", ["cache", "original"])


@BOTH
@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_what_stays_is_what_the_copy_looks_at(options, positions):
    check_prompt(tiny_llama(), Twice(**options), positions)


@BOTH
def test_for_all_kinds_of_heads_and_positions(model, positions):
    check_prompt(model, Twice(mean=1.0), positions)


@pytest.mark.parametrize("name", CASES)
def test_in_every_family(name):
    for positions in ("original", "cache"):
        check_prompt(tiny(name), Twice(mean=2.0), positions)


def test_a_chunk_may_start_with_the_end_of_the_one_before(monkeypatch):
    monkeypatch.setattr("buzz.cache.echo._LEAD", 3)
    for positions in ("original", "cache"):
        check_prompt(tiny_llama(), Twice(mean=2.0), positions, lead=3)


# Rows.

ROWS = [tokens(1, n, seed=n)[0] for n in (23, 9, 17, 13, 2)]
ALIKE = [Twice(), Twice(mean=3.0, of="sum"), Twice(of="echo")]
PER_ROW = [Twice(mean=1.0), Twice(mean=2.0), Twice(lazy=1, mean=1.0), Twice(capacity=5, mean=1.0), Twice(mean=1.0)]


@torch.no_grad()
def alone_and_together(model, policies, positions, further):
    """Logits after a prompt and after every further token, of rows together and of each alone, and their caches."""
    ids, mask = left_pad(ROWS)
    with buzz.patch_model(model):
        given = {} if positions == "cache" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        cache = buzz.BeehiveCache(PerRow(policies) if len(set(policies)) > 1 else policies[0], model, positions)
        together = [model(ids, attention_mask=mask, past_key_values=cache, **given).logits[:, -1]]
        for more in further:
            n = cache.tokens
            given = (
                {} if positions == "cache" else {"position_ids": torch.tensor(n)[:, None] + torch.arange(more.shape[1])}
            )
            together.append(model(more, past_key_values=cache, **given).logits[:, -1])
        for row, (policy, text) in enumerate(zip(policies, ROWS, strict=True)):
            single = buzz.BeehiveCache(policy, model, positions)
            alone = [model(text[None], past_key_values=single).logits[0, -1]]
            alone += [model(more[row : row + 1], past_key_values=single).logits[0, -1] for more in further]
            yield [logits[row] for logits in together], alone, row, cache, single


@BOTH
@pytest.mark.parametrize(
    "policies", [[Twice()] * 5, [Twice(mean=3.0, of="sum")] * 5, [Twice(of="echo")] * 5, PER_ROW], ids=len
)
@pytest.mark.parametrize("name", ["llama", "smollm3-windows", "opt"])
def test_rows_together_are_rows_alone(name, policies, positions):
    further = [tokens(5, n, seed=50 + n) for n in (1, 1, 7, 1, 1)]
    for together, alone, row, cache, single in alone_and_together(tiny(name), policies, positions, further):
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        for layer, store in enumerate(cache.layers):
            n = cache.layer_lengths(layer)[row]
            assert single.layer_lengths(layer) == [n]
            for a, b in zip(store.tensors, single.layers[layer].tensors, strict=True):
                if a is not None:
                    torch.testing.assert_close(a[row, :, :n], b[0, :, :n], atol=1e-4, rtol=1e-4)
                    assert a is not store.scores or not a[row, :, n:].any()


# Later calls.


@dataclass(frozen=True, repr=False)
class Keeping(Once):
    """Asks for the same, and lets go of nothing."""

    name: ClassVar[str] = "keeping"
    bounded = False

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return None


def received(cache):
    """What the layers of a cache receive in its last call, which does not end."""
    told = []
    cache.observe = lambda scores, layer, queries: told.append(scores)
    return told


@BOTH
@torch.no_grad()
@pytest.mark.parametrize("of", ["largest", "sum", "call"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text-mixed", "opt"])
def test_chunks_of_a_later_call_are_calls_that_are_taken_back(name, of, positions):
    """The second call is read anew, without evictions, and its chunks are calls of copies of that cache."""
    model, policy = tiny(name), Twice(of=of, chunk=4)
    first, second = tokens(1, 20, seed=1), tokens(1, 10, seed=2)
    with buzz.patch_model(model):
        cache, evictions = watched(policy, model, positions)
        model(first, past_key_values=cache)
        base, decided = copy.deepcopy(cache), cache.integers.counted
        base.on_evict = None
        held = [base.layers[layer].scores for layer in decided]
        for schedule in base.integers._schedules:
            schedule.policies = [Keeping(of=of)]
        model(second, past_key_values=base)
        echo = [0.0] * len(cache.layers)
        for begin in range(0, 10, 4):
            chunk, again = second[:, begin : begin + 4], copy.deepcopy(base)
            for schedule in again.integers._schedules:
                schedule.policies = [Keeping(of="largest")]
            told = received(again)
            model(chunk, past_key_values=again)
            for layer in decided:
                n = base.layer_lengths(layer)[0]
                echo[layer] = torch.as_tensor(echo[layer]).maximum(told[layer][0, :, :n])
        evictions.clear()
        model(second, past_key_values=cache)
    assert sorted(layer for layer, *_ in evictions if layer in decided) == decided
    for layer, _, slots in evictions:
        if layer not in decided:
            continue
        scores = echo[layer].clone()
        if of != "call":
            old = held[decided.index(layer)][0, :, :8]
            scores[:, :8] = scores[:, :8].maximum(old) if of == "largest" else scores[:, :8] + old
        assert_heaviest(policy, slots[0], scores)
