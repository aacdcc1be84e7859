"""The Triton kernel against float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from buzz.rows import Rows

pytest.importorskip("triton")

from buzz.kernels.received import received

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


CALLS = [  # starts, counts and firsts
    ([0, 0], [70, 41], [0, 0]),
    ([0, 0], [130, 129], [0, 0]),
    ([9, 33], [5, 4], [0, 0]),
    ([8, 23], [130, 122], [113, 0]),
    ([3, 64], [64, 1], [0, 0]),
]
ASKED = [("sum", 0), ("sum", 17), ("largest", 0), ("largest", 65)]
# Two shapes of heads with whatever is asked; of the others, what is asked most, and in one call what is asked least.
MATRIX = [
    (*heads, *call, *asked)
    for heads in [(1, 16), (1, 80), (3, 64), (4, 96), (8, 128)]
    for call in CALLS
    for asked in ASKED
    if heads in [(1, 16), (3, 64)] or asked == ("sum", 0) or (call is CALLS[3] and asked == ("largest", 65))
]


@pytest.mark.parametrize(("groups", "dim", "starts", "counts", "firsts", "of", "lag"), MATRIX)
def test_what_slots_receive(groups, dim, starts, counts, firsts, of, lag):
    generator = torch.Generator().manual_seed(dim + groups)
    slots, width = max(s + c for s, c in zip(starts, counts, strict=True)) + 3, max(counts)
    q = torch.randn(2, 2 * groups, width, dim, generator=generator)
    k = torch.randn(2, 2, slots, dim, generator=generator)
    logits = torch.einsum("bhgqd,bhcd->bhgqc", q.unflatten(1, (2, groups)).double(), k.double()) * dim**-0.5
    query = torch.arange(width)
    seen = torch.arange(slots) <= torch.tensor(starts)[:, None, None] + query[:, None]
    logits = logits.masked_fill(~seen[:, None, None], -torch.inf)
    valid = (query >= torch.tensor(firsts)[:, None]) & (query < torch.tensor(counts)[:, None])
    behind = torch.arange(slots) <= torch.tensor(starts)[:, None, None] + query[:, None] - lag
    probs = logits.softmax(-1) * (valid[..., None] & behind)[:, None, None]
    expected = probs.sum((2, 3)) if of == "sum" else probs.amax((2, 3))
    lse = logits.logsumexp(-1).flatten(1, 2).float()
    how = {"starts": Rows(starts), "firsts": Rows(firsts), "counts": Rows(counts), "scale": dim**-0.5}
    how |= {"of": of, "lag": lag}
    # The interpreter runs one program after another, always the same.
    got = [received(q.to(DEVICE), k.to(DEVICE), lse.to(DEVICE), **how).cpu() for _ in range(1 + (DEVICE == "cuda"))]
    assert (got[0] - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(got[0] == 0, expected == 0)  # to the slot where nothing counts any more
    assert torch.equal(got[0], got[-1])
