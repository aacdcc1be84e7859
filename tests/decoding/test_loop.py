"""Decoding in static memory: ids and cache are those of the model's own forward, in every state."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers import LlamaForCausalLM, LogitsProcessor, StoppingCriteria

import buzz
from buzz.decoding.arena import Uncaptured
from buzz.models.positions import Rotary
from tests.cache.held import heads_of
from tests.conftest import MODELS, left_pad, recorded, tiny_llama, tiny_opt, tokens
from tests.decoding.afar import Afar
from tests.models.tiny import tiny, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")

POLICIES = {
    "full": buzz.make_policy("full"),
    "local": buzz.make_policy("local", window=12),
    "streaming": buzz.make_policy("streaming", sink=2, window=10),
    "h2o": buzz.make_policy("h2o", heavy=7, window=6),
    "buzz": buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9),
    "buzz-crowded": buzz.make_policy("buzz", sink=0, window=5, stride=3, threshold=0),
    "buzz-growing": buzz.make_policy("buzz", sink=1, window=4, stride=2, threshold=6),
    "buzz-logn": buzz.make_policy("buzz", sink=2, window=6, stride=4, threshold=9, logn_base=16),
    "buzz_fast": buzz.make_policy("buzz_fast", sink=2, window=6, stride=5, threshold=9),
    "buzz_fast-growing": buzz.make_policy("buzz_fast", sink=2, window=6, stride=2, threshold=9),
    "buzz_no_max": buzz.make_policy("buzz_no_max", sink=2, window=6, stride=5, threshold=9),
    "snapkv": buzz.make_policy("snapkv", capacity=14, window=4, kernel=3),
    "pyramidkv": buzz.make_policy("pyramidkv", capacity=14, window=4, kernel=3, beta=4),
    "tova": buzz.make_policy("tova", capacity=12),
    "comb": buzz.make_policy("comb", capacity=12, sink=1, window=4, lazy=3, beyond=2, near=1),
    "comb-layer": buzz.make_policy(
        "comb", capacity=12, sink=1, window=4, lazy=3, beyond=2, near=1, scope="layer", values=True
    ),
    "comb-head": buzz.make_policy("comb", capacity=12, sink=1, window=4, lazy=3, beyond=2, near=1, scope="head"),
    "comb-echo": buzz.make_policy("comb", capacity=12, sink=1, window=4, lazy=3, beyond=2, near=1, echo=True, chunk=9),
    "random": buzz.make_policy("random", capacity=15, sink=2, window=6, seed=3),
    "rows": buzz.PerRow([buzz.make_policy("h2o", heavy=h, window=6) for h in (4, 9, 7)]),
    "comb-rows": buzz.PerRow(
        [buzz.make_policy("comb", capacity=c, window=4, lazy=3, beyond=2, near=1) for c in (9, 14, 10)]
    ),
    "buzz-rows": buzz.PerRow([buzz.make_policy("buzz", window=6, threshold=t) for t in (9, 4, 6)]),
}
# Those whose caches are written in ways of their own, in all families; of the others there is one that is like them.
WAYS = ("full", "h2o", "buzz", "snapkv", "comb", "comb-layer", "comb-echo", "comb-rows", "buzz-rows")
MATRIX = [
    (name, positions, kind)
    for name in POLICIES
    for positions in ("cache", "original")
    for kind in ("llama-mha", "llama-gqa", "opt")
    if name in WAYS or kind == "llama-gqa"
]
GREEDY = {"do_sample": False, "eos_token_id": None}


def static(model):
    """Patch a model so that it decodes in static memory on this CPU."""
    handle = buzz.patch_model(model)
    handle.engine.run = Uncaptured()
    return handle


def both(model, calls, policy, positions=None, seed=0):
    """Each of the generate() calls on one cache, by the model's own forward and in static memory."""
    results = []
    for patch in (buzz.patch_model, static):
        torch.manual_seed(seed)
        with patch(model):
            cache = recorded(policy, model.config, positions=positions)
            results.append(([call(model, cache) for call in calls], cache))
    return results


