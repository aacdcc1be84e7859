"""A cache's budget in one call: tokens, or a share of each row's prompt, which the first call fixes."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import buzz
from buzz.cache import PerRow
from tests.cache.test_copy import MODEL, RAGGED, read
from tests.conftest import left_pad, recorded, tokens
from tests.decoding.test_loop import assert_same_caches, static
from tests.models.tiny import tiny

GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}
BOTH = pytest.mark.parametrize("run", [buzz.patch_model, static], ids=["forward", "static"])


def fitted(name, share, lengths):
    """The policies of rows whose prompts are so long."""
    family = buzz.make_policy(name)
    return PerRow([family.from_budget(max(1, round(share * n))) for n in lengths])


@settings(max_examples=12)
@given(
    st.sampled_from([name for name in buzz.POLICIES if name != "expected_attention"]),
    st.floats(0.25, 0.95),
    st.lists(st.integers(60, 90), min_size=1, max_size=3),
)
def test_every_row_has_its_share_of_its_own_prompt(name, share, lengths):
    """As if the policies had been given, row by row; also in policies that differ by layer."""
    ids, mask = left_pad([tokens(1, n, seed=n)[0] for n in lengths])
    with buzz.patch_model(MODEL), torch.no_grad():
        cache, expected = recorded(MODEL, name, budget=share), recorded(fitted(name, share, lengths), MODEL)
        for own in (cache, expected):
            model_logits = MODEL(ids, attention_mask=mask, past_key_values=own).logits
            for step in range(3):
                MODEL(tokens(len(lengths), 1, seed=step), past_key_values=own)
            assert torch.isfinite(model_logits[:, -1]).all()
        assert_same_caches(expected, cache)
        assert cache.nbytes == expected.nbytes


@BOTH
@pytest.mark.parametrize("name", ["comb", "pyramidkv"])
def test_generate_fixes_it_and_later_turns_keep_it(run, name):
    ids, mask = RAGGED
    with run(MODEL):
        texts, caches = [], [recorded(MODEL, name, budget=0.6), recorded(fitted(name, 0.6, (31, 9, 22)), MODEL)]
        for cache in caches:
            text = MODEL.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
            text = torch.cat([text, tokens(3, 40, seed=4)], dim=1)
            known = torch.cat([mask, mask.new_ones(3, text.shape[1] - 31)], dim=1)
            texts.append(MODEL.generate(text, attention_mask=known, past_key_values=cache, **GREEDY))
        assert texts[0].equal(texts[1])
        assert_same_caches(caches[1], caches[0])


@BOTH
@pytest.mark.parametrize("chunk", [None, 7])
def test_a_prompt_in_chunks_is_one_prompt(run, chunk):
    """Of which pads are no part, and no other row of the batch either."""
    ids, mask = RAGGED
    with run(MODEL):
        cache = recorded("h2o", MODEL, budget=0.6)
        MODEL.generate(ids, attention_mask=mask, past_key_values=cache, prefill_chunk_size=chunk, **GREEDY)
        assert cache.integers.row_policies(0, 3) == list(fitted("h2o", 0.6, (31, 9, 22)).policies)
        cache.reset()
        MODEL.generate(ids[:1], past_key_values=cache, prefill_chunk_size=chunk, **GREEDY)  # pads are told by their ids
        assert cache.integers.row_policies(0, 1) == [buzz.make_policy("h2o").from_budget(19)]
        cache.reset()
        by_hand = recorded("h2o", MODEL, budget=0.6)
        by_hand.fit([31, 9, 22])
        for part, known in zip(ids.split(7, dim=1), mask.split(7, dim=1), strict=True):
            with torch.no_grad():
                MODEL(part, attention_mask=known, past_key_values=by_hand)
        assert by_hand.integers.row_policies(0, 3) == list(fitted("h2o", 0.6, (31, 9, 22)).policies)


def test_beams_and_samples_have_the_share_of_their_prompt():
    ids, mask = RAGGED
    with buzz.patch_model(MODEL):
        for options in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
            cache = buzz.BeehiveCache("comb", MODEL, budget=0.6)
            out = MODEL.generate(ids, attention_mask=mask, past_key_values=cache, **{**GREEDY, **options})
            assert len(out) == (3 if "num_beams" in options else 6)
            assert cache.integers.row_policies(0, 6)[::2] == list(fitted("comb", 0.6, (31, 9, 22)).policies)


def test_inputs_embeds_and_windows_and_reset():
    model = tiny("gemma3_text-mixed")
    with buzz.patch_model(model), torch.no_grad():
        cache = recorded(model, buzz.make_policy("streaming", sink=2), budget=0.5)
        told = []
        cache.on_evict = lambda layer, eviction, slots: told.append(layer)
        for n in (40, 60):
            model.generate(inputs_embeds=model.get_input_embeddings()(tokens(1, n)), past_key_values=cache, **GREEDY)
            assert cache.lengths == [n // 2]
            assert (len(cache.curve), len(told) > 0) == (5, True)
            assert cache.layers[0].keys.shape[2] < 12  # a sliding window stays one
            cache.reset()
            assert (cache.waits_for_prompt, cache.nbytes, cache.lengths) == (True, 0, [])


def test_a_refused_first_call_fixes_nothing():
    model = MODEL
    with buzz.patch_model(model), torch.no_grad():
        cache = buzz.BeehiveCache(model, "h2o", budget=0.5)
        with pytest.raises(ValueError, match="the attention mask is"):
            model(tokens(2, 40), attention_mask=torch.ones(2, 39), past_key_values=cache)
        with pytest.raises(ValueError, match="output_attentions"):
            model.generate(tokens(2, 40), past_key_values=cache, output_attentions=True, **GREEDY)
        assert cache.waits_for_prompt
        model(tokens(1, 60), past_key_values=cache)  # another number of rows
        assert cache.lengths == [30]
        chosen = buzz.BeehiveCache(model, "h2o", budget=0.5)
        chosen.fit([80])
        with pytest.raises(ValueError, match="the attention mask is"):
            model(tokens(1, 20), attention_mask=torch.ones(1, 19), past_key_values=chosen)
        model(tokens(1, 60), past_key_values=chosen)
        assert chosen.lengths == [40]
        chosen.fit([1000])  # comes too late
        model(tokens(1, 60), past_key_values=chosen)
        assert chosen.lengths == [40]


def test_a_row_with_too_short_a_prompt_has_the_smallest_cache():
    with buzz.patch_model(MODEL), torch.no_grad():
        cache = buzz.BeehiveCache(MODEL, "comb", budget=0.4)
        mask = torch.tensor([[1] * 20, [0] * 12 + [1] * 8])
        told = (
            r"^budget=0\.4 of so short a prompt is less than comb can hold: the cache has 5 tokens a head, the least; "
            r"give a number of tokens where more text follows \(docs/limits\.md\)$"
        )
        with pytest.warns(UserWarning, match=told):
            MODEL(tokens(2, 20), attention_mask=mask, past_key_values=cache)
        assert cache.lengths == [8, 5]
        cache.reset()
        with pytest.raises(ValueError, match="row 0 of the first call has no token: give a number of tokens"):
            MODEL(tokens(2, 20), attention_mask=mask.flip(0) * torch.tensor([[0], [1]]), past_key_values=cache)
        MODEL(tokens(2, 20), past_key_values=cache)
        assert cache.lengths == [8, 8]


@BOTH
@pytest.mark.parametrize("name", buzz.POLICIES)
@pytest.mark.filterwarnings("ignore:budget=0.4 of so short a prompt")
def test_no_prompt_is_too_short(run, name):
    """As with a budget of as many tokens as the policy holds at the least, if that is more than the share."""
    with run(MODEL):
        for n in (1, 2, 5):
            ids = tokens(1, n, seed=n)
            least = max(round(0.4 * n), buzz.POLICIES[name].least_budget())
            caches = [recorded(MODEL, name, budget=0.4), recorded(MODEL, name, budget=least)]
            texts = [MODEL.generate(ids, past_key_values=cache, **GREEDY) for cache in caches]
            assert texts[0].equal(texts[1])
            assert_same_caches(caches[1], caches[0])


@pytest.mark.parametrize("budget", [1.0, 0, 0.0, -3, -0.5, float("nan"), 0.999 - 1])
def test_other_numbers_are_refused(budget):
    with pytest.raises(ValueError, match=r"^budget must be a number of tokens, 1 or more, or a share of the prompt"):
        buzz.BeehiveCache(MODEL, "h2o", budget=budget)


@pytest.mark.parametrize("budget", [True, False, "0.4", [3]])
def test_what_is_no_number_is_refused(budget):
    with pytest.raises(TypeError, match=r"^budget must be a number of tokens, 1 or more, or a share of the prompt"):
        buzz.BeehiveCache(MODEL, "h2o", budget=budget)


def test_tokens_are_tokens_and_a_share_goes_with_one_policy():
    for budget in (24, 24.0, torch.tensor(24)):
        assert buzz.BeehiveCache(MODEL, "h2o", budget=budget).integers.policy(0) == buzz.POLICIES["h2o"].from_budget(24)
    with pytest.raises(TypeError, match="budget= goes with one policy"):
        buzz.BeehiveCache(MODEL, [buzz.make_policy("h2o")] * 3, budget=0.4)


def test_both_orders_are_the_same():
    policy = buzz.make_policy("h2o")
    for first, second in ((MODEL, "h2o"), (MODEL.config, policy), (MODEL, [policy] * 3), (MODEL, PerRow([policy]))):
        a, b = buzz.BeehiveCache(first, second), buzz.BeehiveCache(second, first)
        assert repr(a) == repr(b)
    wrapped = torch.nn.Module()
    wrapped.module = MODEL
    assert repr(buzz.BeehiveCache(wrapped, "h2o")) == repr(buzz.BeehiveCache("h2o", MODEL))


def test_it_tells_what_it_waits_for_and_copies_wait_too():
    cache = buzz.BeehiveCache(MODEL, "comb", budget=0.4)
    told = "BeehiveCache('comb', budget=0.4 of the prompt, positions='original', lengths=[], seen=0, 0.00 MiB)"
    assert repr(cache) == told
    with buzz.patch_model(MODEL):
        for twin in (cache.copy(), copy.deepcopy(cache)):
            read(MODEL, twin, [tokens(1, 100)])
            assert "CombPolicy(capacity=38" in repr(twin)
            other = twin.copy()
            other.reset()
            read(MODEL, other, [tokens(1, 50)])
            assert (twin.lengths, other.lengths) == ([38], [19])
    assert cache.waits_for_prompt


def test_a_saved_cache_waits_again_once_it_is_reset(tmp_path):
    with buzz.patch_model(MODEL):
        cache = buzz.BeehiveCache(MODEL, "h2o", budget=0.4)
        read(MODEL, cache, [tokens(1, 100)])
        cache.save(tmp_path)
        loaded = buzz.BeehiveCache.load(tmp_path, MODEL)
        read(MODEL, loaded, [tokens(1, 100)])
        assert loaded.lengths == [40]
        loaded.reset()
        read(MODEL, loaded, [tokens(1, 50)])
        assert loaded.lengths == [20]


@pytest.mark.parametrize("kind", [np.float32, np.float64, Fraction, torch.tensor])
def test_a_share_may_be_any_real_number(kind):
    assert buzz.BeehiveCache(MODEL, "h2o", budget=kind(0.5)).waits_for_prompt


@pytest.mark.parametrize("tokens", ["60", 60, torch.tensor([60]), [], [-5], [True], [60.5], [float("inf")]])
def test_fit_wants_the_tokens_of_rows(tokens):
    cache = buzz.BeehiveCache(MODEL, "h2o", budget=0.5)
    with pytest.raises(TypeError, match="the tokens of each row's prompt are wanted"):
        cache.fit(tokens)
    assert cache.waits_for_prompt
