"""What a second reading must not change, and what goes wrong around it."""

from __future__ import annotations

import copy

import pytest
import torch

import buzz
from buzz.cache import Curve, PerRow
from tests.conftest import left_pad, tiny_llama, tiny_opt, tokens
from tests.decoding.test_loop import assert_same, both, generate, static
from tests.models.tiny import tiny
from tests.policies.twice import Once, Twice

GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
BOTH = pytest.mark.parametrize("positions", ["cache", "original"])


def run(model, policy, calls, positions="cache", **options):
    """Outputs of calls, (ids, mask) each, against one cache, and that cache."""
    cache = buzz.BeehiveCache(policy, model, positions)
    outputs = [
        model(ids, attention_mask=mask, past_key_values=cache, **options)  # masks of a call alone
        for ids, mask in calls
    ]
    return outputs, cache


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "smollm3-windows", "gemma3_text-mixed", "phi3-partial", "opt"])
def test_a_call_gives_what_its_first_reading_gives(name):
    model, (ids, mask) = tiny(name), left_pad([tokens(1, n, seed=n)[0] for n in (19, 25)])
    recorded = {"output_hidden_states": True}
    if name == "qwen3_moe":
        recorded["output_router_logits"] = True
    with buzz.patch_model(model):
        (once,), plain = run(model, Once(), [(ids, mask)], **recorded)
        (twice,), cache = run(model, Twice(), [(ids, mask)], **recorded)
    torch.testing.assert_close(once.logits, twice.logits, atol=1e-5, rtol=1e-5)
    for kind in recorded:
        kind = kind.removeprefix("output_")
        assert len(once[kind]) == len(twice[kind])
        for a, b in zip(once[kind], twice[kind], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (cache.nbytes, cache.stats()) == (plain.nbytes, plain.stats())
    assert (cache.tokens, cache.get_seq_length(), cache.calls) == ([19, 25], 25, 1)
    for layer, window in enumerate(cache._shape.windows):
        assert cache.layer_lengths(layer) == plain.layer_lengths(layer)
        if window is not None:  # what a window keeps does not depend on scores
            for row, n in enumerate(cache.layer_lengths(layer)):
                for a, b in zip(cache.layers[layer].tensors[:2], plain.layers[layer].tensors[:2], strict=True):
                    torch.testing.assert_close(a[row, :, :n], b[row, :, :n], atol=1e-5, rtol=1e-5)


class Reading:
    """Counts what goes through a model's second layer: columns of every call."""

    def __init__(self, model):
        layer = model.get_decoder().layers[1]
        self.columns = []
        self.hook = layer.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, layer, args, kwargs):
        self.columns.append((args[0] if args else kwargs["hidden_states"]).shape[1])


@torch.no_grad()
def test_only_what_lets_go_of_something_is_read_twice():
    model = tiny_llama()
    reading = Reading(model)
    with buzz.patch_model(model):
        run(model, Twice(), [(tokens(1, n), None) for n in (12, 1, 7, 1, 1)])
        assert reading.columns == [12, 1, 7, 5, 2, 1, 1]  # the step evicts, too, and hears nothing twice
        reading.columns.clear()
        run(model, Twice(capacity=12, lazy=-1), [(tokens(1, 12), None)])  # is due, and keeps all
        run(model, Once(), [(tokens(1, 30), None)])
        assert reading.columns == [12, 30]
        reading.columns.clear()
        run(model, PerRow([Twice(), Twice(capacity=9)]), [left_pad([tokens(1, 13)[0], tokens(1, 12)[0]])])
        assert reading.columns == [13, 5, 5, 3]


@torch.no_grad()
def test_prompts_in_chunks_and_embeddings_are_read_twice_all_the_same():
    model, ids = tiny_llama(), tokens(2, 26, seed=4)
    with buzz.patch_model(model):
        caches = [buzz.BeehiveCache(Twice(), model) for _ in range(4)]
        for part in ids.split(10, dim=1):
            expected = model(part, past_key_values=caches[0]).logits[:, -1]
        for part in model.get_input_embeddings()(ids).split(10, dim=1):
            logits = model(inputs_embeds=part, past_key_values=caches[1]).logits[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        got = model.generate(ids, past_key_values=caches[2], prefill_chunk_size=10, **GREEDY)
        stepped = model.generate(ids[:, :1], past_key_values=caches[3], **GREEDY)  # a single token is no prompt
        assert stepped.shape[1] == 13
        twin = copy.deepcopy(caches[0])
        for cache in (caches[0], twin):
            logits = expected
            for token in got[:, 26:].unbind(1):
                assert logits.argmax(-1).tolist() == token.tolist()
                logits = model(token[:, None], past_key_values=cache).logits[:, -1]


@BOTH
@pytest.mark.parametrize("of", ["sum", "echo"])
@pytest.mark.parametrize("name", ["llama", "smollm3-windows", "opt"])
def test_static_memory_takes_what_two_readings_leave(name, of, positions):
    rows = [tokens(1, n, seed=n)[0] for n in (31, 9, 22)]

    def turn(model, cache):
        ids, mask = left_pad(rows)
        more = tokens(3, 9, seed=6)
        ids = torch.cat([ids, torch.full((3, cache.get_seq_length() - 31), 5), more], dim=1) if cache.calls else ids
        mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - 31), value=1)
        return generate(ids, mask, max_new_tokens=10)(model, cache)

    results = both(tiny(name), [turn, turn], Twice(of=of, mean=1.0), positions)
    assert_same(results)
    assert all(layer.home is not None for layer in results[1][1].layers)


