"""Layers with a sliding window beside layers that the policy decides over."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config

import buzz
from buzz.cache import Curve, PerRow, Shape
from buzz.policies import make_policy
from buzz.policies.window import SlidingWindow
from tests.models.tiny import tiny

HEADS, DIM = 2, 4
FULL, SLIDING = "full_attention", "sliding_attention"
SIZES = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "hidden_size": HEADS * DIM, "head_dim": DIM}
SLOT = 2 * HEADS * DIM * 4  # bytes of a token's keys and values in one layer


def config_of(kinds, window=8):
    return Gemma3TextConfig(num_hidden_layers=len(kinds), layer_types=kinds, sliding_window=window, **SIZES)


MIXED = config_of([SLIDING, SLIDING, FULL, SLIDING, FULL])
ALL = MistralConfig(num_hidden_layers=2, sliding_window=8, **SIZES)


def feed(cache, counts, columns, first):
    """One call whose keys name their tokens, pads at the left; row b's tokens are numbered from first[b] on."""
    mask = torch.tensor([[0] * (columns - count) + [1] * count for count in counts])
    cache.begin(len(counts), columns, mask)
    width = max(1, *counts)
    for layer in range(len(cache.layers)):
        if cache.skip(layer):
            continue
        keys = torch.arange(width)[None, :] + torch.tensor(first)[:, None]
        keys = keys[:, None, :, None].expand(-1, HEADS, -1, DIM).float()
        slots = cache.append(keys, keys + 0.5, layer)
        assert slots.window == cache.window(layer)
        shape = (len(counts), HEADS, slots.keys.shape[2])
        cache.observe(None if slots.spec is None else torch.rand(shape), layer)


def stream(cache, prompt, steps):
    feed(cache, [prompt], prompt, [0])
    for step in range(steps):
        feed(cache, [1], 1, [prompt + step])


def held(cache, layer, row):
    return cache.layers[layer].keys[row, 0, : cache.layer_lengths(layer)[row], 0].tolist()


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (LlamaConfig(num_hidden_layers=2), (None, None)),
        (MistralConfig(num_hidden_layers=2, sliding_window=9), (9, 9)),
        (MistralConfig(num_hidden_layers=2, sliding_window=None), (None, None)),
        (Qwen2Config(num_hidden_layers=2, sliding_window=9, use_sliding_window=True, max_window_layers=1), (None, 9)),
        (Qwen2Config(num_hidden_layers=2, sliding_window=9), (None, None)),  # not in use
        (MIXED, (8, 8, None, 8, None)),
    ],
)  # fmt: skip
def test_windows_are_those_of_transformers_own_cache(config, windows):
    assert Shape.of(config).windows == windows
    own = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]
    assert list(windows) == own


@torch.no_grad()
def test_a_window_that_the_model_does_not_know_is_none():
    config = LlamaConfig(num_hidden_layers=2, sliding_window=4, intermediate_size=8, vocab_size=32, **SIZES)
    model, ids = LlamaForCausalLM(config).eval(), torch.arange(20)[None]
    assert Shape.of(config).windows == (None, None)
    expected = model(ids, use_cache=False).logits
    with buzz.patch_model(model):
        torch.testing.assert_close(model(ids, past_key_values=buzz.BeehiveCache("full", model)).logits, expected)


@torch.no_grad()
def test_a_window_that_is_changed_after_patching_takes_effect():
    model, ids = tiny("mistral"), torch.arange(3, 40)[None]
    with buzz.patch_model(model):
        for window in (20, None):
            model.config.sliding_window = window
            expected = model(ids, use_cache=False).logits
            got = model(ids, past_key_values=buzz.BeehiveCache("full", model)).logits
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_layers_of_another_kind_are_refused_by_name():
    config = LlamaConfig(num_hidden_layers=2)
    config.layer_types = [FULL, "linear_attention"]
    with pytest.raises(ValueError, match=r"^the model has layers of type 'linear_attention', and .* only$"):
        buzz.BeehiveCache("buzz", config)
    config.layer_types, config.attention_chunk_size = None, 64
    with pytest.raises(ValueError, match="layers of type 'chunked_attention'"):
        buzz.BeehiveCache("buzz", config)


