"""Keys that stay rotated from step to step: all is to the bit what rotating all keys in every call gives."""

from __future__ import annotations

import pickle

import pytest
import torch

import buzz
from buzz.cache.layer import BeehiveLayer
from buzz.cache.rotated import Rotated
from tests.conftest import left_pad, tiny_llama, tokens
from tests.models.tiny import tiny

BUZZ = buzz.make_policy("buzz", sink=2, window=6, stride=3, threshold=12)
ROOMY = buzz.make_policy("h2o", heavy=60, window=60)
EVERY_STEP = buzz.make_policy("h2o", heavy=6, window=6)


@pytest.fixture
def used(monkeypatch):
    """How often keys were kept, and how often a step's own were added to these."""
    counts = {"fill": 0, "add": 0}

    def counted(name, method):
        def call(*args):
            counts[name] += 1
            return method(*args)

        return call

    for name in counts:
        monkeypatch.setattr(Rotated, name, counted(name, getattr(Rotated, name)))
    return counts


def steps(model, cache, n, rows=1, seed=1):
    return [model(ids, past_key_values=cache).logits for ids in tokens(n * rows, 1, seed).view(n, rows, 1)]


def text(model, cache):
    """A prompt, steps, a chunk, steps."""
    yield model(tokens(1, 15), past_key_values=cache).logits
    yield from steps(model, cache, 20)
    yield model(tokens(1, 4, seed=2), past_key_values=cache).logits
    yield from steps(model, cache, 20, seed=3)


def ragged(model, cache):
    """Rows of several lengths, one of which is silent in one of the steps."""
    ids, mask = left_pad([tokens(1, n, seed=n)[0] for n in (15, 4, 9)])
    yield model(ids, attention_mask=mask, past_key_values=cache).logits
    yield from steps(model, cache, 7, rows=3)
    yield model(tokens(3, 1), attention_mask=torch.tensor([[1], [0], [1]]), past_key_values=cache).logits
    yield model(tokens(3, 2), attention_mask=torch.tensor([[1, 1], [0, 1], [0, 1]]), past_key_values=cache).logits
    yield from steps(model, cache, 14, rows=3, seed=2)


def moved(model, cache):
    """Rows that change places, come and go."""
    yield model(tokens(2, 9), past_key_values=cache).logits
    yield from steps(model, cache, 4, rows=2)
    cache.reorder_cache(torch.tensor([1, 0]))
    yield from steps(model, cache, 4, rows=2, seed=2)
    cache.batch_repeat_interleave(2)
    yield from steps(model, cache, 4, rows=4, seed=3)
    cache.batch_select_indices([0, 3])
    yield from steps(model, cache, 4, rows=2, seed=4)
    cache.reset()
    yield model(tokens(1, 5), past_key_values=cache).logits
    yield from steps(model, cache, 4, seed=5)


def run(script, model, policy):
    """All that a script tells, and what the cache holds then."""
    cache = buzz.BeehiveCache(policy, model, positions="cache")
    told = list(script(model, cache))
    held = [t for layer in cache.layers for t in layer.tensors if t is not None]
    return told + [t[:, :, : max(cache.lengths)] for t in held]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", [BUZZ, ROOMY, EVERY_STEP], ids=["buzz", "roomy", "every step"])
@pytest.mark.parametrize("script", [text, ragged, moved])
@torch.inference_mode()
def test_all_is_to_the_bit_as_without(script, policy, dtype, used, monkeypatch):
    model = tiny_llama().to(dtype)
    with buzz.patch_model(model):
        got = run(script, model, policy)
        assert (used["fill"] > 0 and used["add"] > used["fill"]) or policy is EVERY_STEP
        before = dict(used)
        monkeypatch.setattr(BeehiveLayer, "rotated_for", lambda *_: None)
        expected = run(script, model, policy)
    assert used == before
    assert all(map(torch.equal, got, expected))
    assert len(got) == len(expected)


@pytest.mark.parametrize("name", ["gemma3_text-mixed", "smollm3", "phi3-partial", "qwen3-windows", "opt"])
@torch.no_grad()
def test_families(name, used, monkeypatch):
    """Windows, layers that do not rotate, heads that rotate in part; what does not rotate keeps nothing."""
    model = tiny(name)
    with buzz.patch_model(model):
        got = run(text, model, BUZZ)
        assert (used["add"] > 0) == (name != "opt")
        monkeypatch.setattr(BeehiveLayer, "rotated_for", lambda *_: None)
        assert all(map(torch.equal, got, run(text, model, BUZZ)))


@torch.no_grad()
def test_where_every_step_evicts_nothing_is_kept(used):
    model = tiny_llama()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(EVERY_STEP, model)
        model(tokens(1, 20), past_key_values=cache)
        steps(model, cache, 9)
    assert used == {"fill": 0, "add": 0}


@torch.no_grad()
def test_other_angles_are_noticed(used):
    model = tiny_llama()
    cache = buzz.BeehiveCache(ROOMY, model)
    for _ in range(2):
        with buzz.patch_model(model):  # patched anew it has other tables, of equal angles
            steps(model, cache, 5)
    assert used == {"fill": 3, "add": 8 * 3}
    with buzz.patch_model(model):
        twin = cache.copy()
        model.model.rotary_emb.inv_freq *= 0.5
        assert all(map(torch.equal, steps(model, cache, 4), steps(model, twin, 4)))
    assert used == {"fill": 3 * 3, "add": (8 + 2 * 2) * 3}


@torch.no_grad()
def test_angles_that_every_call_makes_anew_keep_nothing(used):
    model = tiny_llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with buzz.patch_model(model):
        steps(model, buzz.BeehiveCache(ROOMY, model), 5)
    assert used == {"fill": 0, "add": 0}


@torch.no_grad()
def test_what_they_cost_is_told_and_given_back():
    model = tiny_llama()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(BUZZ, model)
        model(tokens(1, 9), past_key_values=cache)
        own = cache.nbytes
        steps(model, cache, 1)
        assert cache.nbytes == own == sum(t.nbytes for layer in cache.layers for t in layer.tensors)
        steps(model, cache, 1)
        assert cache.nbytes == own + sum(layer.keys.nbytes for layer in cache.layers)
        assert cache.copy().nbytes <= own
        again = pickle.loads(pickle.dumps(cache))
        assert again.nbytes == cache.nbytes
        assert all(map(torch.equal, steps(model, again, 4), steps(model, cache, 4)))
        evictions = cache.stats()["evictions"]
        while cache.stats()["evictions"] == evictions:
            steps(model, cache, 1)
        assert cache.nbytes == own
        steps(model, cache, 2)
        cache.reset()
        assert cache.nbytes == 0


def test_kept_in_inference_mode_they_are_added_to_outside_of_it():
    model = tiny_llama()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(ROOMY, model)
        with torch.inference_mode():
            steps(model, cache, 4)
        with torch.no_grad():
            steps(model, cache, 4)
