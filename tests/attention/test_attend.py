"""attend() against a loop over rows, heads and queries in float64."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.attention import attend, one
from buzz.attention import naive as naive_attention
from buzz.attention.wanted import Wanted
from buzz.policies import ScoreSpec
from buzz.rows import Rows


def naive(q, k, v, starts, counts, scale, queries, window=None, of="sum", beyond=0, mean=0.0, near=0):
    """Output and scores, one query at a time; what every slot gets is gathered probability by probability."""
    q, k, v = q.double(), k.double(), v.double()
    B, Hq, Lq, D = q.shape
    Hkv, C = k.shape[1:3]
    output, scores = torch.zeros(B, Hq, Lq, D).double(), torch.zeros(B, Hkv, C).double()
    received, beside = {}, {}
    for b in range(B):
        for h in range(Hq):
            for i in range(counts[b]):
                end = starts[b] + i + 1
                begin = 0 if window is None else max(0, end - window)
                kv = h // (Hq // Hkv)
                probs = torch.softmax(k[b, kv, begin:end] @ q[b, h, i] * scale, dim=0)
                output[b, h, i] = probs @ v[b, kv, begin:end]
                last = queries[b] if isinstance(queries, tuple) else queries
                if last is None or i >= counts[b] - last:
                    for slot in range(begin, end):
                        for away, found in ((beyond, received), (near, beside)):
                            if away == 0 or starts[b] + i - slot > away:
                                found.setdefault((b, kv, slot), []).append(float(probs[slot - begin]))
    join = {"sum": sum, "mean": statistics.fmean, "largest": max}[of]
    for place, probs in received.items():
        scores[place] = join(probs)
    for place, probs in beside.items():
        scores[place] += mean * statistics.fmean(probs)
    return output, scores


def draw_call(seed, rows, kv_heads, groups, ragged, fresh, width):
    """Random q, k, v, starts and counts; what lies past a row's end is large but finite."""
    g = torch.Generator().manual_seed(seed)
    starts = torch.zeros(rows, dtype=torch.int64) if fresh else torch.randint(0, 9, (rows,), generator=g)
    counts = torch.full((rows,), width)
    if ragged:
        counts = torch.randint(1, width + 1, (rows,), generator=g)
    else:
        starts[:] = starts[0]
    slots = int((starts + counts).max())
    q, k, v = (torch.randn(rows, h, n, 8, generator=g) for h, n in
               ((kv_heads * groups, width), (kv_heads, slots), (kv_heads, slots)))  # fmt: skip
    for row in range(rows):
        k[row, :, starts[row] + counts[row] :] = 1e4
        v[row, :, starts[row] + counts[row] :] = -1e4
    return q, k, v, starts.tolist(), counts.tolist()


def check(output, expected, counts, tolerance=1e-5):
    for row, count in enumerate(counts):
        torch.testing.assert_close(
            output[row, :, :count].double(), expected[row, :, :count], atol=tolerance, rtol=tolerance
        )


