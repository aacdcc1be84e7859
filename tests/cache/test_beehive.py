"""BeehiveCache on its own: what it holds after any mix of calls, its memory, and the transformers interface."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, OPTConfig

import buzz
from buzz.cache import settle
from buzz.policies import Asked, Held, make_policy
from tests.conftest import recorded
from tests.policies.naive import NAMES, NaiveHead, shared_scores
from tests.policies.strategies import settings_of

HEADS, DIM, LAYERS = 2, 4, 3
CONFIG = LlamaConfig(num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=HEADS, hidden_size=8)

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")


def labelled(cache, counts, first_labels, layer):
    """Keys [B, H, L, D] whose entries name their token, rows left-aligned and padded with -1."""
    width = max(1, *counts)
    keys = torch.full((len(counts), width, HEADS, DIM), -1.0).transpose(1, 2)  # in memory as models have them
    for row, (count, label) in enumerate(zip(counts, first_labels, strict=True)):
        keys[row, :, :count] = torch.arange(label, label + count)[:, None] + 1000.0 * layer
    return keys


def call(cache, counts, columns, heads, labels, generator):
    """One call in all layers, driven by hand, with integer scores; the naive heads get the same."""
    mask = torch.tensor([[0] * (columns - count) + [1] * count for count in counts])
    opened = cache.begin(len(counts), columns, mask)
    assert opened.counts == counts
    given = []
    for layer in range(LAYERS):
        keys = labelled(cache, counts, labels, layer)
        slots = cache.append(keys, keys + 0.5, layer)
        ends = [start + count for start, count in zip(slots.starts, counts, strict=True)]
        inside = (torch.arange(slots.keys.shape[2]) < torch.tensor(ends)[:, None])[:, None]
        scores = torch.randint(0, 3, (len(counts), HEADS, slots.keys.shape[2]), generator=generator).float() * inside
        for row, count in enumerate(counts):
            if not count:
                scores[row] = 0
        given.append((scores, inside, ends))
        cache.observe(scores if slots.spec is not None else None, layer)
    if cache.hearing is not None:
        most = [torch.zeros_like(scores) for scores, _, _ in given]
        for chunk in cache.hearing.copies:
            cache.begin_copy(chunk)
            for layer, (_, inside, _) in enumerate(given):
                keys = torch.full((len(counts), HEADS, chunk.width, DIM), -2.0)
                slots = cache.append(keys, keys, layer)
                scores = torch.randint(0, 3, (*keys.shape[:2], slots.keys.shape[2]), generator=generator).float()
                most[layer] = most[layer].maximum(scores[:, :, : inside.shape[2]] * inside)
                cache.observe(scores, layer)
        cache.end_copies()
        given = [(echo, *rest) for echo, (_, *rest) in zip(most, given, strict=True)]
    for layer, (scores, _, ends) in enumerate(given):
        read = shared_scores(heads[layer][0][0].name, scores)
        for row, count in enumerate(counts):
            for head in range(HEADS if count else 0):
                new = list(range(labels[row], labels[row] + count))
                heads[layer][row][head].call(new, read[row, head, : ends[row]].tolist())


@settings(max_examples=200, deadline=None)
@given(
    settings_of(NAMES),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**16)), min_size=1, max_size=4),
    st.integers(0, 40),
    st.integers(0, 2**16),
    st.sampled_from([0, 60, 8192]),
)
def test_rows_evict_as_they_would_alone(setting, rows, chunks, steps, seed, together):
    """Ragged prompts and chunks, then decoding: every row of every layer and head holds what the reference holds.

    Whether layers are compacted one by one, some of them together, or all of them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "_TOGETHER", together)
        rows_evict_as_they_would_alone(setting, rows, chunks, steps, seed)