def test_a_cache_for_other_windows_is_refused():
    cache = buzz.BeehiveCache("buzz", MIXED)
    assert str(Shape.of(LlamaConfig(num_hidden_layers=2))) == "2 layers of 32 KV heads, 128 wide"
    cache.check(Shape.of(MIXED))
    other = Shape.of(config_of([FULL] * 5))
    with pytest.raises(ValueError, match="5 layers of 2 KV heads, 4 wide, 3 with a sliding window of 8 tokens, this"):
        cache.check(other)
    assert str(Shape.of(ALL)).endswith("4 wide, all with a sliding window of 8 tokens")


@settings(max_examples=60)
@given(
    st.sampled_from(["full", "h2o", "buzz", "local", "snapkv"]),
    st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(0, 40),
    st.integers(1, 20),
)
def test_windows_hold_the_newest_and_the_policy_has_the_rest(name, chunks, steps, window):
    """Ragged rows, chunks and steps: each layer's rows hold what they would alone."""
    policy = {
        "h2o": make_policy("h2o", heavy=5, window=4),
        "buzz": make_policy("buzz", sink=1, window=4, stride=3, threshold=5),
        "local": make_policy("local", window=6),
        "snapkv": make_policy("snapkv", capacity=9, window=3),
    }.get(name, make_policy("full"))
    cache = buzz.BeehiveCache(policy, config_of([SLIDING, FULL, SLIDING], window))
    sliding = SlidingWindow(window)
    seen, states = [0, 0], {1: [(0, 0)] * 2, 0: [(0, 0)] * 2}
    for counts in [*chunks, *[[1, 1]] * steps]:
        feed(cache, counts, max(1, *counts), seen)
        seen = [a + b for a, b in zip(seen, counts, strict=True)]
        for layer, rule in ((0, sliding), (1, policy)):
            for row, count in enumerate(counts):
                length, sampled = states[layer][row]
                if count:
                    states[layer][row] = rule.advance(length + count, sampled)
        for row in range(2):
            assert cache.layer_lengths(1)[row] == cache.lengths[row] == states[1][row][0]
            for layer in (0, 2):
                length = cache.layer_lengths(layer)[row]
                assert length == states[0][row][0]
                if length:
                    assert held(cache, layer, row) == list(range(seen[row] - length, seen[row]))


def test_what_counts_are_the_layers_of_full_attention():
    policies = [make_policy("local", window=w) for w in (1, 2, 10, 3, 20)]
    cache = buzz.BeehiveCache(policies, MIXED)
    cache.curve = Curve()
    stream(cache, 50, 30)
    assert [cache.layer_lengths(i) for i in range(5)] == [[7], [7], [10], [7], [20]]
    assert cache.lengths == [10]
    stats = cache.stats()
    assert (stats["mean_tokens"], stats["peak_tokens"], stats["evictions"]) == ([15], [15], [31])
    assert cache.curve.lengths == [[15]] * 31
    assert stats["nbytes"] == sum(layer.capacity for layer in cache.layers) * SLOT == (3 * 8 + 11 + 21) * SLOT
    assert "10" in repr(cache)
    assert "SlidingWindow" not in repr(cache)
    call = cache.begin(1, 1)
    assert (call.last_slot, call.query_slots(torch.device("cpu")).tolist()) == (10, [[10]])


def test_a_policy_that_differs_by_layer_is_spread_over_those_that_it_decides_over():
    """So that the mean is what it is of, and what a budget asks for."""
    policy = make_policy("pyramidkv", capacity=20, window=4)
    cache = buzz.BeehiveCache(policy, MIXED)
    stream(cache, 100, 0)
    low, high = (layer.capacity for layer in policy.per_layer(2))
    assert [cache.layer_lengths(i)[0] for i in range(5)] == [7, 7, low, 7, high]
    assert cache.stats()["mean_tokens"] == [20]
    with pytest.raises(ValueError, match="5 layers, got 2 policies"):
        buzz.BeehiveCache([policy] * 2, MIXED)


