"""Patching and its undoing; models do not touch each other; no mask is ever built."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

import buzz
from buzz.patching import supported_families
from tests.conftest import left_pad, tiny_llama, tiny_opt, tokens


def attentions(model):
    return [m for m in model.modules() if type(m).__name__ in ("LlamaAttention", "OPTAttention")]


@torch.no_grad()
def test_without_a_beehive_cache_nothing_changes(model):
    ids, mask = left_pad([tokens(1, 20)[0], tokens(1, 9)[0]])

    def outputs():
        cache = DynamicCache(config=model.config)
        first = model(ids, attention_mask=mask, past_key_values=cache, output_hidden_states=True)
        mask2 = torch.nn.functional.pad(mask, (0, 1), value=1)
        second = model(ids[:, :1], attention_mask=mask2, past_key_values=cache)
        return [first.logits, *first.hidden_states, second.logits, model(ids).logits]

    expected = outputs()
    with buzz.patch_model(model):
        got = outputs()
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_patching_twice_is_one_patch():
    model = tiny_llama()
    handle = buzz.patch_model(model)
    forward = attentions(model)[0].forward
    assert buzz.patch_model(model) is handle
    assert attentions(model)[0].forward == forward
    with handle, buzz.patch_model(model):
        pass
    assert "forward" not in vars(attentions(model)[0])


def test_context_manager_undoes_itself_after_an_error():
    model = tiny_llama()
    with pytest.raises(KeyError), buzz.patch_model(model):
        raise KeyError
    assert not hasattr(model, "_buzz_handle")


def test_unsupported_models_are_named_with_what_is_supported():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16))
    with pytest.raises(buzz.UnsupportedModelError) as told:
        buzz.patch_model(model)
    assert str(told.value) == f"cannot patch a 'gpt2' model, supported are {', '.join(supported_families())}"


@torch.no_grad()
def test_two_models_with_different_policies_do_not_touch_each_other():
    a, b, c = tiny_llama(seed=1), tiny_llama(seed=2), tiny_opt(seed=3)
    ids = tokens(1, 40)
    policies = [
        buzz.make_policy("buzz", window=6, threshold=8),
        buzz.make_policy("h2o", heavy=5, window=5),
        buzz.make_policy("streaming", window=7),
    ]

    def caches():
        return [buzz.BeehiveCache(p, m.config) for p, m in zip(policies, (a, b, c), strict=True)]

    def run(model, cache):
        out = [model(ids, past_key_values=cache).logits]
        out += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(20)]
        return out

    alone = []
    for model, cache in zip((a, b, c), caches(), strict=True):
        with buzz.patch_model(model):
            alone.append(run(model, cache))
    with buzz.patch_model(a), buzz.patch_model(b), buzz.patch_model(c):
        models, stores = (a, b, c), caches()
        together = [[m(ids, past_key_values=s).logits] for m, s in zip(models, stores, strict=True)]
        for i in range(20):
            for out, model, store in zip(together, models, stores, strict=True):
                out.append(model(ids[:, i : i + 1], past_key_values=store).logits)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@torch.no_grad()
def test_two_caches_on_one_model_do_not_touch_each_other():
    model = tiny_llama()
    ids = tokens(1, 40)
    with buzz.patch_model(model):
        make = lambda: buzz.BeehiveCache(buzz.make_policy("buzz", window=6, threshold=8), model.config)  # noqa: E731
        lone, first, second = make(), make(), make()
        expected = [model(t, past_key_values=lone).logits for t in ids.split(1, dim=1)]
        for token, wanted in zip(ids.split(1, dim=1), expected, strict=True):
            model((token + 1) % 90, past_key_values=second)
            assert torch.equal(model(token, past_key_values=first).logits, wanted)


def test_a_copied_model_is_patched_on_its_own():
    model = tiny_llama()
    with buzz.patch_model(model):
        twin = copy.deepcopy(model)
        for module in attentions(twin):
            assert module.forward.module is module
        with torch.no_grad():
            cache = buzz.BeehiveCache(buzz.make_policy("buzz", window=6, threshold=8), twin.config)
            assert torch.isfinite(twin(tokens(1, 40), past_key_values=cache).logits).all()
            assert cache.lengths[0] < 40
    buzz.patch_model(twin).remove()
    assert all("forward" not in vars(m) for m in attentions(twin) + attentions(model))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", ["buzz", "streaming"])
@torch.no_grad()
def test_no_mask_is_built(model, name, ragged, monkeypatch):
    """transformers' mask functions are never reached, and what reaches the layers has no elements."""
    import transformers.masking_utils as masks

    def fail(*args, **kwargs):
        raise AssertionError("a mask was built")

    ids, mask = left_pad([tokens(1, 30)[0], tokens(1, 30 - 9 * ragged)[0]])
    with buzz.patch_model(model):
        reached = []
        for module in attentions(model):
            module.register_forward_pre_hook(
                lambda _, args, kwargs: reached.append(kwargs["attention_mask"].numel()), with_kwargs=True
            )
        for attention in list(masks.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping):
            monkeypatch.setitem(masks.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, attention, fail)
        cache = buzz.BeehiveCache(buzz.make_policy(name, window=6), model.config)
        model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=5, prefill_chunk_size=10)
        cache = buzz.BeehiveCache(buzz.make_policy(name, window=6), model.config)
        model(ids, mask, past_key_values=cache)
    assert set(reached) == {0}


