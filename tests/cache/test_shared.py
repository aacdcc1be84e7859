"""Heads that share their slots: what a cache holds after any mix of calls, against lists of one slot at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

import buzz
from buzz.cache import PerRow
from buzz.policies import POLICIES, make_policy
from tests.cache.held import heads_of
from tests.policies.contract import shares_of
from tests.policies.strategies import legal
from tests.policies.test_comb import budgets_of, by_place
from tests.policies.test_sharing import naive_share, places_of

HEADS, DIM, LAYERS = 2, 4, 3  # of four equal components, a norm is exact
CONFIG = LlamaConfig(num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=HEADS, hidden_size=8)
SHARES = shares_of(LAYERS)  # of so many heads as a layer has there, too
SHARING = [policy for policy in legal(POLICIES["comb"]) if policy.scope != "head" and not policy.echo]
# Of a call that is no prompt yet, a layer holds more than it can get.
PATIENT = make_policy("comb", capacity=6, sink=0, window=5, lazy=8, values=False, budgets="worth")


class NaiveRow:
    """One row of all layers: `heads[layer][head]` is a list of [label, score], oldest first."""

    def __init__(self, policy) -> None:
        self.policy = policy
        self.heads = [[[] for _ in range(HEADS)] for _ in range(LAYERS)]
        self.length = self.sampled = 0

    def call(self, labels: list[int], received: list[list[list[float]]]) -> None:
        """`received[layer][head]` of every slot in the call."""
        self.length += len(labels)
        for layer, of_layer in enumerate(self.heads):
            for head, slots in enumerate(of_layer):
                slots += [[label, 0.0] for label in labels]
                for slot, new in zip(slots, received[layer][head], strict=True):
                    slot[1] = slot[1] + new if getattr(self.policy, "sums", False) else max(slot[1], new)
        plan = self.policy.plan(self.length, self.sampled) if labels else None
        if plan is None:
            return
        layers = list(range(LAYERS))
        for sharing in [layers] if self.policy.scope == "model" else [[layer] for layer in layers]:
            self.evict(sharing, plan.kept, weighed=self.length > self.policy.capacity + self.policy.slack + 1)
        self.length, self.sampled = plan

    def evict(self, layers: list[int], kept: int, weighed: bool) -> None:
        heads = [slots for layer in layers for slots in self.heads[layer]]
        lengths = [len(slots) for slots in heads]
        places, policy = places_of([lengths], [lengths], len(layers)), self.policy
        slots = [slot for head in heads for slot in head]
        worth = torch.tensor([[score for _, score in slots]])
        if weighed and policy.values:  # in float32, like the policy: products that round may tie
            worth = worth * torch.tensor([[[label + 0.5] * DIM for label, _ in slots]]).norm(dim=-1)
        stream = not weighed and not self.sampled
        if stream and policy.recency:
            worth = by_place(worth, lengths)
        window = policy.recent_of_streams if stream else policy.recent
        budgets = budgets_of(policy, SHARES, window) if policy.measured else None
        rule = (policy.sink, window, policy.floor, policy.ceiling, policy.layer_ceiling, budgets)
        stay, place = naive_share(worth, places, 0, kept, *rule), 0
        for head in heads:
            decayed = (torch.tensor([score for _, score in head]) * policy.decay).tolist()  # in float32 as well
            some = [[head[i][0], score] for i, score in enumerate(decayed) if place + i in stay]
            place += len(head)
            head[:] = some


def keys_of(counts, labels):
    """Keys [B, H, L, D] whose entries are the labels of their tokens."""
    width = max(1, *counts)
    keys = torch.full((len(counts), width, HEADS, DIM), -1.0).transpose(1, 2)
    for row, (count, label) in enumerate(zip(counts, labels, strict=True)):
        keys[row, :, :count] = torch.arange(label, label + count).float()[:, None]
    return keys


def call(cache, counts, columns, rows, labels, generator):
    """One call in all layers by hand, in the cache and in the naive rows."""
    opened = cache.begin(len(counts), columns, torch.tensor([[0] * (columns - n) + [1] * n for n in counts]))
    assert opened.counts == counts
    received = [[[[] for _ in range(HEADS)] for _ in range(LAYERS)] for _ in rows]
    for layer in range(LAYERS):
        keys = keys_of(counts, labels)
        slots = cache.append(keys, keys + 0.5, layer)
        scores = torch.zeros(len(rows) * HEADS, slots.keys.shape[2])
        for row, (naive, count) in enumerate(zip(rows, counts, strict=True)):
            for head in range(HEADS):
                end = len(naive.heads[layer][head]) + count
                if count:
                    got = torch.randint(0, 5, (end,), generator=generator).float()
                    scores[row * HEADS + head, :end] = got
                    received[row][layer][head] = got.tolist()
                else:
                    received[row][layer][head] = [0.0] * end
        cache.observe(scores.view(-1, 1, scores.shape[1]) if slots.apart else scores.view(len(rows), HEADS, -1), layer)
    for naive, count, label, got in zip(rows, counts, labels, received, strict=True):
        naive.call(list(range(label, label + count)), got)


def check(cache, rows):
    for row, naive in enumerate(rows):
        assert cache.lengths[row] == naive.length
        assert sum(len(slots) for of_layer in naive.heads for slots in of_layer) == naive.length * LAYERS * HEADS
        for layer in range(LAYERS):
            for slots, (keys, values, scores) in zip(naive.heads[layer], heads_of(cache, layer, row), strict=True):
                assert keys[:, 0].tolist() == [label for label, _ in slots]
                assert values[:, 1].tolist() == [label + 0.5 for label, _ in slots]
                assert scores.tolist() == pytest.approx([score for _, score in slots], rel=1e-6)
    for pool in {store.pool for store in cache.layers if store.pool is not None}:
        assert not pool.scores[~pool.places().taken].any()  # a slot's score starts at zero
        assert pool.lengths(0) == pool.layer(0).length.tolist()


ALIKE = ("scope", "measured", "weight", "values", "beyond", "near")
CALLS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**16)), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(SHARING), min_size=1, max_size=3), CALLS, st.integers(0, 25), st.integers(0, 2**16))
@example([PATIENT], [(18, 0)], 0, 0)
def test_rows_evict_as_they_would_alone(policies, chunks, steps, seed):
    """Ragged prompts and chunks, then steps; rows with policies of their own where these may share a batch."""
    first = policies[0]
    policies = [p for p in policies if all(getattr(p, name) == getattr(first, name) for name in ALIKE)]
    rows = [NaiveRow(policy) for policy in policies]
    cache = buzz.BeehiveCache(PerRow(policies), CONFIG, shares=SHARES)
    generator, labels = torch.Generator().manual_seed(seed), [0] * len(rows)
    for columns, draw in [*chunks, *[(1, None)] * steps]:
        counts = [1] * len(rows)
        if draw is not None:
            counts = torch.randint(0, columns + 1, (len(rows),), generator=torch.Generator().manual_seed(draw)).tolist()
        call(cache, counts, columns, rows, labels, generator)
        labels = [label + count for label, count in zip(labels, counts, strict=True)]
        check(cache, rows)


def after(policy, prompts, steps=0):
    rows, cache = [NaiveRow(policy) for _ in prompts], buzz.BeehiveCache(policy, CONFIG, shares=SHARES)
    generator = torch.Generator().manual_seed(0)
    call(cache, prompts, max(prompts), rows, [0] * len(prompts), generator)
    for i in range(steps):
        call(cache, [1] * len(prompts), 1, rows, [n + i for n in prompts], generator)
    return cache, rows, generator


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_rows_can_be_taken_and_caches_copied(scope):
    policy = make_policy("comb", capacity=8, sink=1, window=1, lazy=3, beyond=0, near=0, scope=scope)
    cache, rows, generator = after(policy, [30, 22, 4], 2)
    twin = copy.deepcopy(cache)
    cache.reorder_cache(torch.tensor([1, 1, 0, 2]))
    rows_of_cache = [copy.deepcopy(rows[i]) for i in (1, 1, 0, 2)]
    check(cache, rows_of_cache)
    for step in range(5):
        call(cache, [1] * 4, 1, rows_of_cache, [90 + step] * 4, generator)
        check(cache, rows_of_cache)
    check(twin, rows)
    call(twin, [1] * 3, 1, rows, [90] * 3, generator)
    check(twin, rows)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_memory_is_that_of_equal_heads(scope):
    """But for two integers a head; also after a long chunk, of which nothing is held back."""
    policy = make_policy("comb", capacity=8, sink=1, window=1, lazy=3, beyond=0, near=0, scope=scope)
    alike = make_policy("comb", capacity=8, sink=1, window=1, lazy=3, beyond=0, near=0, scope="head")
    (cache, rows, generator), (equal, _, _) = after(policy, [30]), after(alike, [30])
    integers = LAYERS * HEADS * 2 * 4
    assert cache.nbytes == equal.nbytes + integers
    call(cache, [200], 200, rows, [30], generator)
    check(cache, rows)
    assert cache.nbytes == equal.nbytes + integers
    cache.reset()
    assert cache.nbytes == 0
    assert not cache.lengths


@pytest.mark.parametrize(("budgets", "times"), [("measured", 4), ("worth", 2)])
def test_a_prompt_of_one_reading_waits_in_its_shortlist(budgets, times):
    """So that at most one layer is held whole, and of the others four times what stays, or twice."""
    policy = make_policy("comb", capacity=8, sink=1, window=1, lazy=0, beyond=0, near=0, budgets=budgets)
    cache = buzz.BeehiveCache(policy, CONFIG, shares=SHARES)
    keys = torch.rand(1, HEADS, 100, DIM)
    cache.begin(1, 100)
    for layer in range(LAYERS - 1):
        slots = cache.append(keys, keys, layer)
        cache.observe(torch.rand(1, HEADS, 100), layer)
        assert slots.keys.shape[2] == 100
        assert cache.layers[layer].pool.capacity == 8 * times
        assert cache.layers[layer].keys is None


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_who_watches_sees_the_slots_of_each_head(scope):
    policy = make_policy("comb", capacity=8, sink=1, window=1, lazy=3, beyond=0, near=0, scope=scope)
    rows, cache, told = [NaiveRow(policy) for _ in range(2)], buzz.BeehiveCache(policy, CONFIG, shares=SHARES), []
    cache.on_evict = lambda layer, eviction, slots: told.append((layer, eviction.rows, slots))
    call(cache, [30, 9], 30, rows, [0, 0], torch.Generator().manual_seed(0))
    assert [(layer, which) for layer, which, _ in told] == [(layer, (0,)) for layer in range(LAYERS)]
    for layer, _, slots in told:
        for head, of_head in zip(slots[0].tolist(), rows[0].heads[layer], strict=True):
            kept = [slot for slot in head if slot >= 0]
            assert kept == [label for label, _ in of_head]
            assert head[len(kept) :] == [-1] * (len(head) - len(kept))
