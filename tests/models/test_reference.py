"""What families are held against is right itself, and the tiny models feel what tells their families apart."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import tokens
from tests.models.reference import NaiveModel
from tests.models.tiny import CASES, LAYERS, tiny

POSITIONS = ["cache", "original"]
CALLS = [25, 1, 1, 6, 1]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_without_an_eviction_it_is_the_model(name, positions):
    model, ids = tiny(name).double(), tokens(1, sum(CALLS))
    naive = NaiveModel(model, positions=positions)
    logits = torch.cat([naive(call) for call in ids.split(CALLS, dim=1)])
    torch.testing.assert_close(logits, model(ids).logits[0], atol=1e-6, rtol=0)
    assert naive.lengths == [sum(CALLS)] * LAYERS


@pytest.mark.parametrize("name", CASES)
def test_positions_are_felt_after_evictions(name):
    ids, last, lengths = tokens(1, sum(CALLS)), [], []
    for positions in POSITIONS:
        naive = NaiveModel(tiny(name), "streaming", {"sink": 2, "window": 10}, positions)
        last.append([naive(call)[-1] for call in ids.split(CALLS, dim=1)][-1])
        lengths.append(naive.lengths)
    assert lengths[0] == lengths[1]
    evicted = [length for length in lengths[0] if length != sum(CALLS)]
    assert set(evicted) <= {12}
    assert ((last[0] - last[1]).abs().max() > 0.02) == bool(evicted)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_theta": 100.0}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2-windows", {"use_sliding_window": False}),
        ("qwen3-windows", {"max_window_layers": 3}),
        ("qwen3-windows", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 8}),
        ("phi3-partial", {"partial_rotary_factor": 1.0}),
        ("gemma3_text", {"query_pre_attn_scalar": 24}),
        ("gemma3_text-mixed", {"layer_types": ["full_attention"] * LAYERS}),
        ("gemma3_text-mixed", {"sliding_window": 8}),
        ("gemma3_text-mixed", {"rope_local_base_freq": 1_000_000.0}),
        ("gemma3_text-capped", {"final_logit_softcapping": None}),
        ("smollm3", {"no_rope_layers": [1] * LAYERS}),
        ("smollm3-windows", {"sliding_window": 8}),
        ("granite-multipliers", {"embedding_multiplier": 1.0}),
        ("granite-multipliers", {"residual_multiplier": 1.0}),
        ("granite-multipliers", {"logits_scaling": 1.0}),
        ("granite-multipliers", {"attention_multiplier": 0.25}),
        ("mixtral", {"sliding_window": 8}),
        ("qwen3_moe-windows", {"sliding_window": 8}),
    ],
)
@torch.no_grad()
def test_what_a_configuration_says_is_felt(name, changes):
    model, other, ids = tiny(name), tiny(name, **changes), tokens(1, 33)
    for weight, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)
    assert (model(ids).logits - other(ids).logits)[0, -1].abs().max() > 0.02


@pytest.mark.parametrize("norm", ["q_norm", "k_norm"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "gemma3_text-mixed", "olmo2", "qwen3_moe"])
@torch.no_grad()
def test_norms_of_queries_and_keys_are_felt(name, norm):
    model, ids = tiny(name), tokens(1, 33)
    logits = model(ids).logits[0, -1]
    setattr(model.model.layers[2].self_attn, norm, torch.nn.Identity())
    assert (model(ids).logits[0, -1] - logits).abs().max() > 0.02
