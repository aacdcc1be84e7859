"""Moments of queries against sums in float64, with the rotations of transformers itself."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as of_llama
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as of_phi3

from buzz.models.moments import moments
from buzz.models.positions import Learned, Rotary
from buzz.rows import Rows
from tests.models.tiny import tiny

COUNTS, SEEN, SCALE = (9, 6, 3, 0), (0, 2, 0, 5), 0.3


def queries_of(model):
    config = model.config
    width = model.model.layers[0].self_attn.head_dim
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(COUNTS), config.num_attention_heads, max(COUNTS), width, generator=generator)


def naive(queries, ahead, model, apply):
    """Mean and covariance of some queries of one head [n, D], turned by the mean of 512 rotations: R m and R C R^T."""
    width = queries.shape[1]
    if not len(queries):
        return torch.zeros(width).double(), torch.zeros(width, width).double()
    cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(ahead, ahead + 512)[None])
    units = torch.eye(width, dtype=torch.float64)[None, None]  # the columns of R are what becomes of these
    turn = sum(apply(units, units, cos[:, t : t + 1], sin[:, t : t + 1])[0][0, 0] for t in range(512)).T / 512
    mean = sum(queries.double()) / len(queries)
    covariance = sum(torch.outer(q - mean, q - mean) for q in queries.double()) / len(queries)
    return turn @ mean * SCALE, turn @ covariance @ turn.T * SCALE**2


@pytest.mark.parametrize(("name", "apply"), [("llama", of_llama), ("phi3-partial", of_phi3)])
def test_moments_are_those_of_the_rows_own_queries(name, apply):
    model = tiny(name)
    positions, module = Rotary(model.model), model.model.layers[0].self_attn
    positions.renew()
    q, ahead = queries_of(model), [seen + count for seen, count in zip(SEEN, COUNTS, strict=True)]
    junk = q.masked_fill(torch.arange(q.shape[2])[:, None] >= torch.tensor(COUNTS)[:, None, None, None], torch.nan)
    found = moments(
        positions.ordered(module, junk), Rows(COUNTS), Rows(SEEN), torch.tensor(ahead), SCALE, module, positions, True
    )
    assert {t.dtype for t in found[:2]} == {torch.float32}
    for row, (count, seen) in enumerate(zip(COUNTS, SEEN, strict=True)):
        for head in range(q.shape[1]):
            own = q[row, head, max(0, 4 - seen) : count]
            mean, covariance = naive(own, ahead[row], model, apply)
            mean = positions.ordered(module, mean)
            covariance = positions.ordered(module, positions.ordered(module, covariance).T).T
            torch.testing.assert_close(found.mean[row, head].double(), mean, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.covariance[row, head].double(), covariance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rotary", [True, False])
def test_what_does_not_rotate_is_not_turned(rotary):
    model = tiny("llama" if rotary else "opt")
    q = torch.randn(1, 2, 7, 4, generator=torch.Generator().manual_seed(1))
    positions = Rotary(model.model) if rotary else Learned(model.model.decoder)
    found = moments(q, Rows([7]), Rows([0]), torch.tensor([7]), 1.0, None, positions, rotates=not rotary)
    torch.testing.assert_close(found.mean, q[:, :, 4:].mean(2))
    for head in range(2):
        torch.testing.assert_close(found.covariance[0, head], torch.cov(q[0, head, 4:].T, correction=0))
