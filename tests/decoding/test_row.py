"""Steps of one row by kernels of our own: on a GPU where there is one, else interpreted."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import buzz
from buzz.decoding import step as steps
from buzz.decoding.arena import Off
from buzz.decoding.capture import Captured
from buzz.models.families import FAMILIES
from buzz.models.positions import Rotary
from buzz.models.row import row_stages
from buzz.patching import supported_families
from tests.conftest import recorded, tiny_llama, tiny_opt, tokens
from tests.decoding.afar import Afar
from tests.models.tiny import tiny, tiny_config

pytest.importorskip("triton")

from buzz.kernels.product import Cut

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


@pytest.mark.parametrize(
    ("kv_heads", "policy"),
    [
        (4, buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9)),
        (2, buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9)),
        (2, Afar(heavy=9, window=6)),
    ],
)
def test_steps_of_one_row_give_the_tokens_of_the_models_own_forward(monkeypatch, kv_heads, policy):
    """Over evictions, in float32."""
    monkeypatch.setattr(steps, "runs_triton", lambda x: True)
    monkeypatch.setattr(Cut, "of", lambda *what, **how: Cut(rows=32, columns=64))  # few programs to interpret
    model, prompt = tiny_llama(kv_heads).to(DEVICE), tokens(1, 30, seed=2).to(DEVICE)
    results, rows = [], Rows()
    for run in (Off(), rows):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = recorded(policy, model.config)
            ids = model.generate(prompt, past_key_values=cache, max_new_tokens=9, do_sample=False)
            logits = model(ids[:, -1:], past_key_values=cache).logits
            results.append((ids, logits, cache.curve.lengths))
    assert rows.steps == 8
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


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_a_row_of_every_family_that_has_matrices(monkeypatch, name):
    """Biases, norms of heads, joint and partial things: logits of the model's own forward, over evictions."""
    monkeypatch.setattr(steps, "runs_triton", lambda x: True)
    monkeypatch.setattr(Cut, "of", lambda *what, **how: Cut(rows=32, columns=64))
    model = tiny(name).to(DEVICE)
    prompt, results, rows = tokens(1, 12, seed=2).to(DEVICE), [], Rows()
    policy = buzz.make_policy("buzz", sink=1, window=3, stride=3, threshold=4)
    for run in (Off(), rows):
        with buzz.patch_model(model) as handle:
            handle.engine.run = run
            cache = buzz.BeehiveCache(policy, model)
            ids = model.generate(prompt, past_key_values=cache, max_new_tokens=4, do_sample=False, eos_token_id=None)
            results.append((ids, model(ids[:, -1:], past_key_values=cache).logits))
    assert rows.steps == 3
    assert results[0][0].tolist() == results[1][0].tolist()
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
