"""Held to what public implementations keep of the same prompt (recordings/record.py made the records)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from buzz.policies import Asked, Held, Places, Policy, make_policy

RECORD = json.loads((Path(__file__).parent / "recordings" / "kvpress.json").read_text(encoding="utf-8"))
LENGTH, CAPACITY, WINDOW, KERNEL, SINK = (RECORD[name] for name in ("tokens", "capacity", "window", "kernel", "sink"))
SNAPKV = {"capacity": CAPACITY, "window": WINDOW, "kernel": KERNEL}
QUERIES = 2 * WINDOW  # of two query heads: what the record's sums are divided by to be means


def seen(layer: int, scores: str | None, mean: bool = False) -> Held:
    """What the record's model showed of a layer, [1, H, L] and [1, H, L, D]."""
    shown = {name: torch.tensor(values)[None] for name, values in RECORD["layers"][layer].items()}
    found = None if scores is None else shown[scores] / (QUERIES if mean else 1)
    projected = shown["values"].abs().sum(dim=-1)  # the record's output projection is the identity
    return Held(found, shown["keys"], shown["values"], Asked(shown["mean"], shown["covariance"], projected))


def kept_by(policy: Policy, held: Held, layers: int = 1) -> list[list[int]]:
    """The slots that each head keeps."""
    assert policy.plan(LENGTH).kept < LENGTH
    if policy.scope == "head":
        return policy.select(held, LENGTH)[0].tolist()
    heads = held.shape[1]
    pool = held.each(lambda t: t.flatten(1, 2))
    mask = policy.share(pool, Places.equal(heads, layers, LENGTH, torch.device("cpu")), CAPACITY, LENGTH)
    return [head.nonzero()[:, 0].tolist() for head in mask.view(heads, LENGTH)]


@pytest.mark.parametrize(
    ("press", "policy", "scores"),
    [
        ("snapkv", make_policy("snapkv", **SNAPKV), "window"),
        ("adakv_snapkv", make_policy("snapkv", **SNAPKV, scope="layer"), "window"),
        ("criticalkv_snapkv", make_policy("snapkv", **SNAPKV, values=True), "window"),
        ("criticaladakv_snapkv", make_policy("snapkv", **SNAPKV, values=True, scope="layer"), "window"),
        ("expected_attention", make_policy("expected_attention", capacity=CAPACITY, sink=SINK), None),
        ("adakv_expected_attention", make_policy("expected_attention", capacity=CAPACITY, scope="layer"), None),
        ("keydiff", make_policy("keydiff", capacity=CAPACITY), None),
    ],
)
def test_the_same_slots_stay(press, policy, scores):
    for layer, expected in enumerate(RECORD["kept_by"][press]):
        mean = policy.score_spec is not None and policy.score_spec.of == "mean"
        assert kept_by(policy, seen(layer, scores, mean)) == expected


def test_the_same_slots_stay_of_tova():
    """There the newest slot stays whatever it gets; the paper does not protect it."""
    for layer, expected in enumerate(RECORD["kept_by"]["tova"]):
        held = seen(layer, "last")
        held.scores[..., -1] = torch.inf
        assert kept_by(make_policy("tova", capacity=CAPACITY), held) == expected


def test_the_records_tell_the_rules_apart():
    kept = RECORD["kept_by"]
    assert len({json.dumps(slots) for slots in kept.values()}) == len(kept)
    sizes = [len(head) for layer in kept["adakv_snapkv"] for head in layer]
    assert sizes != [CAPACITY] * len(sizes)
    assert sum(sizes) == CAPACITY * len(sizes)


def test_a_pyramid_has_the_same_shape():
    """There the window is part of what a layer gets, here it comes on top, as in the authors' release."""
    layers = make_policy("pyramidkv", capacity=CAPACITY + WINDOW, window=WINDOW, kernel=KERNEL, beta=2).per_layer(2)
    for layer, (policy, expected) in enumerate(zip(layers, RECORD["kept_by"]["pyramidkv"], strict=True)):
        assert [policy.capacity - WINDOW] * len(expected) == [len(head) for head in expected]
        same = dataclasses.replace(policy, capacity=policy.capacity - WINDOW)
        assert kept_by(same, seen(layer, "window")) == expected


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_what_kvzip_heard_is_shared_out_as_there(scope):
    policy = make_policy("kvzip", capacity=CAPACITY, scope=scope, sink=0, window=0)
    scores = torch.tensor(RECORD["kvzip_scores"])  # [layers, H, L]
    expected = RECORD["kept_by"][f"kvzip_{scope}"]
    if scope == "model":
        assert kept_by(policy, Held(scores.flatten(0, 1)[None]), len(scores)) == [*expected[0], *expected[1]]
        return
    for layer, slots in zip(scores, expected, strict=True):
        assert kept_by(policy, Held(layer[None])) == slots