def rows_evict_as_they_would_alone(setting, rows, chunks, steps, seed):
    name, params = setting
    plain = {"scope": "head", "echo": False, "values": False, "budgets": None}  # heads that share: test_shared.py
    params = {**params, **{key: value for key, value in plain.items() if key in params}}
    cache = buzz.BeehiveCache(make_policy(name, **params), CONFIG)
    heads = [[[NaiveHead(name, params) for _ in range(HEADS)] for _ in range(rows)] for _ in range(LAYERS)]
    generator = torch.Generator().manual_seed(seed)
    labels = [0] * rows
    calls = []
    for columns, draw in chunks:
        counts = torch.randint(0, columns + 1, (rows,), generator=torch.Generator().manual_seed(draw)).tolist()
        calls.append((columns, counts))
    calls += [(1, [1] * rows)] * steps
    for columns, counts in calls:
        call(cache, counts, columns, heads, labels, generator)
        labels = [label + count for label, count in zip(labels, counts, strict=True)]
        for layer in range(LAYERS):
            store = cache.layers[layer]
            for row in range(rows):
                length = len(heads[layer][row][0].slots)
                assert cache.layer_lengths(layer)[row] == length
                for head in range(HEADS):
                    expected = torch.tensor(heads[layer][row][head].slots) + 1000.0 * layer
                    assert torch.equal(store.keys[row, head, :length, 0], expected)
                    assert torch.equal(store.values[row, head, :length, DIM - 1], expected + 0.5)
                if store.scores is not None:
                    tail = store.scores[row, :, length:]
                    assert tail.numel() == 0 or tail.abs().max() == 0
    assert cache.get_seq_length() == sum(columns for columns, _ in calls)


@pytest.mark.parametrize("together", [0, 60, 8192])
def test_layers_are_compacted_with_their_like(monkeypatch, together):
    """Short prompts of several layers together, but never of layers with different policies; watched in order."""
    monkeypatch.setattr(settle, "_TOGETHER", together)
    policies = [make_policy("buzz", window=4, threshold=4)] * 3 + [make_policy("streaming", window=9)] * 2
    config = LlamaConfig(num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=HEADS, hidden_size=8)
    cache = buzz.BeehiveCache(policies, config)
    seen = []
    cache.on_evict = lambda layer, eviction, slots: seen.append((layer, eviction.policy.name, slots.shape[-1]))
    waiting = []
    for layer in range(5):
        keys = labelled(cache, [30], [0], layer)
        slots = cache.append(keys, keys + 0.5, layer)
        scores = None if slots.spec is None else torch.arange(30).mul(layer).remainder(7).float().expand(1, HEADS, 30)
        cache.observe(scores, layer)
        waiting.append(sum(store.borrowed for store in cache.layers))
    assert waiting == {0: [0, 0, 0, 0, 0], 60: [1, 0, 1, 1, 0], 8192: [1, 2, 3, 1, 0]}[together]
    kept = policies[0].plan(30).kept
    assert seen == [*((i, "buzz", kept) for i in range(3)), *((i, "streaming", 13) for i in (3, 4))]
    for layer, store in enumerate(cache.layers):
        scores = None if layer > 2 else torch.arange(30).mul(layer).remainder(7).float().expand(1, HEADS, 30)
        chosen = policies[layer].select(Held(scores), 30)[0, 0]
        assert store.keys[0, 0, : len(chosen), 0].tolist() == (chosen + 1000.0 * layer).tolist()


def test_layers_that_differ_are_compacted_apart():
    """In the number of heads here; a model on several devices has layers that differ in that."""
    config = LlamaConfig(num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=HEADS, hidden_size=8)
    cache = buzz.BeehiveCache(make_policy("streaming", window=9), config)
    for layer, heads in enumerate((2, 2, 3, 3)):
        keys = torch.full((1, 30, heads, DIM), float(layer)).transpose(1, 2)
        cache.append(keys, keys, layer)
        cache.observe(None, layer)
    assert [store.keys.shape[1] for store in cache.layers] == [2, 2, 3, 3]
    assert [store.keys[:, :, :13].unique().tolist() for store in cache.layers] == [[0.0], [1.0], [2.0], [3.0]]