@torch.no_grad()
@pytest.mark.parametrize("of", ["sum", "echo"])
def test_a_call_that_fits_waits_in_static_memory(of):
    """An arena with room for prompt and copy: there the prompt is written, and compacted in place."""
    ids, results = tokens(2, 20, seed=9), []
    for patch in (buzz.patch_model, static):
        model = tiny_llama()
        with patch(model):
            cache = buzz.BeehiveCache(Twice(of=of, mean=1.0), model, capacity=64)
            cache.curve = Curve()
            results.append(([generate(ids, max_new_tokens=10)(model, cache)], cache))
    assert_same(results)
    assert all(layer.home is not None and layer.capacity >= 25 for layer in results[1][1].layers)


# What goes wrong.


def failing(module, times):
    """Let a module fail in its call number `times`."""
    calls = []

    def fail(*_):
        calls.append(0)
        if len(calls) == times:
            raise KeyboardInterrupt

    return module.register_forward_pre_hook(fail)


@torch.no_grad()
@pytest.mark.parametrize("earlier", [[], [20, 1]], ids=["first call", "later call"])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_an_interrupted_call_is_taken_back(times, earlier):
    model, ids = tiny_llama(), tokens(2, 14, seed=8)
    with buzz.patch_model(model):
        _, cache = run(model, Twice(mean=1.0), [(tokens(2, n), None) for n in earlier])
        before, twin = cache.stats(), copy.deepcopy(cache)
        hook = failing(model.model.layers[1].self_attn, times)
        with pytest.raises(KeyboardInterrupt):
            model(ids, past_key_values=cache)
        hook.remove()
        assert not cache.is_in_call
        if not earlier:
            assert (cache.nbytes, cache.lengths) == (0, [])
            model(ids[:1], past_key_values=copy.deepcopy(cache))  # any number of rows
        assert {**cache.stats(), "nbytes": 0} == {**before, "nbytes": 0} or not earlier
        for part in (ids, ids[:, :1]):
            a, b = (model(part, past_key_values=c).logits for c in (twin, cache))
            assert torch.equal(a, b)
        assert cache.nbytes == twin.nbytes


@torch.no_grad()
def test_evictions_that_are_interrupted_are_noticed():
    model, ids = tiny_llama(), tokens(1, 20)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(Twice(), model)
        cache.on_evict = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids, past_key_values=cache)
        with pytest.raises(RuntimeError, match="the call before was interrupted"):
            model(ids, past_key_values=cache)
        cache.on_evict = None
        cache.reset()
        model(ids, past_key_values=cache)
        assert cache.lengths == [8]


@BOTH
@torch.no_grad()
def test_learned_positions_must_reach_to_the_end_of_the_copy(positions):
    model = tiny_opt(max_position_embeddings=30)
    ids, mask = left_pad([tokens(1, n)[0] for n in (26, 20)])
    message = "this OPT model has 30 positions, and the call with the copy behind it needs 31"
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(Twice(), model, positions)
        with pytest.raises(ValueError, match=message):
            model(ids, attention_mask=mask, past_key_values=cache)
        assert (cache.nbytes, cache.is_in_call) == (0, False)
        model(ids[:, :26], attention_mask=mask, past_key_values=buzz.BeehiveCache(Twice(chunk=4), model, positions))
        model(ids[1:, 6:], past_key_values=cache)
        assert cache.lengths == [8]
        with pytest.raises(ValueError, match="use positions='cache'"):  # the prompt alone is too long
            model(tokens(1, 31), past_key_values=buzz.BeehiveCache(Twice(), model, positions))


def test_a_recorded_gradient_is_refused_as_ever():
    model = tiny_llama()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(Twice(), model)
        logits = model(tokens(1, 20), past_key_values=cache).logits
        with pytest.raises(RuntimeError, match="a BeehiveCache has no gradient"):
            logits.sum().backward()
        assert cache.lengths == [8]
        with torch.inference_mode():
            model(tokens(1, 20), past_key_values=cache)
        with torch.no_grad():
            model(tokens(1, 1), past_key_values=cache)