def test_budgets_are_of_the_layers_of_full_attention():
    cache = buzz.BeehiveCache("streaming", MIXED, budget=30)
    stream(cache, 50, 20)
    assert cache.stats()["mean_tokens"] == [30]


def test_rows_of_their_own():
    cache = buzz.BeehiveCache(PerRow([make_policy("local", window=w) for w in (4, 12)]), MIXED)
    feed(cache, [40, 3], 40, [0, 0])
    assert (cache.lengths, cache.layer_lengths(0)) == ([4, 3], [7, 3])
    feed(cache, [5, 9], 9, [40, 3])
    assert (cache.lengths, cache.layer_lengths(0)) == ([4, 12], [7, 7])


def test_logn_is_for_the_layers_of_full_attention():
    cache = buzz.BeehiveCache(make_policy("buzz", logn_base=512), MIXED)
    assert [cache.logn_base(i) for i in range(5)] == [None, None, 512, None, 512]


def test_windows_share_one_schedule():
    cache = buzz.BeehiveCache("buzz", MIXED)
    assert sorted(cache.integers.groups.values()) == [[0, 1, 3], [2, 4]]


@pytest.mark.parametrize("capacity", [None, 5000])
def test_memory_of_a_window_is_bounded(capacity):
    """Over a stream and whatever is asked of the other layers, and after a prompt that is much longer."""
    cache = buzz.BeehiveCache("full", config_of([SLIDING, FULL], 64), capacity=capacity)
    stream(cache, 1000, 400)
    assert cache.layers[0].capacity == cache.layers[0].keys.shape[2] == 63 + 8
    assert cache.layers[1].capacity >= 1400
    assert cache.nbytes == (cache.layers[0].capacity + cache.layers[1].capacity) * SLOT


def test_a_window_of_one_token_holds_nothing_between_calls():
    cache = buzz.BeehiveCache("full", config_of([SLIDING, FULL], 1))
    stream(cache, 5, 3)
    assert (cache.layer_lengths(0), cache.lengths) == ([0], [8])


def test_rows_can_be_reordered_and_selected():
    cache = buzz.BeehiveCache(make_policy("local", window=5), MIXED)
    feed(cache, [20, 4, 9], 20, [0, 100, 200])
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert (cache.lengths, cache.layer_lengths(0)) == ([5, 5, 5], [7, 7, 7])
    assert (held(cache, 0, 0), held(cache, 2, 1)) == (list(range(202, 209)), list(range(15, 20)))
    cache.batch_select_indices(torch.tensor([0]))
    feed(cache, [1], 1, [209])
    assert held(cache, 3, 0) == list(range(203, 210))


def test_reset_copy_and_pickle():
    cache = buzz.BeehiveCache(make_policy("local", window=5), MIXED)
    stream(cache, 20, 3)
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        feed(twin, [1], 1, [23])
        assert held(twin, 0, 0) == list(range(17, 24))
        assert twin.window(0) == 8
    cache.reset()
    assert (cache.nbytes, cache.lengths) == (0, [])
    stream(cache, 4, 0)
    assert (cache.lengths, cache.layer_lengths(0)) == ([4], [4])


def test_evictions_of_windows_are_watched_too():
    cache = buzz.BeehiveCache("full", MIXED)
    seen = []
    cache.on_evict = lambda layer, eviction, slots: seen.append((layer, eviction.policy.name, slots.tolist()))
    stream(cache, 9, 0)
    assert seen == [(layer, "sliding_window", [[[2, 3, 4, 5, 6, 7, 8]]]) for layer in (0, 1, 3)]


def test_where_all_layers_have_a_window_they_count_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="^every layer of this model has a sliding window of 8 tokens") as caught:
        cache = buzz.BeehiveCache("buzz", ALL)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    stream(cache, 20, 5)
    assert (cache.lengths, cache.stats()["mean_tokens"], cache.stats()["evictions"]) == ([7], [7], [6])
    assert "SlidingWindow(window=8)" in repr(cache)


def test_nothing_is_said_where_the_policy_has_a_say_or_asks_for_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buzz.BeehiveCache("full", ALL)
        buzz.BeehiveCache(PerRow([make_policy("full")] * 2), ALL)
        buzz.BeehiveCache("buzz", MIXED)
