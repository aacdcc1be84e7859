"""Steps of one row and of a few by kernels of our own: on a GPU where there is one, else interpreted."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import buzz
from buzz.decoding import step as steps
from buzz.decoding.arena import Off
from buzz.decoding.capture import Captured
from buzz.models.families import FAMILIES
from buzz.models.row import has_kernels
from buzz.patching import supported_families
from tests.conftest import recorded, tiny_llama, tiny_opt, tokens
from tests.decoding.afar import Afar
from tests.decoding.kernel_steps import Kernels, everywhere
from tests.models.tiny import tiny, tiny_config

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def kernels_everywhere(monkeypatch):
    everywhere(monkeypatch.setattr, cuda=DEVICE == "cuda")


@pytest.mark.parametrize(("rows", "positions"), [(1, "original"), (3, "cache")])
@pytest.mark.parametrize(
    ("kv_heads", "policy"),
    [
        (4, buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9)),
        (2, buzz.make_policy("comb", capacity=16, lazy=3, budgets="worth")),
        (2, Afar(heavy=9, window=6)),
    ],
)
def test_steps_give_the_tokens_of_the_models_own_forward(kv_heads, policy, rows, positions):
    """Over evictions, in float32, rows of different lengths."""
    model, prompt = tiny_llama(kv_heads).to(DEVICE), tokens(rows, 30, seed=2).to(DEVICE)
    mask = torch.ones_like(prompt)
    mask[1:, :5] = 0
    results, ran = [], Kernels()
    for run in (Off(), ran):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = recorded(policy, model.config, positions=positions)
            how = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
            ids = model.generate(prompt, past_key_values=cache, **how)
            mask_of_all = torch.cat([mask, torch.ones_like(ids[:, 30:])], dim=1)
            logits = model(ids[:, -1:], past_key_values=cache, attention_mask=mask_of_all).logits
            results.append((ids, logits, cache.curve.lengths))
    assert ran.steps == 8
    held = [row[0] for row in results[1][2]]
    assert any(after <= before for before, after in pairwise(held[1:]))  # a step evicts
    assert results[0][0].tolist() == results[1][0].tolist()
    assert results[0][2] == results[1][2]
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)


# The families whose steps of one row are not compiled, and what some can be beside their default.
ROWS = [
    name
    for name in supported_families()
    if FAMILIES[name].norms and not hasattr(tiny_config(name), "num_experts_per_tok")  # a mixture is compiled
]
ROWS += ["llama-biases", "phi3-partial", "gemma3_text-mixed", "granite-multipliers"]


@pytest.mark.parametrize(("count", "positions"), [(1, "cache"), (2, "original")])
@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_rows_of_every_family_that_has_matrices(name, count, positions):
    """Biases, norms of heads, joint and partial things: logits of the model's own forward, over evictions."""
    model = tiny(name).to(DEVICE)
    prompt, results, rows = tokens(count, 12, seed=2).to(DEVICE), [], Kernels()
    policy = buzz.make_policy("buzz", sink=1, window=3, stride=3, threshold=4)
    for run in (Off(), rows):
        with buzz.patch_model(model) as handle:
            handle.engine.run = run
            cache = buzz.BeehiveCache(policy, model, positions=positions)
            ids = model.generate(prompt, past_key_values=cache, max_new_tokens=4, do_sample=False, eos_token_id=None)
            results.append((ids, model(ids[:, -1:], past_key_values=cache).logits))
    assert rows.steps == 3
    assert results[0][0].tolist() == results[1][0].tolist()
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)


def test_other_steps_are_left_to_the_compiler(monkeypatch):
    """More rows than a few, or several in float32, another family, and modules that are not as they were made."""
    monkeypatch.setattr(steps, "runs_triton", lambda x: True)
    monkeypatch.setattr(steps, "HALF", (torch.bfloat16,))
    found = []

    class Asked:
        def usable(self, device):
            return True

        def prepare(self, step):
            found.append(step.kernel_stages() is not None)
            return step

    def ask(model, rows=1, **how):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = Asked()
            cache = buzz.BeehiveCache(buzz.make_policy("buzz", window=6, threshold=9), model.config, **how)
            model.generate(tokens(rows, 9), past_key_values=cache, max_new_tokens=3, do_sample=False)

    ask(tiny_llama())
    ask(tiny_llama(), rows=2)
    ask(tiny_llama().bfloat16(), rows=2)
    ask(tiny_llama().bfloat16(), rows=65)
    ask(tiny_llama(), positions="original")
    ask(tiny_opt())
    ask(tiny_llama(attention_bias=True))
    assert found == [True, False, True, False, True, False, True]


def is_taken(model):
    return has_kernels(FAMILIES["llama"], model.model, model.lm_head)


def test_modules_that_others_changed_are_left_to_the_compiler():
    class Doubled(torch.nn.Linear):
        pass

    class Packed(torch.Tensor):  # as a library for quantised weights has them
        pass

    def changes(model):
        layer = model.model.layers[1]
        yield layer.mlp.down_proj, "__class__", Doubled
        yield layer.mlp, "forward", lambda x: x
        yield model.model.norm, "forward", lambda x: x
        yield layer.self_attn.q_proj, "weight", torch.nn.Parameter(layer.self_attn.q_proj.weight.half())
        yield layer.self_attn.q_proj, "weight", torch.nn.Parameter(layer.self_attn.q_proj.weight.t())
        up = layer.mlp.up_proj
        yield up, "weight", torch.nn.Parameter(up.weight.t().contiguous().t())
        yield up, "weight", torch.nn.Parameter(up.weight.detach().as_subclass(Packed))

    for place in range(7):
        model = tiny_llama()
        with buzz.patch_model(model):
            assert is_taken(model)
        module, name, value = list(changes(model))[place]
        setattr(module, name, value)
        with buzz.patch_model(model):
            assert not is_taken(model)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_captured_steps(rows, dtype, recwarn):
    """In float32 they give the tokens of the model's own forward; nothing is compiled, nothing fails."""
    torch._dynamo.reset()
    model, prompt = tiny_llama().cuda().to(dtype), tokens(rows, 40, seed=1).cuda()
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