def assert_same(results):
    (expected, before), (got, cache) = results
    for a, b in zip(expected, got, strict=True):
        assert a.tolist() == b.tolist()
    assert_same_caches(before, cache)


def assert_same_caches(expected, got):
    for name in ("lengths", "tokens", "calls"):
        assert getattr(got, name) == getattr(expected, name), name
    assert got.curve.lengths == expected.curve.lengths
    assert got.get_seq_length() == expected.get_seq_length()
    stats = [{k: v for k, v in cache.stats().items() if "nbytes" not in k} for cache in (expected, got)]
    assert stats[0] == stats[1]
    for i, b in enumerate(got.layers):
        states = [cache.integers.states(cache.integers.schedule_of[i]) for cache in (expected, got)]
        assert states[0] == states[1]
        for row, length in enumerate(expected.layer_lengths(i)):
            for x, y in zip(heads_of(expected, i, row), heads_of(got, i, row), strict=True):
                torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-4)
            if b.pool is None and b.scores is not None:
                assert not b.scores[row, :, length:].any()
        if b.pool is not None and b.pool.scores is not None:
            assert not b.pool.scores[~b.pool.places().taken].any()


def generate(prompt, mask=None, **settings):
    return lambda model, cache: model.generate(
        prompt, attention_mask=mask, past_key_values=cache, **{**GREEDY, **settings}
    )


RAGGED = left_pad([tokens(1, n, seed=n)[0] for n in (31, 9, 22)])


@pytest.mark.parametrize(("name", "positions", "kind"), MATRIX)
def test_every_policy(name, positions, kind):
    results = both(MODELS[kind](), [generate(*RAGGED, max_new_tokens=20)], POLICIES[name], positions)
    assert_same(results)
    cache = results[1][1]
    assert all(layer.home or layer.pool for layer in cache.layers)  # it did run in static memory
    assert all(shared.pools == [pool for pool, _ in shared._offers] for shared in cache.storage._shared.values())


@pytest.mark.parametrize(
    ("accumulate", "of", "beyond"),
    [(True, "largest", 0), (True, "largest", 5), (True, "sum", 5), (False, "largest", 3), (False, "mean", 5)],
)
@pytest.mark.parametrize("rows", [False, True])
def test_largest_scores_from_afar(accumulate, of, beyond, rows):
    how = {"window": 6, "accumulate": accumulate, "of": of, "beyond": beyond}
    policy = buzz.PerRow([Afar(heavy=h, **how) for h in (4, 9, 7)]) if rows else Afar(heavy=7, **how)
    results = both(tiny_llama(2), [generate(*RAGGED, max_new_tokens=30)], policy)
    assert_same(results)
    assert all(layer.home is not None for layer in results[1][1].layers)


def test_steps_of_other_scores_are_other_steps():
    """Memory of the same size does not serve two caches whose scores are made otherwise."""
    model = tiny_llama(2)
    policies = [
        Afar(heavy=7, window=6, of=of, beyond=beyond) for of, beyond in (("sum", 0), ("largest", 0), ("sum", 5))
    ]

    def run(patch):
        caches = [recorded(policy, model.config) for policy in policies]
        with patch(model):
            return [generate(*RAGGED, max_new_tokens=30)(model, cache) for cache in caches], caches

    (ids, before), (got, after) = run(buzz.patch_model), run(static)
    for i in range(len(policies)):
        assert ids[i].tolist() == got[i].tolist()
        assert_same_caches(before[i], after[i])


@pytest.mark.parametrize("name", ["buzz", "tova", "full"])
def test_sampling_draws_the_same(name):
    settings = {"do_sample": True, "top_k": 20, "temperature": 0.8, "repetition_penalty": 1.3, "max_new_tokens": 30}
    results = both(tiny_llama(2), [generate(*RAGGED, **settings)], POLICIES[name], seed=5)
    assert_same(results)


