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
WANTED = [(("sum", 0),), (("sum", 17),), (("largest", 0),), (("largest", 65),), (("largest", 65), ("sum", 17))]
WANTED += [(("largest", 3), ("sum", 40)), (("sum", 5), ("largest", 5))]
# Two shapes of heads with whatever is wanted; of the others, what is wanted most, and in one call what is wanted least.
MATRIX = [
    (*heads, *call, wanted)
    for heads in [(1, 16), (1, 80), (3, 64), (4, 96), (8, 128)]
    for call in CALLS
    for wanted in WANTED
    if heads in [(1, 16), (3, 64)] or wanted is WANTED[0] or (call is CALLS[3] and wanted in WANTED[3:5])
]


@pytest.mark.parametrize(("groups", "dim", "starts", "counts", "firsts", "wanted"), MATRIX)
def test_what_slots_receive(groups, dim, starts, counts, firsts, wanted):
    generator = torch.Generator().manual_seed(dim + groups)
    slots, width = max(s + c for s, c in zip(starts, counts, strict=True)) + 3, max(counts)
    q = torch.randn(2, 2 * groups, width, dim, generator=generator)
    k = torch.randn(2, 2, slots, dim, generator=generator)
    logits = torch.einsum("bhgqd,bhcd->bhgqc", q.unflatten(1, (2, groups)).double(), k.double()) * dim**-0.5
    query = torch.arange(width)
    seen = torch.arange(slots) <= torch.tensor(starts)[:, None, None] + query[:, None]
    logits = logits.masked_fill(~seen[:, None, None], -torch.inf)
    valid = (query >= torch.tensor(firsts)[:, None]) & (query < torch.tensor(counts)[:, None])
    lse = logits.logsumexp(-1).flatten(1, 2).float()
    how = {"starts": Rows(starts), "firsts": Rows(firsts), "counts": Rows(counts), "scale": dim**-0.5}
    how |= {"wanted": wanted}
    # The interpreter runs one program after another, always the same.
    runs = [received(q.to(DEVICE), k.to(DEVICE), lse.to(DEVICE), **how) for _ in range(1 + (DEVICE == "cuda"))]
    for (of, lag), got, again in zip(wanted, runs[0], runs[-1], strict=True):
        behind = torch.arange(slots) <= torch.tensor(starts)[:, None, None] + query[:, None] - lag
        probs = logits.softmax(-1) * (valid[..., None] & behind)[:, None, None]
        expected = probs.sum((2, 3)) if of == "sum" else probs.amax((2, 3))
        assert (got.cpu() - expected).norm() <= 1e-5 * expected.norm()
        assert torch.equal(got.cpu() == 0, expected == 0)  # to the slot where nothing counts any more
        assert torch.equal(got, again)
