"""What users do around a patched model: record attentions, train, compile, pickle, mix up caches."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings

import pytest
import torch
import torch.multiprocessing as mp
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import buzz
from buzz.decoding.arena import Uncaptured
from buzz.models.cache_argument import CACHE
from tests.conftest import left_pad, tiny_llama, tiny_opt, tokens

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
SMALL = buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9)
BOTH = pytest.mark.parametrize("make", [tiny_llama, tiny_opt])


def small(model):
    return buzz.BeehiveCache(SMALL, model)


@BOTH
@torch.no_grad()
def test_attention_weights_are_refused_in_words(make):
    model, ids = make(), tokens(1, 20)
    words = "output_attentions: a BeehiveCache keeps no matrix of attention weights"
    with buzz.patch_model(model):
        cache = small(model)
        with pytest.raises(ValueError, match=words):
            model(ids, past_key_values=cache, output_attentions=True)
        with pytest.raises(ValueError, match=words):
            model.generate(ids, past_key_values=cache, output_attentions=True, return_dict_in_generate=True, **GREEDY)
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
        with pytest.raises(ValueError, match=words):
            model(ids, past_key_values=cache)
        assert len(model(ids).attentions) == 3  # without the cache they are there
        model.config.output_attentions = False
        model(ids, past_key_values=cache)
        assert cache.get_seq_length() == 20  # what was refused has changed nothing


@BOTH
def test_training_with_checkpoints_or_dropout_is_refused(make):
    model, ids = make(), tokens(1, 20)
    with buzz.patch_model(model):
        model.gradient_checkpointing_enable()
        model.train()
        with pytest.raises(ValueError, match=re.escape("gradient checkpointing runs layers without a cache")):
            model(ids, past_key_values=small(model))
        model(ids, use_cache=False).logits.sum().backward()  # without the cache it trains
        assert model.get_input_embeddings().weight.grad.abs().sum() > 0
        with torch.no_grad():
            if CACHE == "cache":
                cache = small(model)
                model(ids, past_key_values=cache)
                assert cache.get_seq_length() == 20
            else:  # there layers drop it all the same
                with pytest.raises(ValueError, match=re.escape("gradient checkpointing runs layers without a cache")):
                    model(ids, past_key_values=small(model))
            model.eval()
            model(ids, past_key_values=small(model))
        model.gradient_checkpointing_disable()
        model.train()
        model.config.attention_dropout = 0.5
        with pytest.raises(ValueError, match="dropout of attention or of layers is on"):
            model(ids, past_key_values=small(model))


@BOTH
def test_gradients_do_not_flow_through_a_cache_in_silence(make):
    model, ids = make(), tokens(1, 20)
    with buzz.patch_model(model):
        output = model(ids, past_key_values=small(model), labels=ids)
        with pytest.raises(RuntimeError, match="a BeehiveCache has no gradient: train without it"):
            output.loss.backward()
        with torch.no_grad():
            assert torch.equal(model(ids, past_key_values=small(model)).logits, output.logits.detach())
        model(ids, labels=ids).loss.backward()


@BOTH
def test_nor_past_what_is_frozen(make):
    """As with an adapter on the projections: nothing before the attention asks for gradients."""
    model, ids = make(), tokens(1, 20)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    with buzz.patch_model(model):
        output = model(ids, past_key_values=small(model), labels=ids)
        with pytest.raises(RuntimeError, match="a BeehiveCache has no gradient"):
            output.loss.backward()


def tripled(module, query, key, value, attention_mask, scaling, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=3 * scaling, **kwargs)


@BOTH
@torch.no_grad()
def test_an_attention_implementation_of_ones_own_is_refused(make):
    model, ids = make(), tokens(1, 20)
    AttentionInterface.register("tripled", tripled)
    with buzz.patch_model(model):
        for known in ("eager", "sdpa"):
            model.set_attn_implementation(known)
            model(ids, past_key_values=small(model))
        model.set_attn_implementation("tripled")
        with pytest.raises(ValueError, match="the model's attention implementation 'tripled' is none of transformers'"):
            model(ids, past_key_values=small(model))
        model(ids)


@BOTH
@torch.no_grad()
def test_a_model_that_is_cast_needs_a_new_cache(make):
    model, ids = make(), tokens(1, 20)
    with buzz.patch_model(model):
        cache = small(model)
        model(ids, past_key_values=cache)
        model.bfloat16()
        words = "the cache holds torch.float32 keys, the call gives torch.bfloat16"
        with pytest.raises(ValueError, match=words):
            model(ids[:, :1], past_key_values=cache)
        model.float()
        model(ids[:, :1], past_key_values=cache)  # nothing was lost
        model.bfloat16()
        cache.reset()
        model(ids, past_key_values=cache)


@torch.no_grad()
def test_rows_are_taken_in_and_out_of_inference_mode(model):
    ids = tokens(2, 20)
    with buzz.patch_model(model):
        cache = small(model)
        with torch.inference_mode():
            model(ids, past_key_values=cache)
            cache.batch_repeat_interleave(2)
            cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
        for _ in range(12):
            model(tokens(4, 1), past_key_values=cache)
        with pytest.raises(ValueError, match="no row of the cache would be left"):
            cache.batch_select_indices(torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("make", "how"),
    [*((tiny_llama, how) for how in ("before", "after", "in place", "layers")), (tiny_opt, "before")],
)
def test_compiled_models_break_their_graph_at_a_cache(make, how):
    """And are right: over evictions, with pads, and without a cache as compiled as before."""
    torch._dynamo.reset()
    ids, mask = left_pad([tokens(1, 20)[0], tokens(1, 9)[0]])
    model, reference = make(), make()
    compiled = torch.compile(model, backend="eager") if how == "before" else model
    with buzz.patch_model(compiled), buzz.patch_model(reference), torch.no_grad():
        if how == "after":
            compiled = torch.compile(model, backend="eager")
        elif how == "in place":
            model.compile(backend="eager")
        elif how == "layers":
            for layer in next(m for m in model.modules() if hasattr(m, "layers")).layers:
                layer.compile(backend="eager")
        results = []
        for m, call in ((model, compiled), (reference, reference)):
            cache = small(m)
            out = [call(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]]
            out += [call(t, past_key_values=cache).logits[:, -1] for t in tokens(2, 8, seed=3).split(1, 1)]
            results.append((torch.stack(out), cache.lengths, call(ids, attention_mask=mask).logits[mask.bool()]))
    (a, lengths, plain), (b, expected_lengths, expected_plain) = results
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain, expected_plain, atol=1e-5, rtol=0)
    assert lengths == expected_lengths
    torch._dynamo.reset()


@torch.no_grad()
def test_a_patched_model_compiles_whole_without_a_cache():
    torch._dynamo.reset()
    model, ids = tiny_llama(), tokens(2, 12)
    expected = model(ids, use_cache=False).logits
    with buzz.patch_model(model):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected, atol=1e-5, rtol=0)
        with pytest.raises(Exception, match="disable"):  # what cannot be whole says so
            compiled(ids, past_key_values=small(model))
    torch._dynamo.reset()


def stored(model):
    """Through torch.save, and through pickle."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return [torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]


