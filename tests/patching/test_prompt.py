"""The kernels of a prompt's norms and MLPs: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import buzz
from buzz.patching import prompt

from ..conftest import VOCAB, tiny_llama

pytest.importorskip("triton")

from buzz.patching.gate import silu_gate_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gate(dtype):
    gate, up = (torch.randn(3, 1111, device=DEVICE).mul(3).to(dtype) for _ in range(2))
    expected = F.silu(gate) * up
    got = silu_gate_(gate, up)
    assert got is gate
    torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_gate_of_other_shapes():
    x = torch.zeros(4, 6, dtype=torch.bfloat16)
    for gate, up in ((x, x[:2]), (x[:, :3], x[:, :3])):
        with pytest.raises(ValueError, match="contiguous and alike"):
            silu_gate_(gate, up)


@pytest.fixture
def everywhere(monkeypatch):
    """Take the kernels on this machine too, and count the calls."""
    calls = []
    monkeypatch.setattr(prompt, "runs_triton", lambda x: True)
    monkeypatch.setattr(prompt.Prompt, "open", property(lambda self: True, lambda self, value: None), raising=False)
    for name in ("rms_norm",):
        own = getattr(F, name)
        monkeypatch.setattr(prompt.F, name, lambda *a, own=own, **k: calls.append(name) or own(*a, **k))
    return calls


@torch.no_grad()
def test_a_prompt_is_read_as_before(everywhere):
    """In bfloat16, so to within its rounding; three layers with two norms each, and one at the end."""
    model = tiny_llama().bfloat16()
    ids = torch.arange(40)[None] % VOCAB
    expected = model(ids).logits
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy("full"), model.config)
        got = model(ids, past_key_values=cache).logits
    assert len(everywhere) == 7
    assert (got - expected).norm() < 2e-2 * expected.norm()


def test_where_gradients_are_recorded_nothing_changes(everywhere):
    model = tiny_llama().bfloat16()
    with buzz.patch_model(model):
        model(torch.arange(9)[None], past_key_values=buzz.BeehiveCache(buzz.make_policy("full"), model.config))
    assert not everywhere


@torch.no_grad()
def test_only_prompts_on_a_gpu_are_open():
    """And a call that fails leaves nothing open."""
    model = tiny_llama().to(DEVICE)
    with buzz.patch_model(model):
        state = model.model.norm._buzz.prompt
        seen = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: seen.append(state.open))
        cache = buzz.BeehiveCache(buzz.make_policy("full"), model.config)
        ids = torch.arange(9, device=DEVICE)[None]
        model(ids, past_key_values=cache)
        model(ids[:, :1], past_key_values=cache)
        model(ids)
        assert seen == [DEVICE == "cuda", False, False]
        state.open = True  # as a call leaves it that fails on the way
        model(ids)
        assert seen[-1] is False and not state.open
    assert "forward" not in vars(model.model.norm)
