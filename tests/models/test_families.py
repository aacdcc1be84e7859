"""What holds for every model family of the table and every variant of one: exact with room, right after evictions."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor

import buzz
from tests.conftest import left_pad, tokens
from tests.decoding.test_loop import RAGGED, both, generate
from tests.models.reference import NaiveModel
from tests.models.tiny import CASES, tiny, tiny_config
from tests.patching.test_targets import assert_whole, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:every layer of this model has a sliding window")

HARD = {
    "buzz": {"sink": 2, "window": 6, "stride": 5, "threshold": 9},
    "h2o": {"heavy": 7, "window": 6},
    "streaming": {"sink": 2, "window": 10},
    "tova": {"capacity": 12},
    "snapkv": {"capacity": 14, "window": 4, "kernel": 3},
}
GREEDY = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}


class Heard(LogitsProcessor):
    """Remembers the logits of every step."""

    def __init__(self):
        self.logits = []

    def __call__(self, input_ids, scores):
        self.logits.append(scores.clone())
        return scores


def windows(name: str) -> list[int | None]:
    """Tokens that each layer's queries see; None: all."""
    config = tiny_config(name)
    types = getattr(config, "layer_types", None)
    if types is None:  # a window is for every layer, or for none
        return [getattr(config, "sliding_window", None)] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in types]


@torch.no_grad()
def greedy(model, ids, past=None, steps=20):
    """Logits [V] of a prompt's tokens and of greedy steps each; `past` None: a cache of the model's own choice."""
    kept, logits = {"past_key_values": past} if past is not None else {"use_cache": True}, []
    for step in range(steps + 1):
        output = model(ids, **kept)
        logits += output.logits[0]
        kept = {"past_key_values": output.past_key_values}
        ids = logits[-1].argmax()[None, None]
        assert step == 0 or output.logits.shape[1] == 1
    return torch.stack(logits)


@pytest.mark.parametrize("name", CASES)
def test_with_room_logits_are_the_unpatched_models(name):
    model, ids = tiny(name), tokens(1, 23)
    expected = greedy(model, ids)
    with buzz.patch_model(model):
        for policy, positions in [("full", "original"), ("buzz", "cache"), ("h2o", "original")]:
            cache = buzz.BeehiveCache(policy, model, positions)
            torch.testing.assert_close(greedy(model, ids, cache), expected, atol=2e-4, rtol=0)
            assert cache.get_seq_length() == 43


@pytest.mark.parametrize("name", CASES)
def test_with_room_generate_gives_the_same_ids(name):
    model, (ids, mask) = tiny(name), RAGGED
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache("tova", model)
        got = model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    assert got.tolist() == expected.tolist()


@torch.no_grad()
def fed(model, cache, rows, steps):
    """Logits [B, V] of the last tokens of a prompt and of each step, float64."""
    ids, mask = left_pad(rows)
    logits = [model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]]
    for step in steps.split(1, dim=1):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits.append(model(step, attention_mask=mask, past_key_values=cache).logits[:, -1])
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("name", CASES)
def test_ragged_rows_that_evict_equal_their_rows_alone(name):
    model, layers = tiny(name).double(), len(windows(name))
    rows, steps = [tokens(1, n, seed=n)[0] for n in (37, 18)], tokens(2, 3, seed=3)
    with buzz.patch_model(model):
        for policy, params in HARD.items():
            together = buzz.BeehiveCache(buzz.make_policy(policy, **params), model)
            logits = fed(model, together, rows, steps)
            for row, ids in enumerate(rows):
                alone = buzz.BeehiveCache(buzz.make_policy(policy, **params), model)
                expected = fed(model, alone, [ids], steps[row : row + 1])
                torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-6, rtol=0)
                for layer in range(layers):
                    assert together.layer_lengths(layer)[row] == alone.layer_lengths(layer)[0]
                for figure in ("mean_tokens", "peak_tokens", "evictions"):
                    assert together.stats()[figure][row] == alone.stats()[figure][0]
            assert None not in windows(name) or together.stats()["evictions"][0] > 0


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_remove_leaves_the_model_as_it_was(name):
    model, ids = tiny(name), tokens(2, 15)
    expected, before = greedy(model, ids[:1], steps=2), snapshot(model)
    handle = buzz.patch_model(model)
    assert any("forward" in vars(module) for module in model.modules())
    assert torch.equal(greedy(model, ids[:1], steps=2), expected)  # with another cache, patched or not
    fed(model, buzz.BeehiveCache("buzz", model), list(ids), ids[:, :2])
    for _ in range(2):  # the second time it changes nothing
        handle.remove()
        assert_whole(model, before)
        assert all(module.forward.__func__ is type(module).forward for module in model.modules())
    assert torch.equal(greedy(model, ids[:1], steps=2), expected)