calls = given(
    st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.booleans(), st.booleans(),
    st.integers(1, 9), st.none() | st.integers(1, 20),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@calls
def test_output_and_scores(seed, rows, kv_heads, groups, ragged, fresh, width, window):
    q, k, v, starts, counts = draw_call(seed, rows, kv_heads, groups, ragged, fresh, width)
    each = tuple(1 + (seed + row) % 4 for row in range(rows))  # a number for every row
    for queries in (None, 1, 3, each):
        spec = ScoreSpec(accumulate=True, queries=queries)
        output, scores = attend(q, k, v, starts=starts, counts=counts, scale=0.3, spec=spec, window=window)
        expected, expected_scores = naive(q, k, v, starts, counts, 0.3, queries, window)
        check(output, expected, counts)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores.double(), expected_scores, atol=1e-5, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@calls
def test_means_and_largest_from_afar(seed, rows, kv_heads, groups, ragged, fresh, width, window):
    q, k, v, starts, counts = draw_call(seed, rows, kv_heads, groups, ragged, fresh, width)
    queries = (None, 3, tuple(1 + (seed + row) % 4 for row in range(rows)))[seed % 3]
    for of, *beside in (("sum",), ("mean",), ("largest",), ("largest", 2.5, seed % 5)):
        for beyond in (0, 1 + seed % 7):
            spec = ScoreSpec(False, queries, of, beyond, *beside)
            output, scores = attend(q, k, v, starts=starts, counts=counts, scale=0.3, spec=spec, window=window)
            expected, expected_scores = naive(q, k, v, starts, counts, 0.3, queries, window, of, beyond, *beside)
            check(output, expected, counts)
            assert scores.dtype == torch.float32
            torch.testing.assert_close(scores.double(), expected_scores, atol=1e-5, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@calls
def test_output_without_scores(seed, rows, kv_heads, groups, ragged, fresh, width, window):
    q, k, v, starts, counts = draw_call(seed, rows, kv_heads, groups, ragged, fresh, width)
    output, scores = attend(q, k, v, starts=torch.tensor(starts), counts=counts, scale=0.3, spec=None, window=window)
    assert scores is None
    assert output.isfinite().all()  # of queries past a row's end, too
    check(output, naive(q, k, v, starts, counts, 0.3, None, window)[0], counts)


@pytest.mark.parametrize("window", [None, 1, 13, 50])
@pytest.mark.parametrize(
    "spec",
    [
        None,
        ScoreSpec(True, None),
        ScoreSpec(False, 40),
        ScoreSpec(True, None, "largest", 3),
        ScoreSpec(False, 50, "mean", 9),
        ScoreSpec(False, 50, "largest", 9, 3.0, 4),
    ],
)
def test_chunks_change_nothing(spec, window, monkeypatch):
    q, k, v, starts, counts = draw_call(3, 2, 2, 3, True, False, 90)
    how = {"starts": starts, "counts": counts, "scale": 0.3, "spec": spec, "window": window}
    whole = attend(q, k, v, **how)
    check(whole[0], naive(q, k, v, starts, counts, 0.3, None, window)[0], counts)
    monkeypatch.setattr("buzz.attention.naive._CHUNK_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr("buzz.attention.fused._CHUNK_ELEMENTS", 1)
    parts = attend(q, k, v, **how)
    check(parts[0], whole[0].double(), counts)
    if spec is not None:
        torch.testing.assert_close(parts[1], whole[1])


@pytest.mark.parametrize("spec", [None, ScoreSpec(True, None), ScoreSpec(False, 2)])
@pytest.mark.parametrize(("starts", "counts"), [([0, 0], [9, 9]), ([4, 4], [5, 3]), ([7, 2], [2, 7]), ([8, 3], [1, 1])])
def test_a_window_as_wide_as_all_is_none(spec, starts, counts):
    q, k, v, _, _ = draw_call(0, 2, 2, 2, False, True, 9)
    how = {"starts": starts, "counts": counts, "scale": 0.3, "spec": spec}
    without, wide = attend(q[:, :, : max(counts)], k, v, **how), attend(q[:, :, : max(counts)], k, v, **how, window=9)
    assert torch.equal(without[0], wide[0])
    assert spec is None or torch.equal(without[1], wide[1])


@pytest.mark.parametrize(
    ("starts", "width"),
    [([40, 40], 1), ([40, 7], 1), ([40, 40], 3), ([40, 7], 3)],  # decode steps and chunks, rows alike or far apart
)
def test_slots_outside_the_window_are_not_read(starts, width):
    q, k = torch.randn(2, 4, width, 8), torch.full((2, 2, 50, 8), torch.nan)
    for row, start in enumerate(starts):
        k[row, :, start - 4 : start + width] = torch.randn(2, width + 4, 8)
    output, _ = attend(q, k, k, starts=starts, scale=0.3, spec=None, window=5)
    check(output, naive(q, k, k, starts, [width] * 2, 0.3, None, 5)[0], [width] * 2)


def test_chunks_of_a_long_prompt_read_their_slots_alone(monkeypatch):
    q, k, read = torch.randn(1, 2, 2000, 8), torch.randn(1, 2, 2000, 8), []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, **how):
        read.append((q.shape[2], k.shape[2]))
        return sdpa(q, k, v, **how)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", watched)
    output, _ = attend(q, k, k, starts=[0], scale=0.3, spec=None, window=100)
    assert read == [(100, 100), *[(256, 355)] * 7, (108, 207)]
    check(output[:, :, 1990:], naive(q[:, :, 1990:], k, k, [1990], [10], 0.3, None, 100)[0], [10])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_summed_in_float32(dtype):
    # 3000 queries spread their attention evenly, so early slots receive several units of tiny probabilities; a
    # half-precision sum would stop growing.
    n = 3000
    q = k = torch.zeros(1, 1, n, 8, dtype=dtype)
    _, scores = attend(q, k, k, starts=[0], scale=1.0, spec=ScoreSpec(True, None))
    assert scores.dtype == torch.float32
    harmonic = sum(1 / i for i in range(1, n + 1))
    assert scores[0, 0, 0].item() == pytest.approx(harmonic, rel=1e-3)
    assert scores.sum().item() == pytest.approx(n, rel=1e-3)


def test_output_keeps_the_dtype():
    q, k = torch.randn(1, 2, 4, 8).bfloat16(), torch.randn(1, 1, 4, 8).bfloat16()
    for spec in (None, ScoreSpec(True, None)):
        assert attend(q, k, k, starts=[0], scale=1.0, spec=spec)[0].dtype == torch.bfloat16


def test_shapes_that_do_not_fit_are_named():
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8)
    with pytest.raises(ValueError, match="do not fit together"):
        attend(q, k[:1], k[:1], starts=[0, 0], scale=1.0, spec=None)
    with pytest.raises(ValueError, match="one number per row"):
        attend(q, k, k, starts=[0], scale=1.0, spec=None)
    with pytest.raises(ValueError, match="ends past the 5 slots"):
        attend(q, k, k, starts=[0, 3], scale=1.0, spec=None)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        attend(q, k, k, starts=[0, 0], scale=1.0, spec=None, window=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("window", [None, 16])
def test_a_gpu_gives_what_the_cpu_gives(groups, window, dtype, tolerance):
    generator = torch.Generator().manual_seed(groups)
    for starts, counts in (([0, 0], [70, 41]), ([12, 5], [33, 20]), ([12, 12], [33, 20]), ([40, 9], [1, 1])):
        slots = max(s + c for s, c in zip(starts, counts, strict=True))
        q, k, v = (torch.randn(2, h, n, 64, generator=generator).to(dtype) for h, n in
                   ((2 * groups, max(counts)), (2, slots), (2, slots)))  # fmt: skip
        for spec in (
            None, ScoreSpec(True, None), ScoreSpec(False, 5),
            ScoreSpec(True, None, "largest", 4), ScoreSpec(False, 9, "mean", 2), ScoreSpec(False, None, "largest"),
            ScoreSpec(True, None, "largest", 9, 2.0, 4),
        ):  # fmt: skip
            how = {"starts": starts, "counts": counts, "scale": 0.125, "spec": spec, "window": window}
            output, scores = attend(q.cuda(), k.cuda(), v.cuda(), **how)
            expected, expected_scores = attend(q.float(), k.float(), v.float(), **how)
            check(output.cpu(), expected.double(), counts, tolerance)
            if spec is not None:
                torch.testing.assert_close(scores.cpu(), expected_scores, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("starts", [[8, 8, 8], [8, 3, 0], [4, 4, 4]])
def test_one_query_is_the_reference_with_fewer_operators(starts, dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, heads, n, 16, generator=g).to(dtype) for heads, n in ((6, 1), (2, 12), (2, 12)))
    k, v = k[:, :, :9], v[:, :, :9]  # of longer buffers
    wanted = [Wanted(), Wanted("largest"), Wanted("sum", 3), Wanted("largest", 2)]
    output, got = one.attend_scored(q, k, v, starts=Rows(starts), scale=0.3, wanted=wanted)
    how = {"starts": Rows(starts), "counts": Rows([1] * 3), "scale": 0.3, "wanted": wanted}
    expected, scores = naive_attention.attend(q, k, v, **how)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)
    for some, others in zip(got, scores, strict=True):
        assert some.dtype == torch.float32
        torch.testing.assert_close(some, others, atol=1e-6, rtol=1e-6)
