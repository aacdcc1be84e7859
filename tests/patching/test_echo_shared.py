"""Calls that are read twice by comb and kvzip: heads that are alike, and heads that share."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

import buzz
from buzz.cache import PerRow
from buzz.policies import Held, Places, Plan
from buzz.policies.comb import CombPolicy
from tests.cache.held import heads_of
from tests.conftest import left_pad, tiny_llama, tokens
from tests.decoding.test_loop import both, generate
from tests.models.tiny import tiny
from tests.patching.naive_readings import naive_first_scores, naive_norms, naive_scores

SMALL = {
    "capacity": 10,
    "sink": 1,
    "window": 3,
    "lazy": 3,
    "beyond": 4,
    "near": 3,
    "chunk": 7,
    "echo": True,
    "decay": 0.5,
}
BOTH = pytest.mark.parametrize("positions", ["cache", "original"])
SCOPES = pytest.mark.parametrize("scope", ["head", "layer", "model"])


def comb(**changes):
    return buzz.make_policy("comb", **{**SMALL, **changes})


def kvzip(**changes):
    return buzz.make_policy("kvzip", **{"capacity": 10, "sink": 1, "window": 3, "chunk": 7, **changes})


POLICIES = pytest.mark.parametrize("make", [comb, kvzip])


def expected_slots(policy, worth, shares=None):
    """Of each layer and head, from what slots are worth, [H, n] of each layer."""
    policy = dataclasses.replace(policy, values=False) if isinstance(policy, CombPolicy) else policy
    scores, (heads, n) = worth, worth[0].shape
    if policy.scope == "head":
        return [policy.select(Held(s[None]), n)[0].tolist() for s in scores]
    groups = [scores] if policy.scope == "model" else [[s] for s in scores]
    slots = []
    for group in groups:
        places = Places.equal(heads * len(group), len(group), n, torch.device("cpu"))
        stay = policy.share(Held(torch.cat(group).flatten()[None], shares=shares), places, policy.capacity, n)
        each = stay.view(len(group), heads, n)
        slots += [[head.nonzero()[:, 0].tolist() for head in layer] for layer in each]
    return slots


@BOTH
@SCOPES
@POLICIES
@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text-mixed"])
def test_a_prompt_keeps_what_its_copy_looks_at(name, make, scope, positions):
    model, ids, policy = tiny(name), tokens(1, 30, seed=1), make(scope=scope)
    worth = naive_scores(model, ids, policy.chunk, getattr(policy, "weight", 0.0), getattr(policy, "near", 0))
    check_prompt(model, ids, policy, positions, worth)


@BOTH
@SCOPES
@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text-mixed"])
def test_a_prompt_that_is_read_once_keeps_what_is_looked_at_from_afar(name, scope, positions):
    model, ids, policy = tiny(name), tokens(1, 30, seed=1), comb(scope=scope, echo=False)
    worth = naive_first_scores(model, ids, policy.beyond, 50.0 if scope == "model" else 5.0, policy.near)
    check_prompt(model, ids, policy, positions, worth)


def check_prompt(model, ids, policy, positions, worth):
    """Of a prompt, the slots that are worth most stay; with comb norms of values count."""
    if isinstance(policy, CombPolicy):
        worth = [w * norms for w, norms in zip(worth, naive_norms(model, ids), strict=True)]
    scope = policy.scope
    with buzz.patch_model(model):
        cache, kept = buzz.BeehiveCache(policy, model, positions), {}
        cache.on_evict = lambda layer, eviction, slots: kept.update({layer: slots[0].tolist()})
        model(ids, past_key_values=cache)
    decided = cache.integers.counted
    got = [[[slot for slot in head if slot >= 0] for head in kept[layer]] for layer in decided]
    assert got == expected_slots(policy, [worth[layer] for layer in decided], cache.shares)
    assert scope == "head" or len({len(head) for layer in got for head in layer}) > 1


@torch.no_grad()
def outputs(model, policy, positions, calls):
    """Logits after each call, and the cache."""
    cache = buzz.BeehiveCache(policy, model, positions)
    return [model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1] for ids, mask in calls], cache


@BOTH
@SCOPES
@pytest.mark.parametrize("lead", [0, 2])
def test_heads_that_share_and_get_the_same_are_heads_that_do_not(monkeypatch, scope, positions, lead):
    """In pools a later call is read twice as elsewhere."""
    monkeypatch.setattr("buzz.cache.echo._LEAD", lead)
    model = tiny_llama()
    calls = [(tokens(2, n, seed=n), None) for n in (25, 1, 1, 9, 1, 1, 30, 1)]
    with buzz.patch_model(model):
        expected, alike = outputs(model, comb(scope="head"), positions, calls)
        got, cache = outputs(model, comb(scope=scope, floor=1.0, ceiling=1.0), positions, calls)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert cache.stats()["evictions"] == alike.stats()["evictions"]


@dataclass(frozen=True, repr=False)
class Keeping(CombPolicy):
    """Lets go of nothing."""

    name: ClassVar[str] = "keeping"
    bounded = False

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return None


@BOTH
@torch.no_grad()
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_chunks_are_calls_that_are_taken_back_from_pools(scope, positions):
    model, policy = tiny_llama(), comb(scope=scope, afar=0.0, chunk=4)
    first, second = tokens(2, 24, seed=1), tokens(2, 10, seed=2)
    with buzz.patch_model(model):
        _, cache = outputs(model, policy, positions, [(first, None)])
        base, heard = copy.deepcopy(cache), {}
        for layer, store in enumerate(cache.layers):
            store.observe = lambda scores, step, layer=layer: heard.update({layer: scores})
        model(second, past_key_values=cache)  # what it then evicts by does not matter
        assert len({n for layer in base.layers for row in layer.pool.lengths(layer.member) for n in row}) > 1
        base.integers._schedules[0].policies = [Keeping()] * 2
        model(second, past_key_values=base)
        ends = [[n for row in layer.pool.lengths(layer.member) for n in row] for layer in base.layers]
        expected = [torch.zeros(4, max(own)) for own in ends]
        base.integers._schedules[0].policies = [Keeping(beyond=0, near=0, afar=0.0)] * 2
        for chunk in second.split(4, dim=1):
            again, told = copy.deepcopy(base), []
            again.observe = lambda scores, layer, queries, told=told: told.append(scores)
            model(chunk, past_key_values=again)
            for layer, scores in enumerate(told):
                for head, end in enumerate(ends[layer]):
                    now = expected[layer][head, :end]
                    torch.maximum(now, scores[head, 0, :end], out=now)
    for layer, scores in enumerate(expected):
        torch.testing.assert_close(heard[layer][:, 0], scores, atol=1e-6, rtol=1e-5)


@SCOPES
@POLICIES
@torch.no_grad()
@pytest.mark.parametrize("capacities", [(10, 10, 10, 10), (12, 10, 8, 9)], ids=str)
def test_rows_together_are_rows_alone(make, scope, capacities):
    model, rows = tiny_llama(), [tokens(1, n, seed=n)[0] for n in (31, 12, 20, 2)]
    policies = [make(scope=scope, capacity=capacity) for capacity in capacities]
    policy = PerRow(policies) if len(set(policies)) > 1 else policies[0]
    ids, mask = left_pad(rows)
    further = [tokens(4, n, seed=60 + n) for n in (1, 1, 9, 1, 1, 14, 1)]
    with buzz.patch_model(model):
        together, cache = outputs(model, policy, "cache", [(ids, mask), *((more, None) for more in further)])
        for row, text in enumerate(rows):
            calls = [(text[None], None), *((more[row : row + 1], None) for more in further)]
            alone, single = outputs(model, policies[row], "cache", calls)
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[row], b[0], atol=1e-4, rtol=1e-4)
            assert single.lengths == [cache.lengths[row]]


@SCOPES
@torch.no_grad()
@pytest.mark.parametrize(("echo", "afar"), [(True, 0), (True, 30), (False, 2)])
@pytest.mark.parametrize("counts", [(1, 9), (6, 1), (1, 1)], ids=str)
def test_a_single_token_beside_texts_is_a_step(scope, echo, afar, counts):
    """As in a row that has nothing to say in a chat turn but the last token of its answer."""
    model, rows, wide = tiny_llama(), [tokens(1, n, seed=n)[0] for n in (31, 20)], 9
    ids, mask = left_pad(rows)
    turn = torch.stack([F.pad(tokens(1, n, seed=40 + i)[0], (wide - n, 0)) for i, n in enumerate(counts)])
    tokens_of = torch.stack([(torch.arange(wide) >= wide - n).long() for n in counts])
    policy, further = comb(scope=scope, echo=echo, afar=afar, lazy=2), [tokens(2, 1, seed=70 + n) for n in range(6)]
    with buzz.patch_model(model):
        calls = [(ids, mask), *((more, None) for more in further[:2]), (turn, tokens_of), *((m, None) for m in further)]
        together, cache = outputs(model, policy, "cache", calls)
        for row, text in enumerate(rows):
            alone = [(text[None], None), *((more[row : row + 1], None) for more in further[:2])]
            alone += [(turn[row : row + 1, wide - counts[row] :], None), *((m[row : row + 1], None) for m in further)]
            logits, single = outputs(model, policy, "cache", alone)
            for a, b in zip(together, logits, strict=True):
                torch.testing.assert_close(a[row], b[0], atol=1e-4, rtol=1e-4)
            for layer in range(len(cache.layers)):
                for a, b in zip(heads_of(cache, layer, row), heads_of(single, layer, 0), strict=True):
                    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@SCOPES
@torch.no_grad()
@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_interrupted_call_is_taken_back(scope, times):
    model, ids = tiny_llama(), tokens(2, 14, seed=8)
    with buzz.patch_model(model):
        _, cache = outputs(model, comb(scope=scope), "cache", [(tokens(2, 25), None)])
        twin, passed = copy.deepcopy(cache), []

        def fail(*_):
            passed.append(0)
            if len(passed) == times:
                raise KeyboardInterrupt

        hook = model.model.layers[1].self_attn.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(ids, past_key_values=cache)
        hook.remove()
        for part in (ids, ids[:, :1]):
            a, b = (model(part, past_key_values=c).logits for c in (twin, cache))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert (cache.nbytes, cache.stats()) == (twin.nbytes, twin.stats())


@BOTH
@SCOPES
@POLICIES
def test_static_memory_takes_what_two_readings_leave(make, scope, positions):
    rows = left_pad([tokens(1, n, seed=n)[0] for n in (31, 9, 22)])

    def turn(model, cache):
        ids, mask = rows
        if cache.calls:
            ids = torch.cat([ids, torch.full((3, cache.get_seq_length() - 31), 5), tokens(3, 9, seed=6)], dim=1)
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - 31), value=1)
        return generate(ids, mask, max_new_tokens=10)(model, cache)

    (expected, eager), (got, cache) = both(tiny_llama(), [turn, turn], make(scope=scope), positions)
    assert [ids.tolist() for ids in got] == [ids.tolist() for ids in expected]
    assert (cache.curve.lengths, cache.tokens) == (eager.curve.lengths, eager.tokens)


@torch.no_grad()
@SCOPES
def test_a_prompt_of_a_single_token_is_no_text(scope):
    model = tiny_llama()
    with buzz.patch_model(model):
        for make in (comb, kvzip):
            logits, cache = outputs(model, make(scope=scope), "cache", [(tokens(2, 1), None)] * 3)
            assert cache.lengths == [3, 3]
            assert all(step.isfinite().all() for step in logits)


@torch.no_grad()
def test_a_layer_that_reads_queries_waits_beside_one_that_reads_twice():
    model, ids = tiny_llama(), tokens(2, 30)
    expected = buzz.make_policy("expected_attention", capacity=10, scope="head")
    kept = []
    with buzz.patch_model(model):
        for policies in ([expected] * 3, [expected, kvzip(scope="head"), expected]):
            cache = buzz.BeehiveCache(policies, model, "original")
            cache.on_evict = lambda layer, _, slots: kept.append((layer, slots))
            model(ids, past_key_values=cache)
            assert cache.lengths == [10, 10]
    first = [slots for layer, slots in kept if layer == 0]
    assert torch.equal(*first)
