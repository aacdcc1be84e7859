"""The table of families: a new one is a line, and what none of them is, is refused by name."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

import buzz
from buzz.models.families import FAMILIES
from buzz.models.family import Family
from tests.conftest import tokens
from tests.models.reference import NaiveModel
from tests.models.tiny import spread, tiny, tiny_config

HARD = {"sink": 2, "window": 6, "stride": 5, "threshold": 9}


@pytest.fixture
def newcomer(monkeypatch):
    """A model of a family that transformers has and buzz does not: Llama's under another name."""
    home = ModuleType("transformers.models.newcomer.modeling_newcomer")
    home.__file__, home.__package__ = modeling_llama.__file__, modeling_llama.__package__
    monkeypatch.setitem(sys.modules, home.__name__, home)
    source = inspect.getsource(modeling_llama).replace("Llama", "Newcomer")
    source = source.replace("import NewcomerConfig", "import LlamaConfig as NewcomerConfig")
    exec(compile(source, home.__file__, "exec"), vars(home))
    kind = type("NewcomerConfig", (LlamaConfig,), {"model_type": "newcomer"})
    config = kind(**{**tiny_config("llama").to_diff_dict(), "model_type": "newcomer"})
    torch.manual_seed(0)
    model = spread(home.NewcomerForCausalLM(config).eval())
    assert model.config.model_type == "newcomer"
    assert not isinstance(model.model, modeling_llama.LlamaModel)
    return model


def add(monkeypatch):
    """All that a family needs which does nothing otherwise than Llama."""
    monkeypatch.setitem(FAMILIES, "newcomer", Family("newcomer", "Newcomer"))


@pytest.mark.parametrize("positions", ["cache", "original"])
@torch.no_grad()
def test_a_family_is_added_by_a_line(newcomer, monkeypatch, positions):
    with pytest.raises(buzz.UnsupportedModelError, match="cannot patch a 'newcomer' model"):
        buzz.patch_model(newcomer)
    add(monkeypatch)
    ids = tokens(1, 40)
    naive, expected = NaiveModel(newcomer, "buzz", HARD, positions), newcomer(ids).logits
    with buzz.patch_model(newcomer):
        cache = buzz.BeehiveCache("full", newcomer, positions)
        torch.testing.assert_close(newcomer(ids, past_key_values=cache).logits, expected, atol=2e-4, rtol=0)
        newcomer.double()
        cache = buzz.BeehiveCache(buzz.make_policy("buzz", **HARD), newcomer, positions)
        for call in ids.split([30] + [1] * 10, dim=1):
            logits = newcomer(call, past_key_values=cache).logits[0]
            torch.testing.assert_close(logits, naive(call), atol=1e-5, rtol=0)
    assert "newcomer" in buzz.patching.supported_families()
    with pytest.raises(buzz.UnsupportedModelError, match="newcomer"):
        buzz.patch_model(torch.nn.Linear(2, 2))


def test_a_family_with_attention_sinks_is_refused(newcomer, monkeypatch):
    add(monkeypatch)
    for layer in newcomer.model.layers:
        layer.self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    assert_refused(newcomer, "sink")


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "softcap"),
        ("gemma3_text-mixed", {"use_bidirectional_attention": True}, "is_causal=False"),
    ],
)
def test_attention_of_another_kind_is_refused(name, changes, what):
    assert_refused(tiny(name, **changes), what)


def assert_refused(model, what):
    with pytest.raises(buzz.UnsupportedModelError, match=what):
        buzz.patch_model(model)
    assert not any("_buzz" in vars(module) or "forward" in vars(module) for module in model.modules())
