"""Prompts whose heads share, and expected attention, against references that take one slot at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import POLICIES, Asked, Held, Places, ScoreSpec, make_policy
from tests.policies.naive import NaiveHead, critical
from tests.policies.strategies import legal
from tests.policies.test_sharing import naive_share, places_of

SHARING = [policy for name in ("snapkv", "kvzip") for policy in legal(POLICIES[name]) if policy.scope != "head"]
HEADS = 4  # of two layers


def pooled(policy, scores: list[float]) -> list[float]:
    """What SnapKV ranks a head by; of its window as it is."""
    before, half, found = len(scores) - policy.window, policy.kernel // 2, list(scores)
    for i in range(before):
        near = [scores[j] for j in range(i - half, i + half + 1) if 0 <= j < before]
        found[i] = float(torch.tensor(near).sum() / policy.kernel)
    return found


def naive_kept(policy, scores, norms, length):
    """The kept slots of each head of one row, scores and norms being lists of the heads'."""
    kept = min(length, policy.capacity)
    worth = [pooled(policy, one) if policy.name == "snapkv" else one for one in scores]
    floor = policy.floor if policy.name == "snapkv" else 0.0
    ends = (policy.sink if policy.name == "kvzip" else 0, policy.window)
    places = Places.equal(HEADS, 2, length, torch.device("cpu"))
    chosen = naive_share(torch.tensor(worth).view(1, -1), places, 0, kept, *ends, floor, None, None)
    heads = [sorted(place - h * length for place in chosen if place // length == h) for h in range(HEADS)]
    if not (policy.name == "snapkv" and policy.values):
        return heads
    window = list(range(max(0, length - policy.window), length))
    return [critical(worth[h][: window[0]], norms[h], window, len(heads[h]), int(floor * kept)) for h in range(HEADS)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SHARING), st.integers(0, 30), st.integers(0, 2**16), st.booleans())
def test_shares_of_a_prompt_equal_the_reference(policy, more, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    length, rows = policy.capacity + 1 + more, 2
    scores = torch.randint(0, 5, (rows, HEADS, length), generator=generator).float()
    norms = torch.randint(0, 3, (rows, HEADS, length), generator=generator).float()
    # The pool as it is, or with free places between the heads.
    free = 2 if spread else 0
    places = places_of([[length] * HEADS] * rows, [[length + free] * HEADS] * rows, 2)
    pool, projected = (torch.nn.functional.pad(t, (0, free), value=7.0) for t in (scores, norms))
    held = Held(pool.flatten(1), asked=Asked(projected=projected))
    mask = policy.share(held, places, policy.capacity, length).view(rows, HEADS, -1)
    for row in range(rows):
        expected = naive_kept(policy, scores[row].tolist(), norms[row].tolist(), length)
        assert [mask[row, h].nonzero()[:, 0].tolist() for h in range(HEADS)] == expected


def test_heads_of_a_model_share_what_those_of_a_layer_cannot():
    scores = torch.tensor([0.0, 0.0, 1.0, 1.0])[None, :, None].expand(1, 4, 10).flatten(1)
    sizes = {}
    for scope, layers in (("layer", 1), ("model", 2)):
        policy = make_policy("snapkv", capacity=5, window=1, kernel=1, scope=scope, floor=0.4)
        places = Places.equal(4 // (2 // layers), layers, 10, torch.device("cpu"))
        mask = policy.share(Held(scores[:, : places.size]), places, 5, 10)
        sizes[scope] = mask.view(-1, 10).sum(-1).tolist()
    assert sizes == {"layer": [8, 2], "model": [2, 2, 10, 6]}


def test_what_prompts_are_asked_for():
    assert make_policy("snapkv", window=9).score_spec == ScoreSpec(False, 9)
    assert make_policy("snapkv", window=9, values=True).score_spec == ScoreSpec(False, 9, "mean")
    assert make_policy("snapkv", values=True).reads == {"projected"}
    assert make_policy("kvzip", chunk=99).echo_chunk == 99
    assert make_policy("kvzip").score_spec is None
    assert not make_policy("kvzip").is_blind
    assert make_policy("expected_attention").reads == {"keys", "values", "queries"}
    assert make_policy("expected_attention").positions == "original"


@pytest.mark.parametrize("name", ["kvzip", "expected_attention"])
def test_a_prompt_is_compressed_once(name):
    policy = make_policy(name, capacity=40)
    assert policy.trace(30, 30) == list(range(30, 61))
    assert policy.trace(100, 30) == list(range(40, 71))


def test_layers_of_a_pyramid_share_and_weigh_as_it_does():
    layers = make_policy("pyramidkv", scope="layer", floor=0.5, values=True).per_layer(3)
    assert {(layer.scope, layer.floor, layer.values) for layer in layers} == {("layer", 0.5, True)}
    with pytest.raises(ValueError, match="pyramidkv: scope must be one of head, layer, got 'model'"):
        make_policy("pyramidkv", scope="model")


def test_half_of_a_critical_head_is_chosen_by_attention_alone():
    policy = make_policy("snapkv", capacity=6, window=1, kernel=1, values=True)
    scores = torch.tensor([9.0, 8.0, 7.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    norms = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.5, 0.0])
    slots = policy.select(Held(scores[None, None], asked=Asked(projected=norms[None, None])), 8)
    assert slots[0, 0].tolist() == [0, 1, 3, 4, 5, 7]
    with pytest.raises(ValueError, match="snapkv: select needs the norms of projected values"):
        policy.select(Held(scores[None, None]), 8)


def naive_expected(keys, values, means, covariances, capacity, sink):
    """The kept slots of one KV head: lists of vectors, and the moments of each query head of its group."""
    worth = [0.0] * len(keys)
    for mean, covariance in zip(means, covariances, strict=True):
        logits = []
        for key in keys[sink:]:
            linear = sum(k * m for k, m in zip(key, mean, strict=True))
            square = sum(
                a * c * b for a, row in zip(key, covariance, strict=True) for b, c in zip(key, row, strict=True)
            )
            logits.append(linear + square / 2)
        total = sum(math.exp(logit) for logit in logits)
        for slot, logit in enumerate(logits, start=sink):
            worth[slot] += math.exp(logit) / total / len(means)
    worth = [w * math.sqrt(sum(v * v for v in value)) for w, value in zip(worth, values, strict=True)]
    ranked = sorted(range(sink, len(keys)), key=lambda i: (-worth[i], i))
    return list(range(sink)) + sorted(ranked[: capacity - sink])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.integers(1, 8), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2**16))
def test_expected_attention_equals_the_reference(sink, more, over, group, seed):
    rows, heads, width, capacity = 2, 2, 3, sink + more
    length = capacity + over
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, heads, length, width, generator=generator)
    mean = torch.randn(rows, heads * group, width, generator=generator)
    root = torch.randn(rows, heads * group, width, width, generator=generator) / 2
    held = Held(keys=keys, values=values, asked=Asked(mean, root @ root.mT))
    policy = make_policy("expected_attention", capacity=capacity, sink=sink)
    slots = policy.select(held, length)
    for row in range(rows):
        for head in range(heads):
            own = slice(head * group, (head + 1) * group)
            moments = mean[row, own].tolist(), held.asked.covariance[row, own].tolist()
            expected = naive_expected(keys[row, head].tolist(), values[row, head].tolist(), *moments, capacity, sink)
            assert slots[row, head].tolist() == expected


@pytest.mark.parametrize(("lacking", "what"), [("keys", "keys"), ("values", "values"), ("asked", "queries")])
def test_expected_attention_says_what_it_lacks(lacking, what):
    policy = make_policy("expected_attention", capacity=5)
    shown = {"keys": torch.ones(1, 1, 9, 2), "values": torch.ones(1, 1, 9, 2)}
    shown["asked"] = Asked(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, 2))
    assert policy.select(Held(**shown), 9)[0, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=f"expected_attention: select needs .*{what}"):
        policy.select(Held(**{**shown, lacking: None}), 9)


def test_kvzip_of_equal_heads_is_a_ranking_of_what_was_heard():
    policy = make_policy("kvzip", capacity=5, sink=1, window=1, scope="head")
    scores = torch.rand(1, 1, 12, generator=torch.Generator().manual_seed(1))
    params = {"capacity": 5, "sink": 1, "window": 1}
    head = NaiveHead("kvzip", params, list(range(12)), scores[0, 0].tolist())
    assert policy.select(Held(scores), 12)[0, 0].tolist() == head.kept()[0]
