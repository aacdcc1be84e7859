"""Which of PyTorch's kernels are asked, and for which shapes: with kernels of a plain one, and by the profiler."""

from __future__ import annotations

import pytest
import torch

from buzz.attention import attend, plans
from buzz.rows import Rows
from tests.attention.test_fused import plain_causal

ATEN = torch.ops.aten
CUDNN, FLASH = ATEN._scaled_dot_product_cudnn_attention, ATEN._scaled_dot_product_flash_attention


@pytest.fixture
def asked(monkeypatch):
    """The kernels that were called, each with the tokens of its queries and keys; both are a plain one."""
    calls = []

    def kernel(name):
        def plain(q, k, v, *others, scale):
            calls.append((name, q.shape[2], k.shape[2]))
            return *plain_causal(q, k, v, scale), None

        return plain

    monkeypatch.setattr(ATEN, "_scaled_dot_product_cudnn_attention", kernel("cudnn"), raising=False)
    monkeypatch.setattr(ATEN, "_scaled_dot_product_flash_attention", kernel("flash"), raising=False)
    monkeypatch.setattr(plans, "_LEAST", 16)
    monkeypatch.setattr(plans, "_STEP", 8)
    monkeypatch.setattr(plans, "_MOST", 6 * 8 * 40)
    return calls


def texts(tokens, slots):
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, heads, n, 8, generator=generator) for heads, n in ((6, tokens), (2, slots), (2, slots))]


def test_prompts_of_many_lengths_have_few_shapes(asked):
    for tokens in range(1, 41):
        q, k, v = texts(tokens, tokens)
        output, lse = plans.causal(q, k, v, 0.3)
        expected = plain_causal(q, k, v, 0.3)
        torch.testing.assert_close((output, lse), expected, atol=1e-6, rtol=1e-6)
    assert {(name, n) for name, n, _ in asked} == {
        *(("flash", n) for n in range(1, 16)),
        *(("cudnn", n) for n in (16, 24, 32, 40)),
    }


def test_a_copy_of_very_many_tokens_is_not_made(asked):
    plans.causal(*texts(43, 43), 0.3)
    assert asked == [("cudnn", 43, 43)]


def test_a_chunk_is_aligned_with_the_end(asked):
    q, k, v = texts(20, 33)
    torch.testing.assert_close(plans.causal(q, k, v, 0.3), plain_causal(q, k, v, 0.3))
    assert asked == [("flash", 20, 33)]


def test_what_cudnn_cannot_flash_attention_does(asked, monkeypatch):
    def refuse(*args, **how):
        raise RuntimeError("no plan")

    monkeypatch.setattr(ATEN, "_scaled_dot_product_cudnn_attention", refuse)
    q, k, v = texts(20, 20)
    torch.testing.assert_close(plans.causal(q, k, v, 0.3), plain_causal(q, k, v, 0.3))
    assert asked == [("flash", 20, 20)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("tokens", "starts"), [(1, [900, 905]), (1, [900, 900]), (70, [900, 905]), (700, [0, 0]), (70, [9, 9])]
)
def test_calls_of_many_shapes_do_not_ask_cudnn(tokens, starts):
    """Steps, chunks and short prompts of a group of heads, against float32."""
    generator = torch.Generator("cuda").manual_seed(0)
    how = {"device": "cuda", "generator": generator}
    q, k, v = (torch.randn(2, heads, n, 64, **how).bfloat16() for heads, n in ((6, tokens), (2, 1000), (2, 1000)))
    with torch.profiler.profile() as profile:
        output, _ = attend(q, k, v, starts=Rows(starts), scale=0.125, spec=None)
    assert not [event.name for event in profile.events() if "cudnn" in event.name]
    expected, _ = attend(q.cpu().float(), k.cpu().float(), v.cpu().float(), starts=Rows(starts), scale=0.125, spec=None)
    assert (output.cpu().float() - expected).norm() < 1e-2 * expected.norm()
