"""Which of PyTorch's kernels are asked, and for which shapes: with kernels of a plain one, and by the profiler."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from buzz.attention import attend, naive, plans
from buzz.attention.wanted import Wanted
from buzz.policies import ScoreSpec
from buzz.rows import Rows
from tests.attention.test_fused import plain_causal, plain_rows

ATEN = torch.ops.aten
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def asked(monkeypatch):
    """The kernels that were called, each with the tokens of its queries and keys; all are a plain one."""
    calls = []

    def kernel(name):
        def plain(q, k, v, *others, scale, **how):
            calls.append((name, q.shape[2], k.shape[2]))
            output, lse = plain_causal(q, k, v, scale)
            return output if name == "sdpa" else (output, lse, None)

        return plain

    def of_rows(q, k, v, queries, slots, longest, most, dropout, is_causal, mask, *, scale):
        calls.append(("rows", longest, most))
        return plain_rows(q, k, v, queries, slots, longest, most, dropout, is_causal, mask, scale=scale)

    monkeypatch.setattr(ATEN, "_flash_attention_forward", of_rows, raising=False)
    monkeypatch.setattr(ATEN, "_scaled_dot_product_cudnn_attention", kernel("cudnn"), raising=False)
    monkeypatch.setattr(ATEN, "_scaled_dot_product_flash_attention", kernel("flash"), raising=False)
    monkeypatch.setattr(plans.F, "scaled_dot_product_attention", kernel("sdpa"))
    monkeypatch.setattr(plans, "_pays", lambda device: True)
    monkeypatch.setattr(plans, "_refused", set())
    monkeypatch.setattr(plans, "_LEAST", 16)
    monkeypatch.setattr(plans, "_STEP", 8)
    monkeypatch.setattr(plans, "_MOST", 6 * 8 * 40)
    return calls


def texts(tokens, slots):
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, heads, n, 8, generator=generator) for heads, n in ((6, tokens), (2, slots), (2, slots))]


@pytest.mark.parametrize(("how", "short"), [("causal", "flash"), ("whole", "sdpa")])
def test_prompts_of_many_lengths_have_few_shapes(asked, how, short):
    for tokens in range(1, 41):
        q, k, v = texts(tokens, tokens)
        output, lse = plain_causal(q, k, v, 0.3)
        got = getattr(plans, how)(q, k, v, 0.3)
        torch.testing.assert_close(got, (output, lse) if how == "causal" else output, atol=1e-6, rtol=1e-6)
    short = {(short, tokens) for tokens in range(1, 16)}
    assert {(name, n) for name, n, _ in asked} == short | {("cudnn", n) for n in (16, 24, 32, 40)}


def test_a_copy_of_very_many_tokens_is_not_made(asked):
    plans.causal(*texts(43, 43), 0.3)
    assert asked == [("cudnn", 43, 43)]


def test_a_chunk_is_aligned_with_the_end(asked):
    q, k, v = texts(20, 33)
    torch.testing.assert_close(plans.causal(q, k, v, 0.3), plain_causal(q, k, v, 0.3))
    assert asked == [("flash", 20, 33)]


@pytest.mark.parametrize(
    ("starts", "counts"),
    [
        ([30, 5, 0], [20, 20, 20]),
        ([30, 5, 9], [20, 3, 7]),
        ([30, 0, 7], [20, 0, 1]),
        ([0, 0, 0], [4, 20, 9]),
        ([3, 0, 9], [1, 0, 1]),
    ],
)
def test_ragged_rows_are_one_call(asked, starts, counts):
    generator = torch.Generator().manual_seed(starts[1])
    q = torch.randn(3, 6, 20, 8, generator=generator)
    k, v = (torch.randn(3, 2, 50, 8, generator=generator) for _ in range(2))
    output, lse = plans.ragged(q, k, v, Rows(starts), Rows(counts), 0.3)
    assert output.shape == q.shape
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        expected = plain_causal(q[row, None, :, :count], *(t[row, None, :, : start + count] for t in (k, v)), 0.3)
        torch.testing.assert_close((output[row, None, :, :count], lse[row, None, :, :count]), expected)
        assert not output[row, :, count:].any()
        assert not lse[row, :, count:].any()
    assert asked == [("rows", 20, 50)]


@pytest.mark.parametrize(("starts", "counts"), [([30, 5, 0], [20, 20, 20]), ([30, 5, 9], [20, 3, 7])])
def test_the_kernel_of_scores_reads_what_one_call_of_ragged_rows_gives(asked, starts, counts):
    """In the order in memory that it has."""
    pytest.importorskip("triton")
    from buzz.kernels.received import received

    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 6, 20, 16, generator=generator).to(DEVICE)
    k, v = (torch.randn(3, 2, 50, 16, generator=generator).to(DEVICE) for _ in range(2))
    how = {"starts": Rows(starts), "counts": Rows(counts), "scale": 0.3, "wanted": [Wanted("sum", 0)]}
    output, lse = plans.ragged(q, k, v, Rows(starts), Rows(counts), 0.3)
    expected, (scores,) = naive.attend(q, k, v, **how)
    torch.testing.assert_close(received(q, k, lse, firsts=Rows([0, 0, 0]), **how)[0], scores, atol=1e-5, rtol=1e-4)
    for row, count in enumerate(counts):
        torch.testing.assert_close(output[row, :, :count], expected[row, :, :count], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("capability", "dtype", "dim", "takes"),
    [
        ((8, 0), torch.bfloat16, 256, True),
        ((9, 0), torch.float16, 80, True),
        ((7, 5), torch.float16, 64, False),  # a T4
        ((8, 0), torch.float32, 64, False),
        ((8, 0), torch.bfloat16, 264, False),
        ((8, 0), torch.bfloat16, 60, False),
    ],
)
def test_flash_attention_is_asked_where_it_is(monkeypatch, capability, dtype, dim, takes):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    queries = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), dtype=dtype, shape=(1, 2, 3, dim))
    assert plans.takes_flash(queries) is takes
    assert not plans.takes_flash(torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize(("error", "times"), [(RuntimeError("no plan"), 1), (torch.OutOfMemoryError("full"), 2)])
def test_what_cudnn_cannot_is_asked_once(asked, monkeypatch, error, times):
    tried = []

    def refuse(*args, **how):
        tried.append(args)
        raise error

    monkeypatch.setattr(ATEN, "_scaled_dot_product_cudnn_attention", refuse)
    q, k, v = texts(20, 20)
    for _ in range(2):
        torch.testing.assert_close(plans.causal(q, k, v, 0.3), plain_causal(q, k, v, 0.3))
    assert asked == [("flash", 20, 20)] * 2
    assert len(tried) == times


@pytest.fixture
def switch():
    """PyTorch's own, which is left as it was."""
    cuda = torch.backends.cuda
    switches = [cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp]
    for turn in switches:
        turn(True)
    yield cuda
    for turn in switches:
        turn(True)