@pytest.mark.parametrize(("policy", "positions"), [("buzz", "cache"), ("tova", "original")])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_after_evictions_every_token_equals_the_naive_model(name, policy, positions):
    """A prompt, steps, a chunk and more steps; all of its tokens, not the last alone."""
    model = tiny(name).double()
    naive = NaiveModel(model, policy, HARD[policy], positions)
    seen = 0
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy(policy, **HARD[policy]), model, positions)
        for ids in tokens(1, 49).split([29, 1, 1, 1, 9, *[1] * 8], dim=1):
            logits = model(ids, past_key_values=cache).logits[0]
            torch.testing.assert_close(logits, naive(ids), atol=1e-5, rtol=0)
            seen += ids.shape[1]
            for layer, window in enumerate(windows(name)):
                held = naive.lengths[layer] if window is None else min(seen, window - 1)
                assert cache.layer_lengths(layer) == [held]
    assert [attention.window for attention in naive.attentions] == windows(name)


@pytest.mark.parametrize(("policy", "positions"), [("buzz", "cache"), ("h2o", "original")])
@pytest.mark.parametrize("name", CASES)
def test_static_decoding_equals_the_models_own_forward(name, policy, positions):
    heard = []

    def call(model, cache):
        heard.append(Heard())
        return generate(*RAGGED, max_new_tokens=12, logits_processor=[heard[-1]])(model, cache)

    (expected, before), (got, after) = both(tiny(name), [call], buzz.make_policy(policy, **HARD[policy]), positions)
    assert got[0].tolist() == expected[0].tolist()
    assert all(layer.home is not None for layer in after.layers)  # it did run in static memory
    for layer in range(len(windows(name))):
        assert after.layer_lengths(layer) == before.layer_lengths(layer)
    logits, statically = (torch.stack(one.logits) for one in heard)
    torch.testing.assert_close(statically, logits, atol=2e-4, rtol=0)  # greedy ids do not feel their scale


@pytest.mark.parametrize("name", [name for name in CASES if len(set(windows(name))) > 1])
@torch.no_grad()
def test_reports_speak_of_the_layers_that_evict(name):
    """... and of all bytes."""
    model = tiny(name)
    with buzz.patch_model(model):
        cache, sizes = buzz.BeehiveCache(buzz.make_policy("h2o", heavy=11, window=6), model), []
        for ids in tokens(1, 80).split([40] + [1] * 40, dim=1):
            model(ids, past_key_values=cache)
            sizes.append(cache.nbytes)
            assert cache.nbytes == sum(t.nbytes for layer in cache.layers for t in layer.tensors if t is not None)
    assert cache.lengths == [17]
    stats = cache.stats()
    assert stats["mean_tokens"] == stats["peak_tokens"] == [17]
    assert sizes[-1] == sizes[20]  # nothing grows with the text
    full, slides = (
        {cache.layers[i].tensors.keys.nbytes for i, window in enumerate(windows(name)) if (window is None) == evicts}
        for evicts in (True, False)
    )
    assert max(slides) <= min(full)
