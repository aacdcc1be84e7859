"""The path of prompts and chunks: of a CPU as it is, of a GPU with PyTorch's kernels replaced by a plain one."""

from __future__ import annotations

import pytest
import torch

from buzz.attention import attend, blocks, fused, naive
from buzz.attention.wanted import Wanted
from buzz.benchmark.kernels import reference
from buzz.policies import ScoreSpec
from buzz.rows import Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERYTHING = ScoreSpec(accumulate=True, queries=None)


def plain_causal(q, k, v, scale):
    """What `fused.causal` is to give, from all logits in the open."""
    width, slots = q.shape[2], k.shape[2]
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    logits = q @ k.transpose(2, 3) * scale
    hidden = torch.ones(width, slots, dtype=torch.bool, device=q.device).triu(slots - width + 1)
    logits = logits.masked_fill(hidden, -torch.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def plain_rows(q, k, v, queries, slots, longest, most, dropout, is_causal, mask, *, scale):
    """What PyTorch's attention of rows one after another is to give, q [N, H, D]; its arguments are checked."""
    assert (dropout, is_causal, mask, queries.dtype, slots.dtype) == (0.0, True, False, torch.int32, torch.int32)
    (queries, of_queries), (slots, of_slots) = ((at.tolist(), at.diff().tolist()) for at in (queries, slots))
    assert (queries[0], queries[-1], slots[0], slots[-1]) == (0, len(q), 0, len(k))
    assert longest >= max(2, *of_queries)
    assert most >= max(of_slots)
    rows = [
        plain_causal(*(t.transpose(0, 1)[None] for t in parts), scale)
        for parts in zip(q.split(of_queries), k.split(of_slots), v.split(of_slots), strict=True)
    ]
    outputs, lses = (torch.cat([of[0] for of in parts], dim=1) for parts in zip(*rows, strict=True))
    return outputs.transpose(0, 1), lses


@pytest.mark.parametrize(
    ("starts", "counts", "last"),
    [
        ([0, 0], [40, 40], None),
        ([0, 0], [40, 17], [40, 3]),
        ([12, 12], [20, 9], None),  # a chunk; one row ends early
        ([12, 12], [20, 20], [8, 20]),
        ([30, 5], [20, 3], None),  # ragged
        ([30, 0], [20, 0], [5, 5]),  # a row that takes no part
    ],
)
@pytest.mark.parametrize(
    "wanted", [[("sum", 0)], [("sum", 7)], [("largest", 0)], [("largest", 7)], [("largest", 9), ("sum", 3)]]
)
@pytest.mark.parametrize("threads", [1, 8])
def test_prompts_and_chunks(monkeypatch, threads, starts, counts, last, wanted):
    generator = torch.Generator().manual_seed(sum(starts))
    slots = max(s + c for s, c in zip(starts, counts, strict=True)) + 2
    q = torch.randn(2, 6, max(counts), 16, generator=generator).to(DEVICE)
    k, v = (torch.randn(2, 2, slots, 16, generator=generator).to(DEVICE) for _ in range(2))
    if DEVICE == "cuda":  # whose kernels take half precision alone
        monkeypatch.setattr(fused, "causal", plain_causal)
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", plain_rows, raising=False)
    monkeypatch.setattr(blocks, "_QUERIES", 16)
    monkeypatch.setattr(blocks, "_SLOTS", 8)
    monkeypatch.setattr(blocks, "_LEAST", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # heads are cut up for more than they are
    firsts = Rows([0, 0] if last is None else [max(0, c - n) for c, n in zip(counts, last, strict=True)])
    how = {"starts": Rows(starts), "counts": Rows(counts), "scale": 0.25}
    wanted = [Wanted(*one) for one in wanted]
    output, results = fused.attend_scored(q, k, v, firsts=firsts, wanted=wanted, **how)
    expected, _ = naive.attend(q, k, v, **how)
    whole = [torch.zeros_like(result) for result in results]
    for row, (start, first, count) in enumerate(zip(starts, firsts, counts, strict=True)):
        torch.testing.assert_close(output[row, :, :count], expected[row, :, :count], atol=1e-5, rtol=1e-4)
        if count > first:
            one = slice(row, row + 1)
            how = {
                "starts": Rows([start + first]),
                "counts": Rows([count - first]),
                "scale": 0.25,
                "wanted": wanted,
            }
            for target, part in zip(whole, naive.attend(q[one, :, first:count], k[one], v[one], **how)[1], strict=True):
                target[one] = part
    for result, target in zip(results, whole, strict=True):
        torch.testing.assert_close(result, target, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)], ids=str
)
@pytest.mark.parametrize("spec", [EVERYTHING, ScoreSpec(True, None, "largest", 48, 50.0, 16)], ids=["sum", "comb"])
@pytest.mark.parametrize(("start", "width"), [(0, 700), (900, 333)])
def test_long_prompts_on_a_cpu_have_the_scores_of_the_reference(monkeypatch, start, width, spec, dtype, most):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 6, width, 32, generator=generator).mul(2).to(dtype)
    k, v = (torch.randn(1, 2, start + width, 32, generator=generator).to(dtype) for _ in range(2))
    how = {"starts": [start], "scale": 32**-0.5, "spec": spec}
    assert fused.gives_scores(q, k)
    output, scores = attend(q.requires_grad_(), k, v, **how)  # as of a call outside of no_grad
    assert output.requires_grad
    assert not scores.requires_grad
    q, output = q.detach(), output.detach()
    monkeypatch.setattr(fused, "_LONG", 2**40)
    expected, exact = attend(q.float(), k.float(), v.float(), **how)
    assert (output.float() - expected).norm() <= max(1e-6, 2 * most) * expected.norm()
    assert (scores - exact).norm() <= most * exact.norm()
    assert torch.equal(scores == 0, exact == 0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("width", [37, 300, 1000, 2048, 2300])
def test_pytorchs_kernels_align_the_last_query_with_the_last_key(dim, width):
    generator = torch.Generator().manual_seed(dim)
    q = torch.randn(2, 6, width, dim, generator=generator).bfloat16()
    for slots in (width, width + 1, width + 555):
        k, v = (torch.randn(2, 2, slots, dim, generator=generator).bfloat16() for _ in range(2))
        output, lse = fused.causal(q.cuda(), k.cuda(), v.cuda(), dim**-0.5)
        expected, expected_lse = plain_causal(q.double(), k.double(), v.double(), dim**-0.5)
        assert (output.cpu() - expected).norm() / expected.norm() < 1e-2
        assert lse.dtype == torch.float32
        torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=1e-2, rtol=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "dim"), [(1, 128), (3, 64), (4, 80), (8, 96), (2, 256)])
