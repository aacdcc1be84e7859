"""After evictions, by every policy: logits and lengths equal those of a model that attends in float64 over lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import buzz
from buzz.policies import Plan, ScoreSpec, SnapKVPolicy
from tests.conftest import left_pad, tiny_llama, tiny_opt, tokens
from tests.models.reference import NaiveModel

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")

SETTINGS = [
    ("full", {}),
    ("local", {"sink": 0, "window": 12}),
    ("streaming", {"sink": 2, "window": 10}),
    ("h2o", {"heavy": 7, "window": 6}),
    ("buzz", {"sink": 2, "window": 6, "stride": 5, "threshold": 9}),
    ("buzz", {"sink": 0, "window": 5, "stride": 3, "threshold": 0}),
    ("buzz", {"sink": 1, "window": 4, "stride": 2, "threshold": 6}),
    ("buzz", {"sink": 2, "window": 6, "stride": 4, "threshold": 9, "logn_base": 16}),
    ("buzz_fast", {"sink": 2, "window": 6, "stride": 5, "threshold": 9}),
    ("buzz_no_max", {"sink": 2, "window": 6, "stride": 5, "threshold": 9}),
    ("snapkv", {"capacity": 14, "window": 4, "kernel": 3}),
    ("tova", {"capacity": 12}),
    ("random", {"capacity": 15, "sink": 2, "window": 6, "seed": 3}),
]


def naive_logits(model, calls, name, params, positions):
    """Logits [V] of the last token of each call, and what every layer holds after it."""
    naive = NaiveModel(model, name, params, positions)
    logits, held = [], []
    for ids in calls:
        logits.append(naive(ids)[-1])
        held.append(naive.lengths)
    return logits, held


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize(("name", "params"), SETTINGS)
@pytest.mark.parametrize("build", [tiny_llama, tiny_opt])
@torch.no_grad()
def test_every_call_equals_the_naive_model(build, name, params, positions):
    model = build()
    rows = [tokens(1, n, seed=n)[0] for n in (37, 23)]
    fed = tokens(2, 20, seed=9)
    expected = [
        naive_logits(model, [row[None], *fed[i : i + 1].split(1, dim=1)], name, params, positions)
        for i, row in enumerate(rows)
    ]
    ids, mask = left_pad(rows)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy(name, **params), model.config, positions=positions)
        for call in range(21):
            if call:
                ids, mask = fed[:, call - 1 : call], torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
            for row, (wanted, held) in enumerate(expected):
                torch.testing.assert_close(logits[row].double(), wanted[call], atol=1e-4, rtol=0)
                for layer in range(3):
                    assert cache.layer_lengths(layer)[row] == held[call][layer]


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize(
    ("name", "by_row"),
    [
        (
            "buzz",
            [
                {"sink": s, "window": w, "stride": c, "threshold": t}
                for s, w, c, t in [(2, 6, 5, 9), (0, 9, 3, 4), (2, 6, 5, 12)]
            ],
        ),
        ("h2o", [{"heavy": 7, "window": 6}, {"heavy": 3, "window": 9}, {"heavy": 12, "window": 4}]),
        ("snapkv", [{"capacity": c, "window": w, "kernel": 3} for c, w in [(14, 4), (30, 6), (9, 2)]]),
        ("tova", [{"capacity": 12}, {"capacity": 30}, {"capacity": 7}]),
        ("random", [{"capacity": c, "sink": 2, "window": 6} for c in (15, 9, 20)]),
    ],
)
@torch.no_grad()
def test_rows_with_policies_of_their_own_equal_the_naive_model(positions, name, by_row):
    model = tiny_llama()
    rows = [tokens(1, n, seed=n)[0] for n in (37, 23, 29)]
    fed = tokens(3, 20, seed=9)
    expected = [
        naive_logits(model, [row[None], *fed[i : i + 1].split(1, dim=1)], name, params, positions)
        for i, (row, params) in enumerate(zip(rows, by_row, strict=True))
    ]
    ids, mask = left_pad(rows)
    policies = buzz.PerRow([buzz.make_policy(name, **params) for params in by_row])
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(policies, model.config, positions=positions)
        for call in range(21):
            if call:
                ids, mask = fed[:, call - 1 : call], torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
            for row, (wanted, held) in enumerate(expected):
                torch.testing.assert_close(logits[row].double(), wanted[call], atol=1e-4, rtol=0)
                assert cache.lengths[row] == held[call][0]


@pytest.mark.parametrize("positions", ["cache", "original"])
@torch.no_grad()
def test_chunked_prompts_equal_the_naive_model(positions):
    """Chunks are calls: the naive model takes the same ones, so evictions between chunks are the same too."""
    model = tiny_llama()
    params = {"sink": 2, "window": 6, "stride": 5, "threshold": 9}
    chunks = list(tokens(1, 100).split(17, dim=1))
    expected, _ = naive_logits(model, chunks, "buzz", params, positions)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy("buzz", **params), model.config, positions=positions)
        for ids, wanted in zip(chunks, expected, strict=True):
            logits = model(ids, past_key_values=cache).logits[:, -1]
            torch.testing.assert_close(logits[0].double(), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_layers_with_different_policies_equal_the_naive_model():
    model = tiny_llama()
    layers = [("streaming", {"window": 9}), ("buzz", {"window": 6, "threshold": 8}), ("h2o", {"heavy": 5, "window": 5})]
    ids = list(tokens(1, 60).split([40] + [1] * 20, dim=1))
    naive = NaiveModel(model, positions="cache")
    for attention, (name, params) in zip(naive.attentions, layers, strict=True):
        full = {"sink": 4, "stride": 5, **params} if name != "h2o" else params
        attention.name, attention.params = name, full
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache([buzz.make_policy(name, **params) for name, params in layers], model.config)
        for call in ids:
            logits = model(call, past_key_values=cache).logits[0]
            torch.testing.assert_close(logits.double(), naive(call), atol=1e-4, rtol=0)


@dataclass(frozen=True, repr=False)
class FewInTexts(SnapKVPolicy):
    """Scores add up: in a step all attention, in a text that of the last queries alone, and their mean."""

    name: ClassVar[str] = "few_in_texts"

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(True, self.window)

    @property
    def prompt_spec(self) -> ScoreSpec | None:
        return ScoreSpec(True, self.window, "mean")

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return Plan(self.capacity, 1) if length > self.capacity else None


@torch.no_grad()
def test_a_token_beside_a_text_is_a_step_where_rows_count_other_queries():
    model, policies = tiny_llama(), [FewInTexts(capacity=9, window=w, kernel=1) for w in (3, 2, 5)]
    calls = [[tokens(1, n, seed=n)[0] for n in sizes] for sizes in [(19, 1, 14), (1, 23, 16), (2, 1, 1), (9, 9, 9)]]
    with buzz.patch_model(model):
        together = buzz.BeehiveCache(buzz.PerRow(policies), model, "cache")
        alone = [buzz.BeehiveCache(policy, model, "cache") for policy in policies]
        for rows in calls:
            ids, mask = left_pad(rows)
            logits = model(ids, attention_mask=mask, past_key_values=together).logits[:, -1]
            for row, (text, cache) in enumerate(zip(rows, alone, strict=True)):
                expected = model(text[None], past_key_values=cache).logits[0, -1]
                torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)
