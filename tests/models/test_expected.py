"""Expected attention in a model: a cache is shown the moments of the model's own queries, whatever the batch."""

from __future__ import annotations

import pytest
import torch

import buzz
from tests.models.tiny import tiny

PROMPTS = [[5, 9, 17, 30, 8, 21, 44, 13, 6, 27, 35, 11, 40, 19, 7, 33], [14, 3, 28, 41, 22, 10, 39, 16, 25, 31]]
POLICY = {"capacity": 7, "sink": 2}


def kept(model, prompts, policy):
    """The slots of each row, layer and head that stay of left-padded prompts."""
    cache, told = buzz.BeehiveCache(policy, model), {}
    cache.on_evict = lambda layer, eviction, slots: told.__setitem__(layer, slots)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        model(ids, attention_mask=mask, position_ids=places, past_key_values=cache)
    return [cache.layers[layer].keys[:, :, :7] for layer in range(len(cache.layers))], told


@pytest.mark.parametrize("name", ["llama", "phi3-partial", "smollm3", "opt"])
def test_rows_of_a_batch_keep_what_they_keep_alone(name):
    model = tiny(name)
    policy = buzz.make_policy("expected_attention", **POLICY)
    with buzz.patch_model(model):
        together, _ = kept(model, PROMPTS, policy)
        for row, prompt in enumerate(PROMPTS):
            alone, _ = kept(model, [prompt], policy)
            for ours, theirs in zip(alone, together, strict=True):
                torch.testing.assert_close(theirs[row : row + 1], ours)


def test_the_moments_are_those_of_the_models_queries():
    """Of the first layer, whose queries come from the embeddings alone, against their sums."""
    model = tiny("llama")
    attention = model.model.layers[0].self_attn
    heads, width = model.config.num_attention_heads, attention.head_dim
    seen = {}

    class Watched(buzz.policies.POLICIES["expected_attention"]):
        def select(self, held, length, sampled=0):
            seen.setdefault("held", held)
            return super().select(held, length, sampled)

    with torch.no_grad():
        hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor(PROMPTS[:1])))
        q = attention.q_proj(hidden).view(1, -1, heads, width).transpose(1, 2)[:, :, 4:] * width**-0.5
    with buzz.patch_model(model):
        kept(model, PROMPTS[:1], Watched(**POLICY))
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(16, 16 + 512)[None])
    half = torch.cat([-q[..., width // 2 :], q[..., : width // 2]], dim=-1)
    mean = (q * cos.mean(1) + half * sin.mean(1)).mean(2)
    found = seen["held"].asked.mean
    torch.testing.assert_close(found[:1], mean)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_heads_that_share_are_shown_all_moments(scope):
    model = tiny("llama")
    policy = buzz.make_policy("expected_attention", **POLICY, scope=scope)
    with buzz.patch_model(model):
        caches = []
        for prompts in (PROMPTS, PROMPTS[:1]):
            cache = buzz.BeehiveCache(policy, model)
            longest = max(map(len, prompts))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
            mask = (ids != 0).long()
            model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=3, do_sample=False)
            caches.append(cache)
    assert caches[0].lengths == [9, 9]
    for layer in range(4):
        both, alone = (cache.layers[layer] for cache in caches)
        lengths = [one.pool.layer(one.member).length[0].tolist() for one in (both, alone)]
        assert lengths[0] == lengths[1]


def test_positions_of_the_cache_are_refused():
    model = tiny("llama")
    policy = buzz.make_policy("expected_attention")
    assert buzz.BeehiveCache(policy, model).positions == "original"
    with pytest.raises(ValueError, match=r"^expected_attention tells how .* take positions='original'"):
        buzz.BeehiveCache(policy, model, positions="cache")
