"""generate() on a patched model: it just works, in every mode, with and without evictions."""

from __future__ import annotations

import pytest
import torch
from transformers import StoppingCriteria, TextStreamer

import buzz
from buzz.decoding.arena import Off, Uncaptured
from tests.conftest import left_pad, recorded, tiny_llama, tiny_opt, tokens
from tests.models.tiny import tiny

SMALL = {"sink": 2, "window": 8, "stride": 5, "threshold": 10}


@pytest.fixture
def patched(model):
    with buzz.patch_model(model):
        yield model


def small(model, name="buzz", **changes):
    return buzz.BeehiveCache(buzz.make_policy(name, **{**SMALL, **changes}), model.config)


def step_by_step(model, rows, steps):
    """Greedy ids of each row alone, by plain forward calls."""
    out = []
    for row in rows:
        cache, ids = small(model), row[None]
        logits = model(ids, past_key_values=cache).logits[:, -1]
        new = []
        for _ in range(steps):
            new.append(logits.argmax(-1).item())
            logits = model(torch.tensor([[new[-1]]]), past_key_values=cache).logits[:, -1]
        out.append(new)
    return out


@torch.no_grad()
def test_greedy_left_padded_batches_equal_single_rows(patched):
    rows = [tokens(1, n, seed=n)[0] for n in (50, 13, 29)]
    ids, mask = left_pad(rows)
    cache = small(patched)
    got = patched.generate(
        ids, attention_mask=mask, past_key_values=cache, max_new_tokens=25, do_sample=False, eos_token_id=None
    )
    assert got[:, ids.shape[1] :].tolist() == step_by_step(patched, rows, 25)
    assert max(cache.lengths) <= 20 < 50
    assert cache.get_seq_length() == 50 + 24


@torch.no_grad()
def test_sampling_is_reproducible_and_in_bounds(patched):
    ids = tokens(2, 40)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        cache = small(patched)
        draws.append(
            patched.generate(ids, past_key_values=cache, max_new_tokens=20, do_sample=True, top_k=0, eos_token_id=None)
        )
    assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()
    assert max(cache.lengths) <= 20


@pytest.mark.parametrize("name", ["buzz", "full"])
def test_beam_search(model, name):
    ids = tokens(2, 30)
    settings = {"num_beams": 3, "max_new_tokens": 15, "do_sample": False, "num_return_sequences": 2}
    expected = model.generate(ids, **settings)
    with buzz.patch_model(model):
        large = buzz.BeehiveCache(buzz.make_policy(name), model.config)
        assert model.generate(ids, past_key_values=large, **settings).tolist() == expected.tolist()
        cache = small(model)
        got = model.generate(ids, past_key_values=cache, **settings)
        assert got.shape[0] == 4
        assert len(cache.lengths) == 6
        assert max(cache.lengths) <= 20


def test_second_turn_continues_on_the_same_cache(patched):
    """Two generate() calls give what one uninterrupted stream of the same tokens gives."""
    first, more = tokens(2, 33), tokens(2, 9, seed=5)
    cache = small(patched)
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    turn1 = patched.generate(first, past_key_values=cache, **greedy)
    assert cache.get_seq_length() == 33 + 11  # the last token has not been fed yet
    both = torch.cat([turn1, more], dim=1)
    # Without a mask generate() would take a generated 0 for a pad, which the cache refuses.
    turn2 = patched.generate(both, attention_mask=torch.ones_like(both), past_key_values=cache, **greedy)

    twin = small(patched)
    with torch.no_grad():
        patched(first, past_key_values=twin)
        for token in turn1[:, 33:-1].split(1, dim=1):
            patched(token, past_key_values=twin)
        logits = patched(torch.cat([turn1[:, -1:], more], dim=1), past_key_values=twin).logits[:, -1]
        for expected in turn2[:, turn1.shape[1] + 9 :].unbind(1):
            assert logits.argmax(-1).tolist() == expected.tolist()
            logits = patched(expected[:, None], past_key_values=twin).logits[:, -1]


def test_second_turn_with_left_padding(patched):
    rows = [tokens(1, n, seed=n)[0] for n in (30, 12)]
    ids, mask = left_pad(rows)
    cache = small(patched)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    turn1 = patched.generate(ids, attention_mask=mask, past_key_values=cache, **greedy)
    more = tokens(2, 6, seed=7)
    both = torch.cat([turn1, more], dim=1)
    wide = torch.cat([mask, torch.ones(2, 14, dtype=mask.dtype)], dim=1)
    turn2 = patched.generate(both, attention_mask=wide, past_key_values=cache, **greedy)
    for i, row in enumerate(rows):
        alone = small(patched)
        single = patched.generate(row[None], past_key_values=alone, **greedy)
        # Without a mask generate() would take a generated 0 for padding.
        again = torch.cat([single, more[i : i + 1]], dim=1)
        again = patched.generate(again, attention_mask=torch.ones_like(again), past_key_values=alone, **greedy)
        assert turn2[i, ids.shape[1] - len(row) :].tolist() == again[0].tolist()