@BOTH
def test_a_patched_model_can_be_saved_and_copied(make):
    model, ids = make(), tokens(1, 30)
    with buzz.patch_model(model) as handle:
        handle.engine.run = Uncaptured()
        cache = small(model)
        expected = model.generate(ids, past_key_values=cache, **GREEDY)  # with an arena, which is not saved
        for twin in stored(model):
            own = small(twin)
            assert twin.generate(ids, past_key_values=own, **GREEDY).tolist() == expected.tolist()
            assert own.lengths == cache.lengths
            with torch.no_grad():
                assert torch.equal(twin(ids).logits, model(ids).logits)
            theirs = buzz.patch_model(twin)
            assert theirs is not handle
            theirs.remove()
            left = {"_buzz", "_buzz_handle", "forward", "__getstate__"}
            assert not any(left & vars(m).keys() for m in twin.modules())
            with pytest.raises(RuntimeError, match="patch_model"):
                twin(ids, past_key_values=small(twin))
        assert model.generate(ids, past_key_values=small(model), **GREEDY).tolist() == expected.tolist()
    for again in stored(model):  # unpatched, they are what they were
        assert "forward" not in vars(next(m for m in again.modules() if hasattr(m, "layers")).layers[0].self_attn)


def answer(model, cache, ids, queue):
    torch.set_num_threads(1)
    queue.put(model.generate(ids, past_key_values=cache, **GREEDY).tolist())


@pytest.mark.slow
def test_a_patched_model_goes_to_a_process_that_is_spawned():
    model, ids = tiny_llama(), tokens(1, 30)
    context = mp.get_context("spawn")
    queue = context.Queue()
    with buzz.patch_model(model):
        expected = model.generate(ids, past_key_values=small(model), **GREEDY).tolist()
        child = context.Process(target=answer, args=(model, small(model), ids, queue))
        child.start()
        assert queue.get(timeout=120) == expected
        child.join(timeout=60)
        assert child.exitcode == 0


def test_a_state_dict_is_that_of_the_unpatched_model(tmp_path):
    model = tiny_llama()
    names = list(model.state_dict())
    with buzz.patch_model(model):
        assert list(model.state_dict()) == names
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(tokens(1, 9)).logits, model(tokens(1, 9)).logits)


@torch.no_grad()
def test_a_cache_for_another_model_is_refused_at_the_first_call():
    model, ids = tiny_llama(2), tokens(1, 9)
    others = [
        (tiny_llama(4), "3 layers of 4 KV heads, 16 wide"),
        (tiny_llama(2, head_dim=32), "3 layers of 2 KV heads, 32 wide"),
        (tiny_opt(num_hidden_layers=2), "2 layers of 4 KV heads, 16 wide"),
    ]
    with buzz.patch_model(model):
        for other, shape in others:
            words = f"the cache was built for {shape}, this model has 3 layers of 2 KV heads, 16 wide"
            with pytest.raises(ValueError, match=words):
                model(ids, past_key_values=small(other))
            with pytest.raises(ValueError, match=words):
                model.generate(ids, past_key_values=small(other), **GREEDY)
        twin = tiny_llama(2, seed=9)
        model(ids, past_key_values=small(twin))  # of the same shape