@pytest.mark.parametrize("name", ["buzz", "h2o", "streaming", "snapkv", "pyramidkv", "buzz_fast-growing", "full"])
def test_chat_turns(name):
    """Three turns: a cache comes back to its arena, or to a larger one."""
    turns = [tokens(2, n, seed=n) for n in (20, 30, 3)]

    def talk(model, cache):
        text = turns[0][:, :0]
        for turn in turns:
            text = torch.cat([text, turn], dim=1)
            text = model.generate(
                text, attention_mask=torch.ones_like(text), past_key_values=cache, max_new_tokens=25, **GREEDY
            )
        return text

    for model in (tiny_llama(2), tiny_opt()):
        results = both(model, [talk], POLICIES[name])
        assert_same(results)


def test_a_cache_that_must_shrink_first_takes_plain_steps():
    policy = buzz.make_policy("buzz", sink=2, window=6, stride=3, threshold=9)
    results = both(tiny_llama(2), [generate(tokens(1, 900), max_new_tokens=40)], policy)
    assert_same(results)
    assert results[1][1].layers[0].capacity == 64


@pytest.mark.parametrize("name", ["buzz", "h2o", "full"])
@pytest.mark.parametrize("rows", [1, 3])
def test_an_early_end(name, rows):
    """Rows end at different steps; steps that were started after the last end leave no trace."""
    ids, mask = RAGGED[0][:rows], RAGGED[1][:rows]
    model = tiny_llama(2)
    with buzz.patch_model(model):
        cache = recorded(POLICIES[name], model.config)
        free = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=30, **GREEDY)
    seen = 0
    for step in (0, 1, 6, 14):
        ends = sorted({int(row[31 + step]) for row in free})

        def call(model, cache, ends=ends):
            return model.generate(
                ids, attention_mask=mask, past_key_values=cache, max_new_tokens=30, do_sample=False, eos_token_id=ends
            )

        def next_turn(model, cache):
            more = torch.cat([tokens(rows, cache.get_seq_length()), tokens(rows, 5)], dim=1)
            wide = torch.ones_like(more)
            wide[:, :31] = mask
            return model.generate(more, attention_mask=wide, past_key_values=cache, max_new_tokens=9, **GREEDY)

        results = both(model, [call, next_turn], POLICIES[name])
        assert_same(results)
        seen += results[0][0][0].shape[1] < 61
    assert seen >= 3  # most of them did end early


def test_an_end_at_the_very_step_that_evicts():
    model, policy = tiny_llama(2), POLICIES["buzz"]
    ids = tokens(1, 17)
    with buzz.patch_model(model):
        cache = recorded(policy, model.config)
        free = model.generate(ids, past_key_values=cache, max_new_tokens=40, **GREEDY)
    lengths = [row[0] for row in cache.curve.lengths]
    evicting = next(i for i in range(2, len(lengths)) if lengths[i] < lengths[i - 1])
    for step in (evicting - 1, evicting, evicting + 1):
        end = int(free[0, 17 + step - 1])
        results = both(model, [generate(ids, max_new_tokens=40, eos_token_id=end)], policy)
        assert_same(results)


