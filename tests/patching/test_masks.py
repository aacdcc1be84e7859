"""Attention masks of every kind: widths, pads anywhere, rows and calls of pads alone, chunks and turns."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

import buzz
from buzz.decoding.arena import Uncaptured
from buzz.models.cache_argument import as_argument
from tests.conftest import VOCAB, left_pad, tiny_llama, tiny_opt, tokens
from tests.models.reference import NaiveModel
from tests.models.tiny import tiny
from tests.patching.placed import KINDS, PLACED
from tests.patching.test_after_eviction import SETTINGS
from tests.patching.test_exact import roomy

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")


@functools.cache
def small(kind):
    """Two layers of two heads, one KV head in Llama; attention that gives no NaN for pads in the unpatched model."""
    torch.manual_seed(0)
    how = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
           "max_position_embeddings": 512, "pad_token_id": 0, "attn_implementation": "eager"}  # fmt: skip
    if kind == "llama":
        config = LlamaConfig(intermediate_size=48, num_key_value_heads=1, initializer_range=0.1, **how)
        return LlamaForCausalLM(config).eval()
    return OPTForCausalLM(OPTConfig(ffn_dim=48, word_embed_proj_dim=32, init_std=0.1, dropout=0.0, **how)).eval()


@st.composite
def calls(draw):
    """Rows, and for each call its mask bool [rows, columns] and how wide a mask is given of it."""
    rows = draw(st.integers(1, 3))
    found = []
    for _ in range(draw(st.integers(1, 6))):
        columns = draw(st.sampled_from([1, 1, 2, 3, 5, 9]))
        kind = draw(st.sampled_from(["all", "left", "right", "any", "some rows", "none"]))
        if kind == "all":
            mask = torch.ones(rows, columns, dtype=torch.bool)
        elif kind == "none":
            mask = torch.zeros(rows, columns, dtype=torch.bool)
        elif kind == "any":
            mask = torch.tensor([[draw(st.booleans()) for _ in range(columns)] for _ in range(rows)])
        else:
            counts = torch.tensor([[draw(st.integers(0, columns))] for _ in range(rows)])
            if kind == "some rows":
                counts = (counts > columns // 2) * columns
            places = torch.arange(columns)
            mask = places < counts if kind == "right" else places >= columns - counts
        found.append((mask, draw(st.sampled_from(["call", "whole", "wider", "none if it can"]))))
    return rows, found


def as_given(width, past, mask):
    """The mask of a call as wide as drawn; past: [rows, seen], of the calls before."""
    if width == "none if it can" and bool(mask.all()):
        return None
    if width == "call":
        return mask.long()
    whole = torch.cat([past, mask], dim=1).long()
    return F.pad(whole, (0, 7), value=1) if width == "wider" else whole


def play(model, cache, found, rows, explicit, seed):
    """Logits [rows, columns, V] of each call, by the patched model."""
    past, logits = torch.zeros(rows, 0, dtype=torch.bool), []
    for i, (mask, width) in enumerate(found):
        ids = tokens(rows, mask.shape[1], seed=seed + i)
        how = {"attention_mask": as_given(width, past, mask)}
        if explicit:
            counted = torch.cat([past, mask], dim=1).long().cumsum(1) - 1
            how["position_ids"] = counted[:, past.shape[1] :].clamp(min=0)
        logits.append(model(ids, past_key_values=cache, **how).logits)
        past = torch.cat([past, mask], dim=1)
    return logits


@settings(max_examples=300)
@given(
    calls(),
    st.sampled_from(["llama", "opt"]),
    st.sampled_from(PLACED),
    st.booleans(),
    st.integers(0, 1000),
)
@torch.no_grad()
def test_roomy_calls_equal_the_unpatched_model(drawn, kind, placed, explicit, seed):
    """Tokens see what they see there; with `positions="cache"` the unpatched model is told to count no pads."""
    (rows, found), (name, positions) = drawn, placed
    model = small(kind)
    expected, past = DynamicCache(config=model.config), torch.zeros(rows, 0, dtype=torch.bool)
    count_tokens = explicit or (positions == "cache" and kind == "llama")
    wanted = []
    for i, (mask, _) in enumerate(found):
        whole = torch.cat([past, mask], dim=1).long()
        how = {"position_ids": (whole.cumsum(1) - 1).clamp(min=0)[:, past.shape[1] :]} if count_tokens else {}
        ids = tokens(rows, mask.shape[1], seed=seed + i)
        wanted.append(model(ids, attention_mask=whole, past_key_values=expected, **how).logits)
        past = whole.bool()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(roomy(name), model, positions=positions)
        got = play(model, cache, found, rows, explicit, seed)
    for (mask, _), a, b in zip(found, got, wanted, strict=True):
        torch.testing.assert_close(a[mask], b[mask], atol=1e-5, rtol=0)
    assert cache.lengths == past.sum(1).tolist()
    assert cache.get_seq_length() == past.shape[1]


@settings(max_examples=150)
@given(
    calls(),
    st.sampled_from(["llama", "opt"]),
    st.sampled_from(["cache", "original"]),
    st.sampled_from(SETTINGS),
    st.integers(0, 1000),
)
@torch.no_grad()
def test_evicting_calls_equal_the_naive_model(drawn, kind, positions, setting, seed):
    """Every row is what a model in float64 makes of its tokens alone, call by call; a call of pads is none."""
    rows, found = drawn
    (name, params), model = setting, small(kind)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy(name, **params), model, positions=positions)
        got = play(model, cache, found, rows, True, seed)
    for row in range(rows):
        naive = NaiveModel(model, name, params, positions)
        for i, (mask, _) in enumerate(found):
            ids = tokens(rows, mask.shape[1], seed=seed + i)[row : row + 1, mask[row]]
            if ids.numel():
                torch.testing.assert_close(got[i][row, mask[row]].double(), naive(ids), atol=1e-4, rtol=0)
        for layer, length in enumerate(naive.lengths):
            assert cache.layer_lengths(layer)[row] == length


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_max_length_padding_in_chunks(model, name):
    """padding="max_length" with prefill_chunk_size: the first chunks may have no token at all."""
    rows = [tokens(1, n, seed=n)[0] for n in (13, 5)]
    ids, mask = left_pad([*rows, tokens(1, 40)[0]])
    ids, mask = ids[:2], mask[:2]
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = [model.generate(row[None], **greedy)[0, -8:].tolist() for row in rows]
    with buzz.patch_model(model):
        for chunk in (3, 8, 40):
            cache = buzz.BeehiveCache(roomy(name), model)
            got = model.generate(ids, attention_mask=mask, past_key_values=cache, prefill_chunk_size=chunk, **greedy)
            assert got[:, -8:].tolist() == expected
            assert cache.lengths == [13 + 7, 5 + 7]


@torch.no_grad()
def test_a_mask_of_fixed_width_around_a_loop(model):
    """64 columns for 40 tokens: the columns that transformers reads are read, the first ones."""
    ids, mask = tokens(2, 40), torch.zeros(2, 64, dtype=torch.long)
    mask[0, :40] = mask[1, 3:40] = 1
    reference, calls = DynamicCache(config=model.config), [16, *[1] * 24]
    expected, end = [], 0
    for part in ids.split(calls, 1):
        end += part.shape[1]  # OPT takes no wider masks
        how = {"attention_mask": mask if model.config.model_type == "llama" else mask[:, :end]}
        expected.append(model(part, past_key_values=reference, **how).logits)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache("buzz", model, positions="original")
        got = [model(part, attention_mask=mask, past_key_values=cache).logits for part in ids.split(calls, 1)]
    assert cache.lengths == [40, 37]
    torch.testing.assert_close(torch.cat(got, 1)[0], torch.cat(expected, 1)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(got, 1)[1, 3:], torch.cat(expected, 1)[1, 3:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_masks_that_do_not_fit_are_refused_in_words(model):
    ids = tokens(2, 6)
    first = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache("buzz", model)
        model(ids, attention_mask=first, past_key_values=cache)
        hidden, shown = first.clone(), first.clone()
        hidden[0, 4], shown[1, 1] = 0, 1
        one = torch.ones(2, 2, dtype=torch.long)
        refused = [
            (
                torch.ones(2, 5),
                "5 columns wide: the call has 2 and the cache has seen 6, so it must be 2 or at least 8",
            ),
            (torch.ones(2, 1), "1 columns wide"),
            (
                torch.cat([hidden, one], 1),
                "column 4 of row 0 was a token .*, and the attention mask .* hides",
            ),
            (torch.cat([shown, one], 1), "column 1 of row 1 was a pad .*, and the attention mask of this call shows"),
            (torch.ones(2, 1, 2, 8), r"the attention mask must be \[2, columns\]"),
            (torch.ones(3, 8), r"the attention mask must be \[2, columns\]"),
            ({"other_attention": one}, "got dict"),
        ]
        for mask, words in refused:
            with pytest.raises(ValueError, match=words):
                model(ids[:, :2], attention_mask=mask, past_key_values=cache)
        # Nothing is lost: the cache goes on as if nobody had asked.
        twin = buzz.BeehiveCache("buzz", model)
        model(ids, attention_mask=first, past_key_values=twin)
        both = torch.cat([first, one], 1)
        a, b = (model(ids[:, :2], attention_mask=both, past_key_values=c).logits for c in (cache, twin))
        assert torch.equal(a, b)
        with pytest.raises(ValueError, match=r"mask is 3 columns wide: the call has 6 .* so it must be at least 6"):
            model(ids, attention_mask=first[:, :3], past_key_values=buzz.BeehiveCache("buzz", model))


@torch.no_grad()
def test_a_pad_gives_what_the_token_before_it_gives(model):
    """The first token, if there is none before it; zeros in a row without tokens. The same beside any other row."""
    ids = tokens(3, 8)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0], [1] * 8, [0] * 8])
    at = torch.tensor([2, 2, 2, 3, 3, 5, 5, 5])
    with buzz.patch_model(model):
        how = {"attention_mask": mask, "output_hidden_states": True}
        got = model(ids, past_key_values=buzz.BeehiveCache("full", model), **how)
        alone = model(ids[:1], attention_mask=mask[:1], past_key_values=buzz.BeehiveCache("full", model)).logits
    for x in (got.logits, *got.hidden_states):
        assert torch.equal(x[0], x[0, at])
    torch.testing.assert_close(got.logits[0], alone[0], atol=1e-5, rtol=0)
    assert not got.hidden_states[-1][2].any()


@pytest.mark.parametrize("static", [False, True])
def test_an_answer_to_a_right_padded_prompt_follows_its_last_token(model, static):
    ids, greedy = tokens(2, 8), {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    expected = model.generate(ids[:1, :5], **greedy)[0, 5:].tolist()
    with buzz.patch_model(model) as handle:
        if static:
            handle.engine.run = Uncaptured()
        cache = buzz.BeehiveCache("full", model, positions="cache")  # transformers counts on from a pad's position
        got = model.generate(ids, attention_mask=mask, past_key_values=cache, **greedy)
    assert got[0, 8:].tolist() == expected


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", [name for name, positions in PLACED if positions == "cache" and name in KINDS])
def test_a_prompt_of_pads_alone(name, static):
    """Then a turn with tokens, which is the first one for the cache."""
    for model in (tiny_llama(), tiny_opt()):
        greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
        with buzz.patch_model(model) as handle:
            if static:
                handle.engine.run = Uncaptured()
            cache = buzz.BeehiveCache(roomy(name), model, positions="cache")
            none = torch.zeros(2, 6, dtype=torch.int64)
            first = model.generate(tokens(2, 6), attention_mask=none, past_key_values=cache, **greedy)
            assert cache.lengths == [3, 3]
            text, answered = torch.cat([first, tokens(2, 5)], dim=1), torch.ones(2, 9, dtype=torch.int64)
            mask = torch.cat([none, answered], dim=1)
            got = model.generate(text, attention_mask=mask, past_key_values=cache, **greedy)
        expected = model.generate(text[:, 6:], attention_mask=answered, **greedy)
        assert got[:, -4:].tolist() == expected[:, -4:].tolist()


@torch.no_grad()
def test_hooks_that_see_moved_columns_are_warned_about_once(model):
    ids, mask = left_pad([tokens(1, 9)[0], tokens(1, 5)[0]])
    layer = next(m for m in model.modules() if hasattr(m, "layers")).layers[1]
    with buzz.patch_model(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids, attention_mask=mask, **as_argument(buzz.BeehiveCache("full", model)))
        layer.register_forward_hook(lambda module, args, output: None)
        model(ids, **as_argument(buzz.BeehiveCache("full", model)))
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="hooks on modules see the tokens of padded rows at the left"):
            model(ids, attention_mask=mask, **as_argument(buzz.BeehiveCache("full", model)))
        warnings.simplefilter("error")
        model(ids, attention_mask=mask, **as_argument(buzz.BeehiveCache("full", model)))


def test_rows_keep_their_pads_when_they_are_reordered():
    model = tiny_llama()
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
    with buzz.patch_model(model), torch.no_grad():
        cache = buzz.BeehiveCache("buzz", model)
        model(tokens(3, 4), attention_mask=mask, past_key_values=cache)
        cache.reorder_cache(torch.tensor([2, 2, 1]))
        wide = F.pad(mask[[2, 2, 1]], (0, 1), value=1)
        model(tokens(3, 1), attention_mask=wide, past_key_values=cache)
        with pytest.raises(ValueError, match="column 0 of row 0 was a pad"):
            model(tokens(3, 1), attention_mask=torch.ones(3, 6), past_key_values=cache)


@torch.no_grad()
def test_hidden_states_are_where_the_caller_had_them(model):
    """As an object and as a tuple."""
    ids, mask = left_pad([tokens(1, 20)[0], tokens(1, 9)[0]])
    how = {"attention_mask": mask, "output_hidden_states": True}
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(ids, position_ids=position_ids, **how).hidden_states
    with buzz.patch_model(model):
        for as_dict in (True, False):
            cache = buzz.BeehiveCache("full", model)
            got = model(ids, past_key_values=cache, return_dict=as_dict, **how)
            got = got.hidden_states if as_dict else next(part for part in got if isinstance(part, tuple))
            assert len(got) == len(expected)
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a[mask.bool()], b[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@torch.no_grad()
def test_experts_are_balanced_over_the_columns_of_the_caller(name):
    model = tiny(name)
    ids, mask = left_pad([tokens(1, 9)[0], tokens(1, 6)[0]])
    ids, mask = F.pad(ids, (0, 2)), F.pad(mask, (0, 2))
    how = {"attention_mask": mask, "output_router_logits": True}
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(ids, position_ids=position_ids, **how)
    with buzz.patch_model(model):
        got = model(ids, past_key_values=buzz.BeehiveCache("full", model), **how)
    for a, b in zip(got.router_logits, expected.router_logits, strict=True):
        torch.testing.assert_close(a[mask.flatten().bool()], b[mask.flatten().bool()], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.aux_loss, expected.aux_loss)
