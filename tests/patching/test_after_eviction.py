"""After evictions: logits and lengths equal those of a model that stores raw keys and attends in float64."""

from __future__ import annotations

import copy
import math
from types import MethodType

import pytest
import torch

import buzz
from tests.conftest import left_pad, tiny_llama, tiny_opt, tokens
from tests.policies.naive import NaiveHead, queries_counted, shared_scores

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


class NaiveAttention:
    """Batch-1 attention of one layer: raw keys in lists, float64, one query and one head at a time."""

    def __init__(self, module, name, params, positions, rotary):
        self.module, self.positions, self.rotary = module, positions, rotary
        self.name, self.params = name, params
        self.base = params.get("logn_base")
        params = {key: value for key, value in params.items() if key != "logn_base"}
        self.q_heads = module.config.num_attention_heads
        self.kv_heads = getattr(module.config, "num_key_value_heads", self.q_heads)
        self.heads = [NaiveHead(name, params) for _ in range(self.kv_heads)]
        self.raw = [{} for _ in range(self.kv_heads)]  # label -> (key, value)
        self.seen = 0

    def rotated(self, vector, position):
        if self.rotary is None:
            return vector
        half = len(vector) // 2
        angles = position * self.rotary.inv_freq.double()
        a, b = vector[:half], vector[half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])

    def __call__(self, hidden):
        m = self.module
        n, scale = hidden.shape[1], m.head_dim**-0.5
        q, k, v = (p(hidden)[0].view(n, -1, m.head_dim) for p in (m.q_proj, m.k_proj, m.v_proj))
        output = torch.zeros(n, self.q_heads, m.head_dim).double()
        labels = list(range(self.seen, self.seen + n))
        first = n - queries_counted(self.name, self.params, n)
        scores = torch.zeros(1, self.kv_heads, len(self.heads[0].slots) + n).double()
        for h, head in enumerate(self.heads):
            before = len(head.slots)
            for i, label in enumerate(labels):
                self.raw[h][label] = (k[i, h], v[i, h])
            slots = head.slots + labels
            factor = math.log(len(slots)) / math.log(self.base) if self.base else 1.0
            for i in range(n):
                visible = slots[: before + i + 1]
                at = list(range(len(visible))) if self.positions == "cache" else visible
                keys = torch.stack(
                    [self.rotated(self.raw[h][label][0], p) for label, p in zip(visible, at, strict=False)]
                )
                values = torch.stack([self.raw[h][label][1] for label in visible])
                group = self.q_heads // self.kv_heads
                for g in range(h * group, (h + 1) * group):
                    probs = torch.softmax(keys @ self.rotated(q[i, g], at[-1]) * scale * factor, dim=0)
                    output[i, g] = probs @ values
                    if i >= first:
                        scores[0, h, : len(visible)] += probs
        for head, received in zip(self.heads, shared_scores(self.name, scores)[0], strict=True):
            head.call(labels, received.tolist())
        self.seen += n
        return getattr(m, "o_proj", getattr(m, "out_proj", None))(output.flatten(1))[None]


def _stand_in(attention):
    return lambda self, hidden_states, **_: (attention(hidden_states), None)


def naive_model(model, name, params, positions):
    """A float64 copy of the model whose attention is naive; returns it with its attentions."""
    twin = copy.deepcopy(model).double()
    backbone = twin.model if hasattr(twin.model, "layers") else twin.model.decoder
    attentions = []
    for layer in backbone.layers:
        attention = NaiveAttention(layer.self_attn, name, params, positions, getattr(backbone, "rotary_emb", None))
        layer.self_attn.forward = MethodType(_stand_in(attention), layer.self_attn)
        attentions.append(attention)
    return twin, attentions


@torch.no_grad()
def naive_logits(model, calls, name, params, positions):
    """Logits of the last token of each call, and what every layer and head holds after it."""
    twin, attentions = naive_model(model, name, params, positions)
    logits, held, seen = [], [], 0
    for ids in calls:
        start = len(attentions[0].heads[0].slots) if positions == "cache" else seen
        position_ids = torch.arange(start, start + ids.shape[1])[None]
        logits.append(twin(ids, position_ids=position_ids, use_cache=False).logits[:, -1])
        held.append([[list(head.slots) for head in a.heads] for a in attentions])
        seen += ids.shape[1]
    return logits, held


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize(("name", "params"), SETTINGS)
@pytest.mark.parametrize("build", [tiny_llama, tiny_opt])
@torch.no_grad()
def test_every_call_equals_the_naive_model(build, name, params, positions):
    model = build()
    rows = [tokens(1, n, seed=n)[0] for n in (41, 23)]
    fed = tokens(2, 35, seed=9)
    expected = [
        naive_logits(model, [row[None], *fed[i : i + 1].split(1, dim=1)], name, params, positions)
        for i, row in enumerate(rows)
    ]
    ids, mask = left_pad(rows)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy(name, **params), model.config, positions=positions)
        for call in range(36):
            if call:
                ids, mask = fed[:, call - 1 : call], torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
            for row, (wanted, held) in enumerate(expected):
                torch.testing.assert_close(logits[row].double(), wanted[call][0], atol=1e-4, rtol=0)
                for layer in range(3):
                    assert cache.layer_lengths(layer)[row] == len(held[call][layer][0])


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
    rows = [tokens(1, n, seed=n)[0] for n in (41, 23, 35)]
    fed = tokens(3, 35, seed=9)
    expected = [
        naive_logits(model, [row[None], *fed[i : i + 1].split(1, dim=1)], name, params, positions)
        for i, (row, params) in enumerate(zip(rows, by_row, strict=True))
    ]
    ids, mask = left_pad(rows)
    policies = buzz.PerRow([buzz.make_policy(name, **params) for params in by_row])
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(policies, model.config, positions=positions)
        for call in range(36):
            if call:
                ids, mask = fed[:, call - 1 : call], torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
            for row, (wanted, held) in enumerate(expected):
                torch.testing.assert_close(logits[row].double(), wanted[call][0], atol=1e-4, rtol=0)
                assert cache.lengths[row] == len(held[call][0][0])


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
            torch.testing.assert_close(logits.double(), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_layers_with_different_policies_equal_the_naive_model():
    model = tiny_llama()
    layers = [("streaming", {"window": 9}), ("buzz", {"window": 6, "threshold": 8}), ("h2o", {"heavy": 5, "window": 5})]
    ids = list(tokens(1, 60).split([40] + [1] * 20, dim=1))
    twin, attentions = naive_model(model, "full", {}, "cache")
    for attention, (name, params) in zip(attentions, layers, strict=True):
        full = {"sink": 4, "stride": 5, **params} if name != "h2o" else params
        attention.heads = [NaiveHead(name, full) for _ in attention.heads]
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache([buzz.make_policy(name, **params) for name, params in layers], model.config)
        for call in ids:
            expected = twin(call, use_cache=False).logits[:, -1]
            logits = model(call, past_key_values=cache).logits[:, -1]
            torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)