class Ends(StoppingCriteria):
    """Rows end at a length, decided by the host, without any other limit."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


class Tilt(LogitsProcessor):
    """Changes what it is given, in place."""

    def __call__(self, input_ids, scores):
        return scores.mul_(torch.linspace(0.5, 1.5, scores.shape[1])).sub_(input_ids[:, -1:] % 7)


def test_criteria_and_processors_of_ones_own():
    call = generate(
        *RAGGED, max_new_tokens=40, stopping_criteria=[Ends(45)], logits_processor=[Tilt()], min_new_tokens=3
    )
    results = both(tiny_llama(2), [call], POLICIES["buzz"])
    assert_same(results)
    assert results[1][0][0].shape == (3, 45)


class Stream:
    def __init__(self):
        self.got = []

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.got.append("end")


@pytest.mark.parametrize("end", [None, 9])
def test_a_streamer_gets_every_token_in_order(end):
    streams = []

    def call(model, cache):
        streams.append(Stream())
        free = generate(tokens(1, 20), max_new_tokens=15)(model, recorded(POLICIES["buzz"], model.config))
        eos = None if end is None else int(free[0, 20 + end])
        return generate(tokens(1, 20), max_new_tokens=15, streamer=streams[-1], eos_token_id=eos)(model, cache)

    results = both(tiny_llama(2), [call], POLICIES["buzz"])
    assert_same(results)
    assert streams[0].got == streams[1].got
    assert streams[1].got[-1] == "end"
    assert [t[0] for t in streams[1].got[1:-1]] == results[1][0][0][0, 20:].tolist()


def test_prefill_in_chunks_dict_outputs_and_several_sequences():
    for settings in (
        {"prefill_chunk_size": 7},
        {"num_return_sequences": 2, "do_sample": True},
        {"max_length": 50, "min_length": 40},
        {"max_new_tokens": 1},
    ):
        results = both(tiny_llama(2), [generate(*RAGGED, **{"max_new_tokens": 20, **settings})], POLICIES["buzz"])
        assert_same(results)

    def call(model, cache):
        out = generate(*RAGGED, max_new_tokens=20, return_dict_in_generate=True)(model, cache)
        assert out.past_key_values is cache
        assert out.scores is None
        return out.sequences

    assert_same(both(tiny_llama(2), [call], POLICIES["buzz"]))


def test_inputs_embeds():
    model = tiny_llama(2)
    embeds = model.get_input_embeddings()(RAGGED[0]).detach()

    def call(model, cache):
        return model.generate(
            inputs_embeds=embeds, attention_mask=RAGGED[1], past_key_values=cache, max_new_tokens=25, **GREEDY
        )

    assert_same(both(model, [call], POLICIES["buzz"]))


def test_plain_calls_go_on_where_generate_stopped():
    """The model's own forward works on static memory too, evictions of all layers at once included."""

    def call(model, cache):
        model.generate(*RAGGED[:1], attention_mask=RAGGED[1], past_key_values=cache, max_new_tokens=9, **GREEDY)
        with torch.no_grad():
            steps = [model(t, past_key_values=cache).logits for t in tokens(3, 25, seed=4).split(1, dim=1)]
            steps.append(model(tokens(3, 12, seed=6), past_key_values=cache).logits[:, -1:])
        return torch.cat(steps, dim=1).argmax(-1)

    for name in ("buzz", "buzz_fast", "h2o", "tova", "pyramidkv", "buzz-rows"):
        assert_same(both(tiny_llama(2), [call], POLICIES[name]))


def test_layers_with_different_policies():
    policies = [POLICIES["streaming"], POLICIES["buzz"], POLICIES["streaming"]]
    results = both(tiny_llama(2), [generate(*RAGGED, max_new_tokens=30)], policies)
    assert_same(results)
    layers = results[1][1].layers
    assert layers[0].home is layers[2].home is not layers[1].home


def test_evictions_are_watched_layer_by_layer():
    logs = []

    def call(model, cache):
        log = []
        logs.append(log)
        cache.on_evict = lambda layer, eviction, slots: log.append(
            (layer, eviction.rows and tuple(eviction.rows), eviction.length, slots.expand(-1, 2, -1).tolist())
        )
        return generate(*RAGGED, max_new_tokens=30)(model, cache)

    for name in ("buzz", "streaming", "h2o", "buzz-rows", "random"):
        logs.clear()
        assert_same(both(tiny_llama(2), [call], POLICIES[name]))
        assert logs[0] == logs[1] != []


def test_opt_ends_where_its_positions_end():
    model = tiny_opt(max_position_embeddings=40)
    for patch in (buzz.patch_model, static):
        with patch(model):
            cache = recorded(POLICIES["buzz"], model.config)
            with pytest.raises(ValueError, match="has 40 positions, the call needs 41"):
                model.generate(tokens(1, 30), past_key_values=cache, max_new_tokens=20, **GREEDY)
            assert cache.get_seq_length() == 40
    assert_same(both(model, [generate(tokens(1, 30), max_new_tokens=60)], POLICIES["buzz"], "cache"))
    # A row that ends with the last position: the step after it is harmless.
    assert_same(
        both(model, [generate(tokens(1, 30), max_new_tokens=60, stopping_criteria=[Ends(41)])], POLICIES["buzz"])
    )


