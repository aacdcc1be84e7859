"""How much of a value gets through the output projection, against the model's own projection of one head at a time."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.models import outputs
from buzz.models.families import FAMILIES
from buzz.models.outputs import output_projection, projected_norms
from tests.conftest import left_pad, tokens
from tests.models.tiny import tiny

SNAPKV = {"capacity": 9, "window": 3, "kernel": 1, "values": True}


def naive(attention, value, head, heads):
    """The norm of one value [D] in one query head: all other heads give zeros, and the bias is taken off again."""
    projection, width = output_projection(attention).double(), len(value)
    whole = torch.zeros(heads * width, dtype=torch.float64)
    nothing = projection(whole)
    whole[head * width : (head + 1) * width] = value.double()
    return sum(abs(x) for x in (projection(whole) - nothing).tolist())


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_those_of_one_head_after_the_other(name, monkeypatch):
    """Whether all slots are projected at once or some of them."""
    model = tiny(name)
    backbone = model.model.decoder if name == "opt" else model.model
    attention, config = backbone.layers[0].self_attn, model.config
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    values = torch.randn(2, kv_heads, 5, attention.head_dim, generator=torch.Generator().manual_seed(3))
    found = [
        projected_norms(attention, values, kv_heads),
        projected_norms(attention, values.flatten(0, 1)[:, None], kv_heads),
    ]
    monkeypatch.setattr(outputs, "_ELEMENTS", 1)
    found.append(projected_norms(attention, values, kv_heads))
    for row in range(2):
        for slot in range(5):
            for head in range(kv_heads):
                group = range(head * heads // kv_heads, (head + 1) * heads // kv_heads)
                expected = sum(naive(attention, values[row, head, slot], one, heads) for one in group) / len(group)
                for norms in found:
                    assert norms[row, head, slot].item() == pytest.approx(expected, rel=1e-4)
    assert {norms.dtype for norms in found} == {torch.float32}


def shown(model, ids, scope):
    """The norms that the policy is shown, [R, H, S] each time that it is asked, and the cache."""
    seen = []

    class Watched(buzz.policies.POLICIES["snapkv"]):
        def _critical(self, held, *args):
            seen.append(held.projected("snapkv"))
            return super()._critical(held, *args)

    cache = buzz.BeehiveCache(Watched(**SNAPKV, scope=scope), model)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return seen, cache


@pytest.mark.parametrize("scope", ["head", "layer", "model"])
@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text-mixed"])
def test_a_cache_is_shown_the_norms_of_the_models_values(name, scope):
    """Of every layer that the policy decides over: the values are those that a full cache holds."""
    model, ids = tiny(name), tokens(2, 21, seed=4)
    layers = (model.model.decoder if name == "opt" else model.model).layers
    with buzz.patch_model(model), torch.no_grad():
        norms, cache = shown(model, ids, scope)
        full = buzz.BeehiveCache("full", model)
        model(ids, past_key_values=full)
    values = {i: full.layers[i].values[:, :, :21] for i in cache.integers.counted}
    expected = [projected_norms(layers[i].self_attn, held, held.shape[1]) for i, held in values.items()]  # [B, H, S]
    if scope == "model":  # the heads of all layers side by side
        assert len(norms) == 1
        norms = norms[0].chunk(len(expected), dim=1)
    torch.testing.assert_close(torch.cat(list(norms)), torch.cat(expected))


@pytest.mark.parametrize("scope", ["head", "layer", "model"])
def test_rows_of_a_batch_keep_what_they_keep_alone(scope):
    model, rows = tiny("llama"), [tokens(1, n, seed=n) for n in (21, 16, 8)]
    kept = []

    def watch(layer, eviction, slots):
        for place, row in enumerate(range(len(slots)) if eviction.rows is None else eviction.rows):
            kept[-1][layer, row] = [[slot for slot in head if slot >= 0] for head in slots[place].tolist()]

    with buzz.patch_model(model), torch.no_grad():
        for ids, mask in [left_pad([row[0] for row in rows]), *((row, None) for row in rows)]:
            cache = buzz.BeehiveCache(buzz.make_policy("snapkv", **SNAPKV, scope=scope), model)
            cache.on_evict = watch
            kept.append({})
            model(ids, attention_mask=mask, past_key_values=cache)
    together, *alone = kept
    for row, one in enumerate(alone):
        assert {layer: heads for (layer, _), heads in one.items()} == {
            layer: heads for (layer, r), heads in together.items() if r == row
        }
    assert len(alone[0]) == len(alone[1]) == 4


@pytest.mark.parametrize("scope", ["layer", "model"])
@torch.no_grad()
def test_rows_that_begin_later_keep_what_they_keep_alone(scope):
    """In a pool by then, whose heads have more room than any of them holds, and those of every layer other lengths."""
    model = tiny("llama")
    policy = buzz.make_policy("snapkv", scope=scope, floor=0, **{**SNAPKV, "capacity": 20})
    first, late, more = tokens(1, 80, seed=1)[0], tokens(1, 21, seed=2)[0], tokens(1, 1, seed=3)[0]
    with buzz.patch_model(model):
        together, alone = (buzz.BeehiveCache(policy, model, "cache") for _ in range(2))
        for rows in ([first, late[:0]], [more, late], [more, more]):
            ids, mask = left_pad(rows)
            logits = model(ids, attention_mask=mask, past_key_values=together).logits[1, -1]
            if len(rows[1]):
                expected = model(rows[1][None], past_key_values=alone).logits[0, -1]
                torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_what_stays_depends_on_what_the_projection_lets_through():
    """Of one group of query heads only the first component of each value, and of the other all as before."""
    model, ids, kept = tiny("llama"), tokens(1, 30, seed=5), []
    weight, width = model.model.layers[0].self_attn.o_proj.weight, model.model.layers[0].self_attn.head_dim
    with buzz.patch_model(model):
        for _ in range(2):
            cache = buzz.BeehiveCache(buzz.make_policy("snapkv", **SNAPKV), model)
            cache.on_evict = lambda layer, eviction, slots: kept.append(slots[0].tolist()) if layer == 0 else None
            model(ids, past_key_values=cache)
            for head in range(2):
                weight.data[:, head * width + 1 : (head + 1) * width] = 0
    assert kept[0][0] != kept[1][0]
    assert kept[0][1] == kept[1][1]


class Packed(torch.nn.Linear):
    """Stands for a quantised projection: its weight is no matrix of its own width."""


@pytest.mark.parametrize("how", ["packed", "meta"])
def test_a_projection_that_is_no_plain_matrix_is_refused(how):
    model, ids = tiny("llama"), tokens(1, 20, seed=1)
    attention = model.model.layers[2].self_attn
    with buzz.patch_model(model):
        if how == "packed":
            attention.o_proj.__class__ = Packed
        else:
            attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight.to("meta"))
        cache = buzz.BeehiveCache(buzz.make_policy("snapkv", **SNAPKV), model)
        with pytest.raises(ValueError, match="need an output projection with a plain weight on its device, got"):
            model(ids, past_key_values=cache)
        assert (cache.lengths, cache.nbytes, cache.is_in_call) == ([], 0, False)


def test_a_projection_that_is_spread_is_refused(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(outputs, "has_spread", lambda module: True)
    with pytest.raises(ValueError, match="the whole output projection, which is spread over processes"):
        projected_norms(model.model.layers[0].self_attn, torch.zeros(1, 2, 3, 24), 2)