@torch.no_grad()
def test_every_attention_implementation_of_transformers_may_be_set():
    for implementation in ("eager", "sdpa"):
        model = tiny_llama()
        model.set_attn_implementation(implementation)
        with buzz.patch_model(model):
            cache = buzz.BeehiveCache(buzz.make_policy("buzz"), model.config)
            logits = model(tokens(1, 20), past_key_values=cache).logits
        torch.testing.assert_close(logits, model(tokens(1, 20)).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
@torch.no_grad()
def test_rope_variants(rope):
    model = tiny_llama(rope_parameters=rope)
    ids = tokens(1, 50)
    expected = model(ids).logits
    with buzz.patch_model(model):
        for positions in ("cache", "original"):
            cache = buzz.BeehiveCache(buzz.make_policy("full"), model.config, positions=positions)
            logits = model(ids, past_key_values=cache).logits
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_call_that_fails_before_its_first_layer_leaves_the_cache_whole(model):
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache("buzz", model)
        model(tokens(1, 9), past_key_values=cache)
        with pytest.raises(IndexError):
            model(torch.full((1, 2), 10_000), past_key_values=cache)
        model(tokens(1, 1), past_key_values=cache)
        assert cache.lengths == [10]


def test_threads_share_a_model(model):
    """Each with a cache of its own."""
    prompts = [tokens(1, n, seed=n) for n in (30, 18, 25, 11)]
    policy, how = buzz.make_policy("buzz", sink=2, window=6, threshold=9), {"max_new_tokens": 20, "do_sample": False}

    def answer(ids):
        return model.generate(ids, past_key_values=buzz.BeehiveCache(policy, model), **how).tolist()

    with buzz.patch_model(model), ThreadPoolExecutor(4) as pool:
        expected = [answer(ids) for ids in prompts]
        assert list(pool.map(answer, prompts)) == expected


@torch.no_grad()
def test_an_interrupted_call_is_noticed():
    model = tiny_llama()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy("buzz"), model.config)
        model(tokens(1, 9), past_key_values=cache)
        module = attentions(model)[1]
        stop = module.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model(tokens(1, 1), past_key_values=cache)
        stop.remove()
        with pytest.raises(RuntimeError, match="interrupted"):
            model(tokens(1, 1), past_key_values=cache)
        cache.reset()
        model(tokens(1, 9), past_key_values=cache)
        assert cache.lengths == [9]
