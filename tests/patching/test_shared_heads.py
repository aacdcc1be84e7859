"""Policies whose heads share their slots, in a whole model: what is told of them, and where they cannot be."""

from __future__ import annotations

import pytest
import torch

import buzz
from tests.conftest import left_pad, tiny_llama, tokens

SMALL = {"capacity": 12, "sink": 1, "window": 3, "lazy": 3, "beyond": 4, "near": 2}


@pytest.mark.parametrize("scope", ["head", "layer", "model"])
def test_stats_tell_the_longest_and_the_shortest_head(scope):
    model = tiny_llama()
    buzz.patch_model(model)
    cache = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL, scope=scope), model)
    assert cache.stats()["longest_head"] == []
    ids, mask = left_pad([tokens(1, n, seed=n)[0] for n in (40, 9)])
    model(ids, attention_mask=mask, past_key_values=cache)
    stats = cache.stats()
    assert stats["mean_tokens"] == [12, 9]
    assert (stats["longest_head"][1], stats["shortest_head"][1]) == (9, 9)
    if scope == "head":
        assert (stats["longest_head"][0], stats["shortest_head"][0]) == (12, 12)
    else:
        assert stats["shortest_head"][0] < 12 < stats["longest_head"][0]


def test_layers_on_several_devices_cannot_share(monkeypatch):
    model = tiny_llama()
    buzz.patch_model(model)
    first = next(model.model.layers[0].parameters())
    monkeypatch.setattr(type(first), "device", property(lambda p: torch.device("meta" if p is first else "cpu")))
    cache = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL), model)
    with pytest.raises(ValueError, match=r"share slots in comb are on 2 devices: take scope='layer'"):
        model(tokens(1, 20), past_key_values=cache)
    assert cache.lengths == []


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_heads_in_several_processes_cannot_share(scope):
    cache = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL, scope=scope), tiny_llama())
    with pytest.raises(ValueError, match="share slots in comb are spread over processes: take scope='head'"):
        cache.check_place([], spread=True)
    alike = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL, scope="head"), tiny_llama())
    alike.check_place([torch.device("cpu"), torch.device("meta")], spread=True)