@BOTH
@pytest.mark.parametrize("static", [False, True])
def test_a_prompt_that_the_cache_has_seen_is_refused(make, static):
    model, ids = make(), tokens(2, 20)
    with buzz.patch_model(model) as handle:
        if static:
            handle.engine.run = Uncaptured()
        cache = small(model)
        first = model.generate(ids, past_key_values=cache, **GREEDY)  # 27 of the 28 are fed
        for prompt, n in ((ids, 20), (first[:, :27], 27)):
            with pytest.raises(ValueError, match=f"the cache has seen 27 tokens, the prompt has {n}: generate"):
                model.generate(prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, **GREEDY)
            with pytest.raises(ValueError, match=f"the prompt has {n}"):
                model.generate(inputs_embeds=model.get_input_embeddings()(prompt), past_key_values=cache, **GREEDY)
        more = model.generate(first, attention_mask=torch.ones_like(first), past_key_values=cache, **GREEDY)
        assert more.shape == (2, 36)


def test_generate_options_that_a_cache_cannot_follow(model):
    """Right, or one clear error."""
    ids = tokens(2, 20)
    with buzz.patch_model(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = small(model)
        model.generate(ids, past_key_values=cache, **GREEDY)
        text = torch.cat([ids, tokens(2, 12)], dim=1)
        with pytest.raises(ValueError, match="the cache holds 2 rows, the call has 6"):
            model.generate(text, attention_mask=torch.ones_like(text), past_key_values=cache, num_beams=3, **GREEDY)
        with pytest.raises(ValueError, match=r"use_cache=False .* and a BeehiveCache are given"):
            model.generate(ids, past_key_values=small(model), use_cache=False, **GREEDY)
        model.generation_config.use_cache = False  # as some checkpoints have it
        with pytest.raises(ValueError, match=r"set model\.generation_config\.use_cache = True"):
            model.generate(ids, past_key_values=small(model), **GREEDY)
        model.generate(ids, past_key_values=small(model), use_cache=True, **GREEDY)
        model.generation_config.use_cache = True
        for assisted in ({"assistant_model": tiny_llama()}, {"prompt_lookup_num_tokens": 2}):
            cache = small(model)
            with pytest.raises(NotImplementedError, match="cannot be cropped, as assisted decoding wants it"):
                model.generate(ids[:1], past_key_values=cache, **assisted, **GREEDY)
            assert cache.get_seq_length() == 0


@torch.no_grad()
def test_calls_without_columns_and_packed_rows_are_refused(model):
    ids = tokens(2, 6)
    with buzz.patch_model(model):
        cache = small(model)
        with pytest.raises(ValueError, match=r"input_ids must be \[rows, columns\] with one column or more"):
            model(ids[:, :0], past_key_values=cache)
        lengths = torch.tensor([0, 3, 6], dtype=torch.int32)
        with pytest.raises(ValueError, match="packed sequences cannot be evicted from"):
            model(ids[:1], past_key_values=cache, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths)
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(past_key_values=cache)
        model(ids, past_key_values=cache)


def test_a_cache_tells_what_it_is():
    model = tiny_llama()
    cache = buzz.BeehiveCache("h2o", model, budget=24)
    policy = "H2OPolicy(heavy=17, window=7, sink=0)"
    assert repr(cache) == f"BeehiveCache({policy}, positions='cache', lengths=[], seen=0, 0.00 MiB)"
    with buzz.patch_model(model), torch.no_grad():
        model(tokens(2, 40), past_key_values=cache)
    shown = repr(cache)
    assert "lengths=[24, 24], seen=40" in shown
    assert f"{cache.nbytes / 2**20:.2f} MiB" in shown
    layered = buzz.BeehiveCache([buzz.make_policy("full"), SMALL, SMALL], model)
    assert "[FullPolicy(), BuzzPolicy(" in repr(layered)


def test_a_cache_is_built_from_names_models_and_budgets():
    model = tiny_llama()
    assert buzz.BeehiveCache("buzz", model).integers.policy(0) == buzz.make_policy("buzz")
    fitted = buzz.BeehiveCache(SMALL, model.config, budget=30).integers.policy(0)
    assert fitted == SMALL.from_budget(30)
    wrong = [
        (("buz", model), {}, ValueError, "did you mean 'buzz'"),
        (("h2o", "buzz"), {}, TypeError, "needs a model or its configuration, got str"),
        (("buzz", None), {}, TypeError, "needs a model or its configuration, got NoneType"),
        (([SMALL] * 3, model), {"budget": 40}, TypeError, "budget= goes with one policy"),
        (("streaming", model), {"budget": 2}, ValueError, "leaves no window"),
        (("buzz", model), {"capacity": 2.5}, ValueError, "capacity must be an integer"),
    ]
    for arguments, options, kind, words in wrong:
        with pytest.raises(kind, match=words):
            buzz.BeehiveCache(*arguments, **options)