def addresses(cache):
    return [layer.keys.data_ptr() for layer in cache.layers]


def test_the_next_cache_takes_over():
    model = tiny_llama(2)
    ids = [tokens(1, n, seed=n) for n in (20, 45, 11)]
    alone = []
    with buzz.patch_model(model):
        for one in ids:
            alone.append(recorded(POLICIES["buzz"], model.config))
            generate(one, max_new_tokens=25)(model, alone[-1])
    with static(model) as handle:
        caches = []
        for one in ids:
            caches.append(recorded(POLICIES["buzz"], model.config))
            generate(one, max_new_tokens=25)(model, caches[-1])
        assert len(handle.engine._arenas) == 1
        assert [cache.layers[0].home is None for cache in caches] == [True, True, False]
        assert len({cache.nbytes for cache in caches}) == 1
        for expected, cache in zip(alone, caches, strict=True):
            assert_same_caches(expected, cache)
        # The one that had to leave comes back.
        place = addresses(caches[2])
        with torch.no_grad():
            for cache in (alone[0], caches[0]):
                text = torch.cat([tokens(1, cache.get_seq_length()), tokens(1, 8)], dim=1)
                generate(text, torch.ones_like(text), max_new_tokens=9)(model, cache)
        assert addresses(caches[0]) == place
        assert_same_caches(alone[0], caches[0])
        assert_same_caches(alone[2], caches[2])


def test_a_cache_of_another_model_is_refused_and_leaves_nothing_behind():
    model = tiny("mistral", sliding_window=20)
    ids, answer = tokens(1, 12), {"max_new_tokens": 30, **GREEDY}
    with static(model) as handle:
        expected = model.generate(ids, past_key_values=buzz.BeehiveCache("full", model), **answer)
        handle.engine.clear()
        for change in ({"sliding_window": 7}, {"num_hidden_layers": 6}):
            other = buzz.BeehiveCache("full", tiny_config("mistral", **change))
            with pytest.raises(ValueError, match="the cache was built for"):
                model.generate(ids, past_key_values=other, **answer)
            assert not handle.engine._arenas
        got = model.generate(ids, past_key_values=buzz.BeehiveCache("full", model), **answer)
    assert got.tolist() == expected.tolist()


def test_a_cache_that_is_let_go_is_gone_at_once():
    model = tiny_llama(2)
    with static(model) as handle:
        gc.disable()
        try:
            cache = recorded(POLICIES["buzz"], model.config)
            generate(tokens(1, 20), max_new_tokens=25)(model, cache)
            ghost, place = weakref.ref(cache), addresses(cache)
            del cache
            assert ghost() is None
        finally:
            gc.enable()
        cache = recorded(POLICIES["buzz"], model.config)
        generate(tokens(1, 33), max_new_tokens=25)(model, cache)
        assert addresses(cache) == place
        for rows in range(1, 9):
            other = recorded(POLICIES["buzz"], model.config)
            generate(tokens(rows, 20), max_new_tokens=5)(model, other)
        assert len(handle.engine._arenas) <= 4
    assert len(handle.engine._arenas) == 0
    assert cache.lengths  # what it holds outlives the patch


def test_two_models_side_by_side():
    models, results = [tiny_llama(2, seed=1), tiny_llama(2, seed=2)], []
    for patch in (buzz.patch_model, static):
        with patch(models[0]), patch(models[1]):
            caches = [recorded(POLICIES["buzz"], m.config) for m in models]
            out = [generate(tokens(1, 30), max_new_tokens=25)(m, c) for m, c in zip(models, caches, strict=True)]
            results.append((out, caches))
    for a, b in zip(*(r[0] for r in results), strict=True):
        assert a.tolist() == b.tolist()
    for a, b in zip(*(r[1] for r in results), strict=True):
        assert_same_caches(a, b)
    assert set(addresses(caches[0])).isdisjoint(addresses(caches[1]))