@pytest.mark.parametrize("name", list(buzz.POLICIES))
def test_lengths_are_those_of_the_trace(name):
    policy = make_policy(name)
    cache = recorded(policy, CONFIG)
    if cache.is_unmeasured:
        cache.shares = buzz.HeadShares([[1.0] * CONFIG.num_key_value_heads] * CONFIG.num_hidden_layers)
    feed(cache, 1000)
    for _ in range(400):
        feed(cache, 1)
    expected = policy.trace(1000, 400)
    assert [lengths[0] for lengths in cache.curve.lengths] == expected
    stats = cache.stats()
    assert stats["mean_tokens"] == [pytest.approx(sum(expected[1:]) / 400)]
    assert stats["peak_tokens"] == [max(expected[1:])]
    assert stats["calls"] == 401
    assert (stats["evictions"][0] > 0) == (expected[-1] < 1400)
    assert stats["nbytes"] == cache.nbytes


def feed(cache, columns, rows=1, mask=None):
    """A call with random keys and scores, and its copies if it is read twice."""
    cache.begin(rows, columns, mask)
    feed_layers(cache, columns, rows)
    if cache.hearing is not None:
        for chunk in cache.hearing.copies:
            cache.begin_copy(chunk)
            feed_layers(cache, chunk.width, rows)
        cache.end_copies()


def feed_layers(cache, columns, rows):
    for layer in range(LAYERS):
        slots = cache.append(torch.randn(rows, HEADS, columns, DIM), torch.randn(rows, HEADS, columns, DIM), layer)
        shape = (rows, HEADS, slots.keys.shape[2])
        moments = Asked(torch.rand(rows, HEADS, DIM), torch.eye(DIM).expand(rows, HEADS, -1, -1))
        asked = moments if cache.asked(layer) else None
        cache.observe(None if slots.spec is None else torch.rand(shape), layer, asked)


def test_keys_that_come_from_another_device_are_refused_in_one_line():
    """The model was moved between two calls."""
    cache = buzz.BeehiveCache(make_policy("h2o", heavy=7, window=6), CONFIG)
    feed(cache, 20)
    moved = torch.zeros(1, HEADS, 1, DIM, device="meta")
    with pytest.raises(
        ValueError, match=r"^the cache holds what layer 0 has cached on cpu, the layer is on meta now: re"
    ):
        cache.append(moved, moved, 0)
    cache.cancel()
    feed(cache, 1)
    assert cache.tokens == [21]


def test_memory_is_freed_and_stays_flat():
    full, cache = (buzz.BeehiveCache(make_policy(name), CONFIG) for name in ("full", "buzz"))
    feed(full, 4000)
    feed(cache, 4000)
    bytes_per_token = LAYERS * HEADS * DIM * 2 * 4
    assert full.nbytes >= 4000 * bytes_per_token
    small = buzz.BeehiveCache(make_policy("buzz_no_max"), CONFIG)  # no score buffer: bytes are keys and values alone
    feed(small, 4000)
    assert small.nbytes < 4000 * bytes_per_token / 3
    for name, share in (("buzz", 9 / 8), ("buzz_no_max", 1)):  # a score beside eight numbers
        c = buzz.BeehiveCache(make_policy(name), CONFIG)
        feed(c, 600)
        start, seen = c.nbytes, []
        for _ in range(1500):
            feed(c, 1)
            seen.append(c.nbytes)
        assert start < seen[-1] == 565 * bytes_per_token * share
        assert seen == sorted(seen)  # it grows up to the policy's bound, and there it stays
        assert len(set(seen)) < 20  # rarely
        assert c.stats()["nbytes"] == c.stats()["peak_nbytes"] == seen[-1] > c.stats()["mean_nbytes"] > start


def test_buffers_grow_with_need():
    """A window of five million tokens costs nothing for forty."""
    for name in ("streaming", "h2o", "buzz"):
        cache = buzz.BeehiveCache(make_policy(name, window=5_000_000), CONFIG)
        feed(cache, 30)
        for _ in range(10):
            feed(cache, 1)
        assert cache.layers[0].capacity <= 64
        assert cache.nbytes < 1_000_000


def test_a_very_long_prompt_gives_its_memory_back_after_the_first_steps():
    cache = buzz.BeehiveCache(make_policy("buzz"), CONFIG)
    feed(cache, 40_000)
    after_prompt = cache.nbytes
    for _ in range(4):
        feed(cache, 1)
    assert cache.layers[0].capacity <= 2 * 565
    assert cache.nbytes < after_prompt / 7