@pytest.mark.parametrize("length", [2, 63, 64, 129, 1000, 4097, 33001])
def test_long_prompts(length, group, dim, dtype):
    """Output and scores of `attend` against float32, all rows together and row by row; twice the same bits."""
    generator = torch.Generator("cuda").manual_seed(length + dim)
    how = {"device": "cuda", "dtype": dtype, "generator": generator}
    # As projections leave them: the heads of a token lie together.
    q, k, v = (torch.randn(2, length, n, dim, **how).transpose(1, 2) for n in (2 * group, 2, 2))
    exact = [reference(q[row, None], k[row, None], v[row, None], dim**-0.5) for row in range(2)]
    short = (length + 1) // 2
    shorter = reference(q[1:, :, :short], k[1:, :, :short], v[1:, :, :short], dim**-0.5)
    for counts, wanted in (([length, length], exact), ([length, short], [exact[0], shorter])):
        runs = [attend(q, k, v, starts=[0, 0], counts=counts, scale=dim**-0.5, spec=EVERYTHING) for _ in range(2)]
        for row, (count, (output, scores, _)) in enumerate(zip(counts, wanted, strict=True)):
            got, received = runs[0][0][row, :, :count], runs[0][1][row]
            assert (got.float() - output[0]).norm() < 1e-2 * output.norm()
            assert (received[:, :count] - scores[0]).norm() < 1e-3 * scores.norm()
            assert not received[:, count:].any()
            assert torch.equal(got, runs[1][0][row, :, :count])
        assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "dim"), [(1, 128), (4, 80), (8, 64), (2, 256)])
@pytest.mark.parametrize(
    ("starts", "counts"), [([0, 0], [3000, 3000]), ([0, 0], [3000, 1111]), ([900, 37], [700, 650])]
)
@pytest.mark.parametrize("wanted", [("sum",), ("mean",), ("largest",), ("largest", 3.0, 7)])
@pytest.mark.parametrize("beyond", [0, 16, 500])
def test_long_prompts_from_afar(beyond, wanted, starts, counts, group, dim, dtype):
    """Scores of `attend` against the reference in float32; twice the same bits."""
    generator = torch.Generator("cuda").manual_seed(dim)
    how = {"device": "cuda", "dtype": dtype, "generator": generator}
    slots = max(s + c for s, c in zip(starts, counts, strict=True))
    q = torch.randn(2, max(counts), 2 * group, dim, **how).transpose(1, 2)
    k, v = (torch.randn(2, slots, 2, dim, **how).transpose(1, 2) for _ in range(2))
    for queries in (None, 400):
        how = {
            "starts": starts,
            "counts": counts,
            "scale": dim**-0.5,
            "spec": ScoreSpec(False, queries, wanted[0], beyond, *wanted[1:]),
        }
        scores, again = (attend(q, k, v, **how)[1] for _ in range(2))
        expected = attend(q.float(), k.float(), v.float(), **how)[1]
        assert (scores - expected).norm() < 1e-3 * expected.norm()
        assert torch.equal(scores == 0, expected == 0)
        assert torch.equal(scores, again)