def test_an_exception_in_the_loop_leaves_a_whole_cache():
    class Trip(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] == 37:
                raise KeyError("trip")
            return scores

    model = tiny_llama(2)
    caches = []
    for patch in (buzz.patch_model, static):
        with patch(model):
            caches.append(recorded(POLICIES["buzz"], model.config))
            with pytest.raises(KeyError):
                generate(tokens(1, 25), max_new_tokens=30, eos_token_id=1, logits_processor=[Trip()])(model, caches[-1])
            generate(tokens(1, caches[-1].get_seq_length() + 6), max_new_tokens=9)(model, caches[-1])
    assert_same_caches(*caches)


def test_a_bound_far_away_is_not_allocated():
    """A cache that may grow to millions of slots gets an arena for its answer, and a larger one when that is full."""
    policy = buzz.make_policy("streaming", window=5_000_000)
    calls = [generate(tokens(1, 30), max_new_tokens=10), generate(tokens(1, 60), max_new_tokens=500)]
    results = both(tiny_llama(2), calls, policy)
    assert_same(results)
    cache = results[1][1]
    assert cache.layers[0].capacity == 1024
    assert all(layer.home is not None for layer in cache.layers)


def test_angles_of_heads_without_a_ceiling_end_where_a_row_does(monkeypatch):
    asked, table = [], Rotary.table
    monkeypatch.setattr(Rotary, "table", lambda self, *args: asked.append(args[1]) or table(self, *args))
    policy = buzz.make_policy("comb", capacity=12, window=4, ceiling=2000)
    model = tiny_llama()
    with static(model):
        cache = buzz.BeehiveCache(policy, model, positions="cache")
        generate(tokens(1, 30), max_new_tokens=5)(model, cache)
    assert 30 <= max(asked) <= cache.layers[0].pool.keys.shape[1]


class Negated(LlamaForCausalLM):
    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        output.logits = -output.logits
        return output


class Wrapped(torch.nn.Module):
    """As an adapter around a projection."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("change", ["call", "projection", "head"])
def test_models_that_are_not_quite_the_familys_take_their_own_steps(change):
    """A warning says why; the result is theirs."""

    def changed():
        model = tiny_llama(2)
        if change == "call":
            model.__class__ = Negated
        elif change == "projection":
            model.model.layers[1].self_attn.k_proj = Wrapped(model.model.layers[1].self_attn.k_proj)
        else:
            model.lm_head = Wrapped(model.lm_head)
        return model

    expected = changed().generate(tokens(1, 20), max_new_tokens=12, **GREEDY)
    model = changed()
    with static(model):
        cache = recorded(buzz.make_policy("full"), model)
        with pytest.warns(UserWarning, match="does not decode in static memory"):
            got = model.generate(tokens(1, 20), past_key_values=cache, max_new_tokens=12, **GREEDY)
    assert got.tolist() == expected.tolist()


def test_a_cache_in_the_middle_of_a_call_keeps_its_arena():
    """As another thread may be there."""
    model = tiny_llama(2)
    with static(model):
        first, second = (recorded(POLICIES["buzz"], model) for _ in range(2))
        generate(tokens(1, 20), max_new_tokens=9)(model, first)
        place = addresses(first)

        def in_between(module, args):
            stop.remove()
            generate(tokens(1, 20), max_new_tokens=9)(model, second)

        stop = model.model.layers[1].mlp.register_forward_pre_hook(in_between)
        with torch.no_grad():
            got = model(tokens(1, 1), past_key_values=first).logits
        assert addresses(first) == place
        assert set(addresses(second)).isdisjoint(place)
    with buzz.patch_model(model), torch.no_grad():
        alone = recorded(POLICIES["buzz"], model)
        generate(tokens(1, 20), max_new_tokens=9)(model, alone)
        torch.testing.assert_close(got, model(tokens(1, 1), past_key_values=alone).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["buzz", "tova", "buzz_fast", "streaming"])
def test_bytes_are_those_of_the_arena(name):
    model = tiny_llama(2)
    with static(model) as handle:
        cache = recorded(POLICIES[name], model)
        generate(tokens(2, 20), max_new_tokens=9)(model, cache)
        assert cache.nbytes == sum(arena.nbytes for arena in handle.engine._arenas.values())