def test_buffers_are_written_in_place():
    cache = buzz.BeehiveCache(make_policy("buzz", window=10, threshold=20), CONFIG)
    feed(cache, 60)
    addresses = [(layer.keys.data_ptr(), layer.scores.data_ptr()) for layer in cache.layers]
    for _ in range(100):
        feed(cache, 1)
    assert [(layer.keys.data_ptr(), layer.scores.data_ptr()) for layer in cache.layers] == addresses


def test_capacity_is_a_least():
    cache = buzz.BeehiveCache(make_policy("streaming", window=4), CONFIG, capacity=100)
    feed(cache, 50)
    assert cache.layers[0].capacity == 100
    with pytest.raises(ValueError, match="capacity must be an integer of at least 1"):
        buzz.BeehiveCache(make_policy("streaming"), CONFIG, capacity=0)


def test_layers_may_have_different_policies():
    policies = [make_policy("streaming", window=w) for w in (4, 8, 8)]
    cache = buzz.BeehiveCache(policies, CONFIG)
    feed(cache, 50, rows=2)
    feed(cache, 1, rows=2)
    assert [cache.layer_lengths(i) for i in range(3)] == [[8, 8], [12, 12], [12, 12]]
    assert cache.lengths == [8, 8]
    assert cache.stats()["mean_tokens"] == [pytest.approx(32 / 3)] * 2
    assert [layer.capacity for layer in cache.layers] == [9, 13, 13]
    with pytest.raises(ValueError, match="3 layers, got 2 policies"):
        buzz.BeehiveCache(policies[:2], CONFIG)
    for wrong in (3, None, ["buzz"], {"buzz": 1}):
        with pytest.raises(TypeError, match="make_policy"):
            buzz.BeehiveCache(wrong, CONFIG)


def test_positions_default_to_what_the_model_can_do():
    policy = make_policy("buzz")
    assert buzz.BeehiveCache(policy, CONFIG).positions == "cache"
    assert buzz.BeehiveCache(policy, OPTConfig(num_hidden_layers=1)).positions == "original"
    assert buzz.BeehiveCache(policy, CONFIG, positions="original").positions == "original"
    with pytest.raises(ValueError, match="positions must be one of cache, original"):
        buzz.BeehiveCache(policy, CONFIG, positions="slot")


def test_rows_can_be_reordered_repeated_and_selected():
    cache = buzz.BeehiveCache(make_policy("h2o", heavy=6, window=3), CONFIG)
    feed(cache, 20, rows=3, mask=torch.tensor([[0] * (20 - n) + [1] * n for n in (5, 20, 8)]))
    assert cache.lengths == [5, 9, 8]
    before = [layer.keys.clone() for layer in cache.layers]
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache.lengths == [8, 5, 5]
    assert all(torch.equal(a.keys, b[[2, 0, 0]]) for a, b in zip(cache.layers, before, strict=True))
    cache.batch_repeat_interleave(2)
    assert cache.lengths == [8, 8, 5, 5, 5, 5]
    assert cache.layers[1].scores.shape[0] == 6
    cache.batch_select_indices(torch.tensor([True, False, True, False, False, False]))
    assert cache.lengths == [8, 5]
    feed(cache, 1, rows=2)
    assert cache.lengths == [9, 6]


@pytest.mark.parametrize("kind", [torch.tensor, list, tuple, np.array])
def test_rows_are_named_by_what_a_tensor_could_be_made_of(kind):
    for named, left in (([2, -3], [8, 5]), ([True, False, True], [5, 8])):
        cache = buzz.BeehiveCache(make_policy("full"), CONFIG)
        feed(cache, 20, rows=3, mask=torch.tensor([[0] * (20 - n) + [1] * n for n in (5, 20, 8)]))
        cache.batch_select_indices(kind(named))
        assert cache.lengths == left
        cache.reorder_cache(kind([1, 0]))
        assert cache.lengths == left[::-1]
        feed(cache, 1, rows=2)


