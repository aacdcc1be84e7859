"""The kernels for a step of one row: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import buzz
from buzz.decoding import step as steps
from buzz.decoding.arena import Off
from buzz.decoding.capture import Captured
from buzz.models.families import FAMILIES
from buzz.models.positions import Rotary
from buzz.models.row import row_stages
from tests.conftest import recorded, tiny_llama, tiny_opt, tokens

pytest.importorskip("triton")

from buzz.kernels.product import Cut, product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUTS = [None, Cut(rows=4, columns=256, warps=1, early=False)]


def made(*shape, dtype):
    return torch.randn(shape, device=DEVICE).mul(0.3).to(dtype)


def close(got, expected, dtype):
    # The interpreter truncates to bfloat16 where a GPU rounds.
    bound = 1e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert got.dtype == dtype
    assert got.shape == expected.shape
    assert (got.double() - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("width", [16, 1030])
def test_products(width, cut, dtype):
    """Any sizes: of one to three matrices, normed, gated, added to."""
    x = made(1, 1, width, dtype=dtype)
    matrices = [made(rows, width, dtype=dtype) for rows in (33, 8, 7)]
    norm = made(width, dtype=dtype) + 1
    exact, wide = x.double().flatten(), [matrix.double() for matrix in matrices]
    normed = exact * (exact.pow(2).mean() + 1e-5).rsqrt() * norm.double()
    for count in (1, 2, 3):
        got = product(x, matrices[:count], cut=cut)
        close(got, torch.cat([matrix @ exact for matrix in wide[:count]]), dtype)
        got = product(x, matrices[:count], norm=norm, epsilon=1e-5, cut=cut)
        close(got, torch.cat([matrix @ normed for matrix in wide[:count]]), dtype)
    addend = made(33, dtype=dtype)
    close(product(x, matrices[:1], addend=addend, cut=cut), wide[0] @ exact + addend.double(), dtype)
    up = made(33, width, dtype=dtype)
    got = product(x, [matrices[0], up], norm=norm, epsilon=1e-5, gated=True, cut=cut)
    expected = F.silu(wide[0] @ normed) * (up.double() @ normed)
    assert (got.double() - expected).norm() < (1e-6 if dtype == torch.float32 else 3e-2) * expected.norm()


def test_a_wide_product():
    x, matrix = made(1, 1, 8200, dtype=torch.float32), made(5, 8200, dtype=torch.float32)
    assert Cut.of(1, 8200, gated=False) != Cut.of(1, 8000, gated=False)
    close(product(x, [matrix]), matrix.double() @ x.double().flatten(), torch.float32)


def test_products_of_other_sizes():
    x, matrix = torch.zeros(8), torch.zeros(4, 8)
    for matrices, gated in (([matrix, matrix[:, :7]], False), ([matrix, matrix[:3]], True), ([matrix], True)):
        with pytest.raises(ValueError, match="do not fit 8 elements"):
            product(x, matrices, gated=gated)


class Rows:
    """Runs steps of one row by their kernels, on any device."""

    def __init__(self):
        self.steps = 0

    def usable(self, device):
        return True

    def prepare(self, step):
        stages = step.row_stages()

        def run():
            self.steps += 1
            step(stages)

        return run


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_steps_of_one_row_give_the_tokens_of_the_models_own_forward(monkeypatch, kv_heads):
    """Over evictions, in float32."""
    monkeypatch.setattr(steps, "runs_triton", lambda x: True)
    monkeypatch.setattr(Cut, "of", lambda *what, **how: Cut(rows=32, columns=64))  # few programs to interpret
    model, prompt = tiny_llama(kv_heads).to(DEVICE), tokens(1, 30, seed=2).to(DEVICE)
    policy = buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9)
    results, rows = [], Rows()
    for run in (Off(), rows):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = recorded(policy, model.config)
            ids = model.generate(prompt, past_key_values=cache, max_new_tokens=15, do_sample=False)
            logits = model(ids[:, -1:], past_key_values=cache).logits
            results.append((ids, logits, cache.curve.lengths))
    assert rows.steps == 14
    assert results[0][0].tolist() == results[1][0].tolist()
    assert results[0][2] == results[1][2]
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)


def test_other_steps_are_left_to_the_compiler(monkeypatch):
    """Several rows, keys that keep their position, another family, and modules that are not as they were made."""
    monkeypatch.setattr(steps, "runs_triton", lambda x: True)
    found = []

    class Asked:
        def usable(self, device):
            return True

        def prepare(self, step):
            found.append(step.row_stages() is not None)
            return step

    def ask(model, rows=1, **how):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = Asked()
            cache = buzz.BeehiveCache(buzz.make_policy("buzz", window=6, threshold=9), model.config, **how)
            model.generate(tokens(rows, 9), past_key_values=cache, max_new_tokens=3, do_sample=False)

    ask(tiny_llama())
    ask(tiny_llama(), rows=2)
    ask(tiny_llama(), positions="original")
    ask(tiny_opt())
    ask(tiny_llama(attention_bias=True))
    assert found == [True, False, False, False, True]


def stages_of(model):
    return row_stages(FAMILIES["llama"], Rotary(model.model), model.model, model.lm_head)


def test_modules_that_others_changed_are_left_to_the_compiler():
    class Doubled(torch.nn.Linear):
        pass

    def changes(model):
        layer = model.model.layers[1]
        yield layer.mlp.down_proj, "__class__", Doubled
        yield layer.mlp, "forward", lambda x: x
        yield model.model.norm, "forward", lambda x: x
        yield layer.self_attn.q_proj, "weight", torch.nn.Parameter(layer.self_attn.q_proj.weight.half())
        yield layer.self_attn.q_proj, "weight", torch.nn.Parameter(layer.self_attn.q_proj.weight.t())

    for place in range(5):
        model = tiny_llama()
        with buzz.patch_model(model):
            assert stages_of(model) is not None
        module, name, value = list(changes(model))[place]
        setattr(module, name, value)
        with buzz.patch_model(model):
            assert stages_of(model) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_steps_of_one_row(dtype, recwarn):
    """In float32 they give the tokens of the model's own forward; nothing is compiled, nothing fails."""
    torch._dynamo.reset()
    model, prompt = tiny_llama().cuda().to(dtype), tokens(1, 40, seed=1).cuda()
    policy = buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9)
    ids = []
    for run in (Off(), Captured()):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = recorded(policy, model.config)
            ids.append(model.generate(prompt, past_key_values=cache, max_new_tokens=60, do_sample=False))
    assert not torch._dynamo.utils.counters["frames"]
    assert not [w for w in recwarn if "decoding is not" in str(w.message)]
    if dtype == torch.float32:
        assert ids[0].tolist() == ids[1].tolist()