@pytest.mark.parametrize("chunk", [7, 16, 64])
def test_chunked_prefill(model, chunk):
    ids = tokens(2, 50)
    greedy = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **greedy)
    with buzz.patch_model(model):
        for name in ("full", "buzz"):  # nothing is evicted: the chunks change nothing
            cache = buzz.BeehiveCache(buzz.make_policy(name), model.config)
            got = model.generate(ids, past_key_values=cache, prefill_chunk_size=chunk, **greedy)
            assert got.tolist() == expected.tolist()
        cache = small(model)
        model.generate(ids, past_key_values=cache, prefill_chunk_size=chunk, **greedy)
        assert max(cache.lengths) <= 20
        assert cache.calls == -(-50 // chunk) + 9
        # The same chunks by hand give the same lengths, left-padded rows included.
        ragged, mask = left_pad([ids[0], ids[1, :20]])
        cache = small(model)
        model.generate(ragged, attention_mask=mask, past_key_values=cache, prefill_chunk_size=chunk, **greedy)
        assert max(cache.lengths) <= 20


def test_streamers_see_every_token(patched):
    class Tokenizer:
        def decode(self, ids, **kwargs):
            return " ".join(map(str, ids))

    class Collect(TextStreamer):
        texts = ""

        def on_finalized_text(self, text, stream_end=False):
            self.texts += text

    streamer = Collect(Tokenizer(), skip_prompt=True)
    out = patched.generate(
        tokens(1, 30), past_key_values=small(patched), max_new_tokens=9, do_sample=False, streamer=streamer
    )
    assert streamer.texts.split() == [str(t) for t in out[0, 30:].tolist()]


def test_stopping_criteria_and_scores(patched):
    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 36)

    out = patched.generate(
        tokens(2, 30), past_key_values=small(patched), max_new_tokens=20, do_sample=False, eos_token_id=None,
        stopping_criteria=[Stop()], return_dict_in_generate=True, output_scores=True, output_hidden_states=True,
    )  # fmt: skip
    assert out.sequences.shape == (2, 36)
    assert len(out.scores) == 6
    assert isinstance(out.past_key_values, buzz.BeehiveCache)
    assert out.hidden_states[0][0].shape[1] == 30


def test_inference_mode_and_plain_mode_may_mix(patched):
    ids = tokens(1, 40)
    cache = small(patched)
    with torch.inference_mode():
        patched(ids, past_key_values=cache)
    with torch.no_grad():
        patched(ids[:, :1], past_key_values=cache)
    patched(ids[:, :1], past_key_values=cache)  # gradients on: eviction has none, but the output is there
    with torch.inference_mode():
        patched(ids[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == 43


@pytest.mark.parametrize("build", [tiny_llama, tiny_opt])
def test_inputs_embeds(build):
    model = build()
    ids, mask = left_pad([tokens(1, 30)[0], tokens(1, 12)[0]])
    embeds = model.get_input_embeddings()(ids)
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with buzz.patch_model(model):
        from_ids = model.generate(ids, past_key_values=small(model), **settings)
        from_embeds = model.generate(inputs_embeds=embeds, past_key_values=small(model), **settings)
    assert from_embeds.tolist() == from_ids[:, 30:].tolist()


@torch.no_grad()
def test_opt_streams_past_its_positions():
    model = tiny_opt()  # 256 positions
    with buzz.patch_model(model):
        cache = recorded(buzz.make_policy("buzz", **SMALL), model.config, positions="cache")
        ids = tokens(1, 600)
        for token in ids.split(1, dim=1):
            logits = model(token, past_key_values=cache).logits
        assert torch.isfinite(logits).all()
        assert cache.get_seq_length() == 600
        assert max(lengths[0] for lengths in cache.curve.lengths) <= 20
        cache = buzz.BeehiveCache(buzz.make_policy("buzz", **SMALL), model.config, positions="original")
        model(ids[:, :256], past_key_values=cache)
        with pytest.raises(ValueError, match="has 256 positions, the call needs 257"):
            model(ids[:, :1], past_key_values=cache)
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            model(ids, past_key_values=buzz.BeehiveCache(buzz.make_policy("buzz"), model.config, positions="cache"))


@torch.no_grad()
def test_a_chunk_of_any_length_fits_opt_when_it_is_cut():
    model = tiny_opt()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy("streaming", window=100), model.config, positions="cache")
        out = model.generate(
            tokens(1, 900), past_key_values=cache, max_new_tokens=5, prefill_chunk_size=100, do_sample=False
        )
    assert out.shape[1] <= 905
    assert cache.lengths == [104]


@pytest.mark.parametrize("run", [Off(), Uncaptured()])
@pytest.mark.parametrize("prompt", [10, 30])
@torch.no_grad()
def test_phi3_keeps_the_cache_where_its_frequencies_may_change(run, prompt):
    model = tiny("phi3-unbounded", original_max_position_embeddings=16)
    with buzz.patch_model(model) as handle:
        handle.engine.run = run
        cache = buzz.BeehiveCache("streaming", model, budget=8)
        model.generate(tokens(1, prompt), past_key_values=cache, max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert cache.get_seq_length() == prompt + 19
        assert "prepare_inputs_for_generation" in vars(model)
    assert "prepare_inputs_for_generation" not in vars(model)
