"""Copies of caches: two that go on as two separate runs would, each in memory of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import buzz
from buzz.cache import PerRow
from tests.cache.held import heads_of
from tests.conftest import left_pad, recorded, tiny_llama, tokens
from tests.decoding.test_loop import POLICIES as SMALL
from tests.decoding.test_loop import assert_same_caches, static
from tests.models.tiny import tiny
from tests.policies.strategies import policies_of

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")
MODEL = tiny_llama()
POSITIONS = st.sampled_from([None, "cache", "original"])
RAGGED = left_pad([tokens(1, n, seed=n)[0] for n in (31, 9, 22)])
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}


def read(model, cache, calls):
    """The logits after each of some calls."""
    with torch.no_grad():
        return [model(ids, past_key_values=cache).logits[:, -1] for ids in calls]


def snapshot(cache):
    """All that a cache holds, head by head, and what it knows, but for its memory."""
    heads = [
        [[None if t is None else t.clone() for t in head] for head in heads_of(cache, layer, row)]
        for layer in range(len(cache.layers))
        for row in range(len(cache.lengths))
    ]
    stats = {name: value for name, value in cache.stats().items() if "nbytes" not in name}
    return heads, (stats, cache.tokens, cache.get_seq_length(), cache.integers.state()["states"])


def assert_holds(cache, shot):
    heads, known = snapshot(cache)
    assert known == shot[1]
    for got, expected in zip(heads, shot[0], strict=True):
        for own, other in zip(got, expected, strict=True):
            for a, b in zip(own, other, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


def addresses(cache):
    """Where the memory of a cache is."""
    own = [t for layer in cache.layers for t in layer.tensors if t is not None]
    pools = {layer.pool for layer in cache.layers if layer.pool is not None}
    return {t.untyped_storage().data_ptr() for t in own} | {
        t.untyped_storage().data_ptr() for pool in pools for t in (pool.keys, pool.values, pool.begin, pool.length)
    }


@settings(max_examples=10)
@given(policies_of(), POSITIONS, st.integers(1, 2), st.lists(st.integers(1, 24), min_size=1, max_size=2), st.data())
def test_a_copy_and_its_original_go_on_as_two_runs(policy, positions, rows, prompt, data):
    if positions == "cache" and "queries" in policy.reads:
        positions = "original"
    read_first = [tokens(rows, n, seed=n) for n in prompt]
    others = [
        [tokens(rows, n, seed=10 * which + n) for n in data.draw(st.lists(st.sampled_from([1, 1, 7]), max_size=5))]
        for which in (1, 2)
    ]
    with buzz.patch_model(MODEL):
        cache = recorded(policy, MODEL, positions)
        read(MODEL, cache, read_first)
        shot, twin = snapshot(cache), cache.copy()
        assert_holds(twin, shot)
        assert twin.nbytes <= cache.nbytes
        assert not addresses(twin) & addresses(cache)
        got = read(MODEL, twin, others[0])
        assert_holds(cache, shot)
        got_by_original = read(MODEL, cache, others[1])
        for own, calls, logits in ((twin, others[0], got), (cache, others[1], got_by_original)):
            alone = recorded(policy, MODEL, positions)
            read(MODEL, alone, read_first)
            for a, b in zip(logits, read(MODEL, alone, calls), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
            assert_same_caches(alone, own)


@pytest.mark.parametrize(
    ("run", "name"), [(static, name) for name in ("buzz", "comb", "comb-layer")] + [(buzz.patch_model, "comb-rows")]
)
def test_answers_after_a_copy_are_those_without(run, name):
    """Of a batch with rows of their own policies too; in static memory, where the original lives in an arena."""
    model, (ids, mask) = MODEL, RAGGED
    ends = [(torch.cat([ids, tokens(3, n, seed=n)], dim=1), torch.cat([mask, mask.new_ones(3, n)], 1)) for n in (5, 8)]
    with run(model):
        expected = []
        for text, known in ends:
            alone = recorded(SMALL[name], model)
            with torch.no_grad():
                model(ids, attention_mask=mask, past_key_values=alone)
            expected.append(model.generate(text, attention_mask=known, past_key_values=alone, **GREEDY))
        cache = recorded(SMALL[name], model)
        with torch.no_grad():
            model(ids, attention_mask=mask, past_key_values=cache)
        shot = snapshot(cache)
        for (text, known), answer in zip(ends, expected, strict=True):
            twin = cache.copy()
            assert model.generate(text, attention_mask=known, past_key_values=twin, **GREEDY).equal(answer)
        assert_holds(cache, shot)
        text, known = ends[0]
        first = model.generate(text, attention_mask=known, past_key_values=cache, **GREEDY)  # lives in an arena now
        assert first.equal(expected[0])
        shot, more = snapshot(cache), tokens(3, 4, seed=9)
        turn, known = torch.cat([first, more], dim=1), torch.cat([known, known.new_ones(3, 6 + 4)], dim=1)
        twins = [cache.copy(), copy.deepcopy(cache), copy.copy(cache)]
        assert not any(layer.home or layer.offered for twin in twins for layer in twin.layers)
        assert all(twin.nbytes <= cache.nbytes for twin in twins)
        answers = [model.generate(turn, attention_mask=known, past_key_values=twin, **GREEDY) for twin in twins]
        assert_holds(cache, shot)
        answers.append(model.generate(turn, attention_mask=known, past_key_values=cache, **GREEDY))
        assert all(answer.equal(answers[0]) for answer in answers)


def test_a_copy_of_an_arena_has_what_is_held_and_the_usual_room():
    model, ids = MODEL, tokens(1, 300)
    with static(model):
        for name in ("h2o", "comb"):
            cache = buzz.BeehiveCache(name, model, budget=2000)
            model.generate(ids, past_key_values=cache, **GREEDY)
            twin = cache.copy()
            own = [layer for layer in twin.layers if layer.pool is None]
            assert cache.nbytes > 4 * twin.nbytes
            assert all(layer.capacity == 305 + 19 for layer in own)
            assert twin.stats() == {**cache.stats(), "nbytes": twin.nbytes}


@pytest.mark.parametrize("name", ["gemma3_text-mixed", "opt", "qwen3-windows"])
def test_other_families_and_windows_can_be_copied(name):
    model, ids, more = tiny(name), tokens(2, 30), [tokens(2, 1, seed=s) for s in range(6)]
    with buzz.patch_model(model):
        caches = [buzz.BeehiveCache("h2o", model, budget=12) for _ in range(2)]
        for cache in caches:
            read(model, cache, [ids])
        twin = caches[0].copy()
        for a, b in zip(read(model, twin, more), read(model, caches[1], more), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_copies_have_the_history_and_nobody_watches_them():
    model, told = MODEL, []
    with buzz.patch_model(model):
        cache = recorded("h2o", model, budget=12)
        cache.on_evict = lambda *what: told.append(what)
        read(model, cache, [tokens(1, 20), tokens(1, 1)])
        twin, before = cache.copy(), len(told)
        assert twin.on_evict is None
        read(model, twin, [tokens(1, 9)])
        assert len(told) == before
        assert (len(cache.curve), len(twin.curve)) == (2, 3)
        assert twin.curve.lengths[:2] == cache.curve.lengths
        assert twin.stats()["evictions"][0] == cache.stats()["evictions"][0] + 1
        read(model, cache, [tokens(1, 9)])
        assert len(told) > before


def test_an_empty_cache_and_one_of_pads_can_be_copied():
    model = MODEL
    with buzz.patch_model(model), torch.no_grad():
        cache = buzz.BeehiveCache("h2o", model, budget=12)
        for twin in (cache.copy(), copy.deepcopy(cache)):
            read(model, twin, [tokens(3, 20)])
        model(tokens(2, 3), attention_mask=torch.zeros(2, 3), past_key_values=cache)
        twin = cache.copy()
        assert (twin.get_seq_length(), twin.tokens, twin.nbytes) == (3, [0, 0], 0)
        expected = model(tokens(2, 5), past_key_values=cache).logits
        assert model(tokens(2, 5), past_key_values=twin).logits.equal(expected)


def test_a_subclass_keeps_what_is_its_own():
    class Named(buzz.BeehiveCache):
        label = None

    cache = Named("h2o", tiny_llama())
    cache.label = "mine"
    twin = copy.deepcopy(cache)
    assert (type(twin), twin.label) == (Named, "mine")


def test_a_cache_whose_call_is_open_is_not_copied():
    model, ids = MODEL, tokens(1, 20)
    cache = buzz.BeehiveCache("h2o", model, budget=12)
    found = []

    def watch(*_):
        for way in (cache.copy, lambda: copy.deepcopy(cache)):
            with pytest.raises(RuntimeError, match="a call of this cache is open, so layers differ: it can be copied"):
                way()
        found.append(1)

    with buzz.patch_model(model):
        cache.on_evict = watch
        read(model, cache, [ids])
        assert found
        cache.on_evict = None
        cache.copy()


class Copying:
    """A streamer that copies a cache whenever it is told of a token."""

    def __init__(self, cache):
        self.cache, self.copies, self.refusals = cache, [], []

    def put(self, _):
        try:
            self.copies.append(self.cache.copy().get_seq_length())
        except RuntimeError as error:
            self.refusals.append(str(error))

    def end(self):
        self.copies.append(self.cache.copy().get_seq_length())


@pytest.mark.parametrize("run", [buzz.patch_model, static], ids=["forward", "static"])
def test_while_a_step_may_be_taken_back_no_copy_is_made(run):
    """In static memory the integers are a step ahead of what is known; elsewhere they are not."""
    model = MODEL
    with run(model):
        cache = buzz.BeehiveCache("h2o", model, budget=12)
        streamer = Copying(cache)
        model.generate(tokens(1, 20), past_key_values=cache, streamer=streamer, **GREEDY)
        if run is static:
            assert any("a step ahead of what it has told" in refusal for refusal in streamer.refusals)
            assert set(streamer.copies) <= {0, 20, 25}
        else:
            assert not streamer.refusals
            assert streamer.copies == [0, *range(20, 26), 25]


@pytest.mark.parametrize("name", ["buzz", "snapkv", "comb", "comb-layer", "comb-echo"])
def test_one_row_can_become_several_that_are_asked_at_once(name):
    """Every row of the batch answers as a copy would alone."""
    model, ids = MODEL, tokens(1, 30, seed=3)
    questions, pads = left_pad([tokens(1, n, seed=n)[0] for n in (7, 3, 5)])
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(SMALL[name], model)
        read(model, cache, [ids])
        alone = []
        for row, count in zip(questions, (7, 3, 5), strict=True):
            text = torch.cat([ids, row[None, 7 - count :]], dim=1)
            answer = model.generate(text, attention_mask=torch.ones_like(text), past_key_values=cache.copy(), **GREEDY)
            alone.append(answer[0, -6:].tolist())
        together = cache.copy()
        together.batch_repeat_interleave(3)
        texts = torch.cat([ids.expand(3, -1), questions], dim=1)
        mask = torch.cat([torch.ones(3, 30, dtype=torch.int64), pads], dim=1)
        answers = model.generate(texts, attention_mask=mask, past_key_values=together, **GREEDY)
        assert answers[:, -6:].tolist() == alone


def test_rows_with_policies_of_their_own_are_repeated_with_them():
    model, (ids, mask) = MODEL, RAGGED
    policies = [buzz.make_policy("h2o", heavy=heavy, window=4) for heavy in (3, 4, 5)]
    with buzz.patch_model(model), torch.no_grad():
        cache = buzz.BeehiveCache(PerRow(policies), model)
        model(ids, attention_mask=mask, past_key_values=cache)
        cache.batch_repeat_interleave(2)
        assert cache.integers.row_policies(0, 6) == [own for policy in policies for own in (policy, policy)]
        twin = cache.copy()
        model(tokens(6, 9), past_key_values=twin)
        assert twin.lengths == [7, 7, 8, 8, 9, 9]
        with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
            cache.batch_repeat_interleave(0)
