"""With a budget above the length, every policy equals the unpatched model."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import DynamicCache

import buzz
from tests.conftest import MODELS, left_pad, tokens
from tests.patching.placed import KINDS, PLACED

STEPS = 24  # buffers grow several times
# All policies in one model, and one of each kind in all.
MATRIX = [(kind, *placed) for kind in MODELS for placed in PLACED if kind == "llama-gqa" or placed[0] in KINDS]


@functools.cache
@torch.no_grad()
def unpatched_run(kind, length):
    """Of a prompt of random tokens: it, [1, L], its logits [1, L, V], those of greedy steps [1, V] each, and what was
    fed."""
    model, ids = MODELS[kind](), tokens(1, length, seed=length)
    cache = DynamicCache(config=model.config)
    prompt = model(ids, past_key_values=cache).logits
    steps, fed, last = [], [], prompt[:, -1]
    for _ in range(STEPS):
        fed.append(last.argmax(-1, keepdim=True))
        last = model(fed[-1], past_key_values=cache).logits[:, -1]
        steps.append(last)
    return ids, prompt, steps, fed


def roomy(name):
    """A policy with room for all tokens of these tests in every layer."""
    return buzz.make_policy(name, **({"capacity": 4000} if name == "pyramidkv" else {}))


@pytest.mark.parametrize(("kind", "name", "positions"), MATRIX)
@torch.no_grad()
def test_logits_equal_the_unpatched_model(kind, name, positions):
    model = MODELS[kind]()
    alone = [unpatched_run(kind, length) for length in (37, 11, 24)]
    policy = roomy(name)
    with buzz.patch_model(model):
        for row, prompt, steps, fed in alone:
            cache = buzz.BeehiveCache(policy, model.config, positions=positions)
            torch.testing.assert_close(model(row, past_key_values=cache).logits, prompt, atol=1e-5, rtol=0)
            for token, expected in zip(fed, steps, strict=True):
                logits = model(token, past_key_values=cache).logits[:, -1]
                torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        # The same rows as one left-padded batch: each equals its own batch-1 run.
        ids, mask = left_pad([row[0] for row, *_ in alone])
        cache = buzz.BeehiveCache(policy, model.config, positions=positions)
        logits = model(ids, attention_mask=mask, past_key_values=cache).logits
        assert cache.lengths == [37, 11, 24]
        for i, (row, prompt, _, _) in enumerate(alone):
            torch.testing.assert_close(logits[i, -row.shape[1] :], prompt[0], atol=1e-5, rtol=0)
        for step in range(STEPS):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            token = torch.cat([fed[step] for *_, fed in alone])
            logits = model(token, attention_mask=mask, past_key_values=cache).logits[:, -1]
            expected = torch.cat([steps[step] for _, _, steps, _ in alone])
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "name", "positions"), MATRIX)
def test_greedy_generate_gives_the_same_ids(kind, name, positions):
    model = MODELS[kind]()
    rows = [tokens(1, n, seed=n)[0] for n in (30, 9)]
    ids, mask = left_pad(rows)
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(roomy(name), model.config, positions=positions)
        got = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, past_key_values=cache)
    assert got.tolist() == expected.tolist()


@torch.no_grad()
def test_bfloat16_stays_close(model):
    model = model.bfloat16()
    ids = tokens(2, 30)
    expected = model(ids).logits
    with buzz.patch_model(model):
        for name in ("full", "buzz"):
            cache = buzz.BeehiveCache(roomy(name), model.config)
            logits = model(ids, past_key_values=cache).logits
            assert cache.layers[0].keys.dtype == torch.bfloat16
            torch.testing.assert_close(logits, expected, atol=0.03 * expected.abs().max().item(), rtol=0)


@torch.no_grad()
def test_pads_anywhere_in_a_row_are_ignored(model):
    """Right padding, and pads at the start of a second turn: only tokens enter the cache."""
    first, second = tokens(2, 20, seed=1), tokens(2, 12, seed=2)
    with buzz.patch_model(model):
        policy = buzz.make_policy("buzz", window=8, threshold=12)
        alone = []
        for row, (m, n) in enumerate(((20, 12), (13, 7))):
            cache = buzz.BeehiveCache(policy, model.config)
            a = model(first[row : row + 1, :m], past_key_values=cache).logits[0]
            b = model(second[row : row + 1, -n:], past_key_values=cache).logits[0]
            alone.append((a, b, cache.lengths[0]))
        cache = buzz.BeehiveCache(policy, model.config)
        mask = torch.ones(2, 20).long()
        mask[1, 13:] = 0
        a = model(first, attention_mask=mask, past_key_values=cache).logits
        later = torch.ones(2, 12).long()
        later[1, :5] = 0
        b = model(second, attention_mask=torch.cat([mask, later], dim=1), past_key_values=cache).logits
    assert cache.lengths == [length for _, _, length in alone]
    torch.testing.assert_close(a[1, :13], alone[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(b[0], alone[0][1], atol=1e-5, rtol=0)
    torch.testing.assert_close(b[1, 5:], alone[1][1], atol=1e-5, rtol=0)
