"""Compiled steps: what is compiled, and how often. Captures are for GPUs; elsewhere steps are compiled and run."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import buzz
from buzz.decoding.arena import Off
from buzz.decoding.capture import Captured, compiled_stages, free_capacity
from tests.conftest import tiny_llama, tiny_opt, tokens
from tests.decoding.afar import Afar
from tests.models.tiny import CASES, tiny

POLICIES = [
    buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9),
    buzz.make_policy("buzz", sink=2, window=70, stride=3, threshold=9),
    buzz.make_policy("h2o", heavy=30, window=120),
]


class Compiled:
    """Runs steps through functions that were compiled."""

    def __init__(self) -> None:
        self.counter = CompileCounterWithBackend("aot_eager")
        self.stages = compiled_stages(backend=self.counter)
        self.capacities: list[int] = []

    def usable(self, device):
        return True

    def prepare(self, step):
        free_capacity(step)
        self.capacities.append(step.layers[0].keys.shape[2])
        return lambda: step(self.stages)


@pytest.mark.parametrize("make", [tiny_llama, tiny_opt])
def test_all_capacities_share_what_is_compiled(make):
    """One function for the layers and one for the head, whatever the policy's length; ids are those of plain steps."""
    torch._dynamo.reset()
    model, prompt = make(), tokens(2, 40, seed=1)
    compiled = Compiled()
    for policy in POLICIES:
        ids = []
        for run in (None, compiled):
            with buzz.patch_model(model) as handle, torch.no_grad():
                if run is not None:
                    handle.engine.run = run
                cache = buzz.BeehiveCache(policy, model.config)
                ids.append(model.generate(prompt, past_key_values=cache, max_new_tokens=12, do_sample=False))
        assert ids[0].tolist() == ids[1].tolist()
    assert len(set(compiled.capacities)) == len(POLICIES)
    assert compiled.counter.frame_count == 2


@pytest.mark.parametrize(
    ("name", "kinds"), [("qwen3", 1), ("phi3-partial", 1), ("smollm3", 2), ("gemma3_text-mixed", 2)]
)
def test_layers_of_a_kind_share_what_is_compiled(name, kinds):
    """Layers that differ in their window, or in whether they rotate, are of two kinds."""
    torch._dynamo.reset()
    model, prompt, compiled, ids = tiny(name), tokens(2, 20, seed=1), Compiled(), []
    for run in (Off(), compiled):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = buzz.BeehiveCache(POLICIES[0], model)
            ids.append(model.generate(prompt, past_key_values=cache, max_new_tokens=8, do_sample=False))
    assert ids[0].tolist() == ids[1].tolist()
    assert compiled.counter.frame_count == kinds + 1  # and the head


def test_what_scores_are_made_of_is_compiled_in():
    """Two caches of the same size whose scores differ in that: each gets the tokens of plain steps."""
    torch._dynamo.reset()
    model, prompt, ids = tiny_llama(), tokens(2, 40, seed=1), []
    policies = [
        Afar(heavy=5, window=6, of=of, beyond=beyond) for of, beyond in (("largest", 0), ("sum", 0), ("sum", 5))
    ]
    for run in (Off(), Compiled()):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            for policy in policies:
                cache = buzz.BeehiveCache(policy, model.config)
                ids.append(model.generate(prompt, past_key_values=cache, max_new_tokens=20, do_sample=False).tolist())
    assert ids[:3] == ids[3:]
    assert ids[0] != ids[1] != ids[2]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_captured_steps_of_every_family(name, rows, recwarn):
    """One row by kernels of our own, several compiled: the tokens of the model's own forward, over evictions."""
    torch._dynamo.reset()
    model, prompt, ids = tiny(name).cuda(), tokens(rows, 40, seed=1).cuda(), []
    for run in (Off(), Captured()):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = buzz.BeehiveCache(POLICIES[0], model)
            ids.append(model.generate(prompt, past_key_values=cache, max_new_tokens=30, do_sample=False))
    assert ids[0].tolist() == ids[1].tolist()
    told = [str(w.message) for w in recwarn if "decoding is not" in str(w.message)]
    mixture = type(model.model.layers[0].mlp).__name__ if hasattr(model.model, "layers") else ""
    assert not told or "Moe" in mixture, told  # experts that are picked on the host cannot be captured


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [tiny_llama, tiny_opt])
@pytest.mark.parametrize("compiled", [True, False])
def test_captured_steps_give_the_tokens_of_the_models_own_forward(make, compiled):
    """Over evictions, in caches of several capacities, of padded rows; in float32."""
    torch._dynamo.reset()
    model, prompt = make().cuda(), tokens(3, 40, seed=1).cuda()
    mask = torch.ones_like(prompt)
    mask[1, :9] = 0
    for policy in (*POLICIES, Afar(heavy=30, window=20), Afar(heavy=30, window=20, of="sum")):
        ids = []
        for run in (Off(), Captured(compiled)):
            with buzz.patch_model(model) as handle, torch.no_grad():
                handle.engine.run = run
                cache = buzz.BeehiveCache(policy, model.config)
                how = {"attention_mask": mask, "max_new_tokens": 60, "do_sample": False}
                ids.append(model.generate(prompt, past_key_values=cache, **how))
                assert all(layer.home is None for layer in cache.layers) == isinstance(run, Off)
        assert ids[0].tolist() == ids[1].tolist()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["mixtral-unbounded", "qwen3_moe"])
def test_grouped_products_of_experts_are_captured(name):
    """As transformers has them by default."""
    torch._dynamo.reset()
    model = tiny(name).cuda().bfloat16()
    model.set_experts_implementation("grouped_mm")
    with buzz.patch_model(model), warnings.catch_warnings():
        warnings.filterwarnings("error", "decoding is not")
        for rows in (1, 2):
            cache, prompt = buzz.BeehiveCache(POLICIES[0], model), tokens(rows, 30, seed=1).cuda()
            ids = model.generate(prompt, past_key_values=cache, max_new_tokens=8, do_sample=False, eos_token_id=None)
            assert ids.shape == (rows, 38)
            assert all(layer.home is not None for layer in cache.layers)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_that_cannot_be_captured_runs_as_it_is():
    """Experts that are picked on the host. It is told once, and sampling goes on with the generator as it was."""
    torch._dynamo.reset()
    model, prompt, ids = tiny("mixtral-unbounded").cuda(), tokens(2, 20, seed=1).cuda(), []
    for run in (Off(), Captured()):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            torch.manual_seed(5)
            caches = [buzz.BeehiveCache(POLICIES[0], model) for _ in range(2)]
            how = {"max_new_tokens": 9, "do_sample": True, "eos_token_id": None}
            if isinstance(run, Captured):
                with pytest.warns(UserWarning, match="decoding is not captured"):
                    ids.append(model.generate(prompt, past_key_values=caches[0], **how))
            else:
                ids.append(model.generate(prompt, past_key_values=caches[0], **how))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ids.append(model.generate(prompt, past_key_values=caches[1], **how))
    assert [part.tolist() for part in ids[:2]] == [part.tolist() for part in ids[2:]]