def test_the_switch_is_turned_back(switch):
    for before in (True, False):
        switch.enable_cudnn_sdp(before)
        with contextlib.suppress(ValueError), plans.CUDNN.off(), plans.CUDNN.off():
            assert (switch.cudnn_sdp_enabled(), plans.CUDNN.on()) == (False, before)
            raise ValueError
        assert switch.cudnn_sdp_enabled() is before


def test_who_wants_cudnn_alone_gets_it(switch):
    for turn in (switch.enable_flash_sdp, switch.enable_mem_efficient_sdp, switch.enable_math_sdp):
        turn(False)
    with plans.CUDNN.off():
        assert switch.cudnn_sdp_enabled()


def test_threads_turn_the_switch_together(switch):
    def work(_):
        for _ in range(2000):
            with plans.CUDNN.off():
                assert not switch.cudnn_sdp_enabled()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert switch.cudnn_sdp_enabled()


def names(call, of="cudnn"):
    with torch.profiler.profile() as profile:
        call()
    return [event.name for event in profile.events() if of in event.name]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "starts", "window"),
    [
        (1, [900, 905], None),
        (1, [900, 900], None),
        (70, [900, 905], None),
        (70, [9, 9], None),
        (700, [0, 0], None),
        (700, [0, 0], 100),
        (70, [900, 905], 300),
    ],
)
def test_calls_of_many_shapes_do_not_ask_cudnn(tokens, starts, window, dtype):
    """Steps, chunks and short prompts of groups of heads, against float32."""
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, n, 64, device="cuda", generator=generator).to(dtype)
        for heads, n in ((6, tokens), (2, 1000), (2, 1000))
    )
    how = {"starts": Rows(starts), "scale": 0.125, "spec": None, "window": window}
    assert not names(lambda: attend(q, k, v, **how))
    output, _ = attend(q, k, v, **how)
    expected, _ = attend(q.cpu().float(), k.cpu().float(), v.cpu().float(), **how)
    assert (output.cpu().float() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [2048, 2300])
def test_long_prompts_ask_cudnn_on_a_hopper(tokens):
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs a Hopper GPU")
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, 64, device="cuda", generator=generator).bfloat16() for heads in (6, 2, 2))
    assert names(lambda: plans.whole(q, k, v, 0.125))
    expected, lse = plain_causal(q.double(), k.double(), v.double(), 0.125)
    output, got = plans.causal(q, k, v, 0.125)
    assert (output - expected).norm() < 1e-2 * expected.norm()
    assert torch.equal(output, plans.whole(q, k, v, 0.125))
    torch.testing.assert_close(got.double(), lse, atol=1e-2, rtol=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "dim"), [(1, 128), (4, 80), (3, 64), (2, 256)])
@pytest.mark.parametrize("scored", [True, False])
def test_heads_of_their_own_lengths_are_one_call(scored, group, dim, dtype):
    """As the cache of comb gives them, and in a ragged batch, where some row has nothing to read; against float32."""
    generator = torch.Generator("cuda").manual_seed(dim)
    spec = ScoreSpec(True, None, "largest", 20, 3.0, 7) if scored else None
    for heads, starts, counts in ((1, list(range(3, 900, 30)), [100] * 30), (2, [900, 3, 40], [100, 0, 37])):
        q, k, v = (
            torch.randn(len(starts), n, length, dim, device="cuda", generator=generator).to(dtype)
            for n, length in ((heads * group, 100), (heads, 1000), (heads, 1000))
        )
        how = {"starts": starts, "counts": counts, "scale": dim**-0.5, "spec": spec}
        output, scores = attend(q, k, v, **how)
        expected, exact = attend(q.cpu().float(), k.cpu().float(), v.cpu().float(), **how)
        for row, count in enumerate(counts):
            got, wanted = output[row, :, :count].cpu().float(), expected[row, :, :count]
            assert (got - wanted).norm() <= 1e-2 * wanted.norm()
        if scored:
            assert (scores.cpu() - exact).norm() < 1e-2 * exact.norm()
        again = attend(q, k, v, **how)
        assert torch.equal(output, again[0])
        assert len(names(lambda: attend(q, k, v, **how), of="flash_fwd")) == 1  # noqa: B023