NO_ROWS = "rows are named by a list of indices, or of a bool for each row, got "


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        (torch.tensor([0.0]), TypeError, NO_ROWS + r"tensor\(\[0\.\]\)"),
        ([1.5], TypeError, NO_ROWS),
        ([0, True], TypeError, NO_ROWS),
        ("a", TypeError, NO_ROWS + "'a'"),
        (0, TypeError, NO_ROWS + "0"),
        (torch.tensor(1), TypeError, NO_ROWS),
        (torch.tensor([[0, 1]]), TypeError, NO_ROWS),
        (None, TypeError, NO_ROWS + "None"),
        ([3], ValueError, "the cache holds 3 rows, there is no row 3"),
        (torch.tensor([0, -4]), ValueError, "the cache holds 3 rows, there is no row -4"),
        (torch.tensor([True, False]), ValueError, "the cache holds 3 rows, the mask of those that stay has 2"),
        ([], ValueError, "no row of the cache would be left"),
        ([False] * 3, ValueError, "no row of the cache would be left"),
    ],
)
def test_what_names_no_rows_is_refused_in_one_line(rows, error, says):
    cache = buzz.BeehiveCache(make_policy("h2o", heavy=6, window=3), CONFIG)
    for act in (cache.batch_select_indices, cache.reorder_cache):
        act(rows)  # there are no rows yet
    feed(cache, 20, rows=3)
    for act in (cache.batch_select_indices, cache.reorder_cache):
        with pytest.raises(error, match=f"^{says}"):
            act(rows)
    feed(cache, 1, rows=3)  # as if nobody had asked


@pytest.mark.parametrize(
    ("repeats", "error", "says"),
    [
        (1.5, TypeError, "repeats must be an integer, got 1.5"),
        ("a", TypeError, "repeats must be an integer, got 'a'"),
        (True, TypeError, "repeats must be an integer, got True"),
        (0, ValueError, "repeats must be at least 1, got 0"),
        (-2, ValueError, "repeats must be at least 1, got -2"),
    ],
)
def test_rows_are_repeated_a_whole_number_of_times(repeats, error, says):
    cache = buzz.BeehiveCache(make_policy("h2o"), CONFIG)
    for _ in range(2):
        with pytest.raises(error, match=f"^{says}$"):
            cache.batch_repeat_interleave(repeats)
        feed(cache, 20, rows=3)


def test_reset_gives_everything_back():
    cache = recorded(make_policy("buzz"), CONFIG)
    feed(cache, 700, rows=2)
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length(), cache.lengths, cache.calls, len(cache.curve)) == (0, 0, [], 0, 0)
    feed(cache, 10, rows=3)
    assert cache.lengths == [10, 10, 10]


def test_a_cache_can_be_copied_and_stored():
    cache = buzz.BeehiveCache(make_policy("buzz", window=8, threshold=9), CONFIG)
    feed(cache, 50)
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        feed(twin, 1)
        assert twin.get_seq_length() == 51
        assert twin.layers[0].get_seq_length() == 51
    assert cache.get_seq_length() == 50


def test_misuse_is_one_clear_line():
    cache = buzz.BeehiveCache(make_policy("buzz"), CONFIG)
    with pytest.raises(RuntimeError, match="patch_model"):
        cache.update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), 0)
    with pytest.raises(NotImplementedError, match="what an eviction dropped is gone"):
        cache.crop(-1)
    with pytest.raises(RuntimeError, match="without append"):
        cache.observe(None, 0)
    with pytest.raises(TypeError, match=r"^on_evict must be a function of \(layer, eviction, slots\), or None, got 3$"):
        cache.on_evict = 3
    with pytest.raises(TypeError, match=r"^curve must be a buzz.cache.Curve, or None, got \[\]$"):
        cache.curve = []
    with pytest.raises(ValueError, match=r"^layer must be at most 2, got 3$"):
        cache.layer_lengths(3)
    feed(cache, 5, rows=2)
    with pytest.raises(ValueError, match="holds 2 rows, the call has 3"):
        cache.begin(3, 1)
    with pytest.raises(ValueError, match="attention mask"):
        cache.begin(2, 4, torch.ones(2, 3))
    cache.begin(2, 1)
    with pytest.raises(RuntimeError, match="interrupted"):
        cache.begin(2, 1)
    assert not cache.is_compileable
    assert cache.get_max_length() == -1
    assert cache.get_mask_sizes(3, 0) == (8, 0)
