"""The table of families: a new one is a line, and what none of them is, is refused by name."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from transformers.models.llama import modeling_llama

import buzz
from tests.conftest import tokens
from tests.models.reference import NaiveModel
from tests.models.tiny import CASES, VARIANTS, tiny

HOME = "transformers.models.newcomer"
HARD = {"sink": 2, "window": 6, "stride": 5, "threshold": 9}


def test_every_variant_is_of_a_family_in_the_table():
    assert set(VARIANTS) <= set(CASES)


@pytest.fixture
def newcomer(monkeypatch):
    """A model of a family that transformers has and buzz does not: Llama's classes under other names."""
    home = ModuleType(f"{HOME}.modeling_newcomer")
    home.__file__ = modeling_llama.__file__  # where transformers looks up what a class can do
    vars(home).update({key: value for key, value in vars(modeling_llama).items() if not key.startswith("__")})
    model, renamed = tiny("llama"), {}
    for kind in {type(module) for module in model.modules()} | {type(model.config)}:
        if "Llama" in kind.__name__:
            name = kind.__name__.replace("Llama", "Newcomer")
            renamed[kind] = type(name, (kind,), {"__module__": home.__name__, "model_type": "newcomer"})
            setattr(home, name, renamed[kind])
    for part in (*model.modules(), model.config):
        part.__class__ = renamed.get(type(part), type(part))
    monkeypatch.setitem(sys.modules, HOME, ModuleType(HOME))
    monkeypatch.setitem(sys.modules, home.__name__, home)
    monkeypatch.setattr(sys.modules[HOME], "modeling_newcomer", home, raising=False)
    assert model.config.model_type == "newcomer"
    assert type(model.model.layers[0].self_attn).__name__ == "NewcomerAttention"
    return model


def add(monkeypatch):
    """All that a family needs which does nothing otherwise than Llama."""
    from buzz.models import families, family

    monkeypatch.setitem(families.FAMILIES, "newcomer", family.Family("Newcomer"))


@pytest.mark.parametrize("positions", ["cache", "original"])
@torch.no_grad()
def test_a_family_is_added_by_a_line(newcomer, monkeypatch, positions):
    with pytest.raises(buzz.UnsupportedModelError, match=r"[Nn]ewcomer"):
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
        ("gemma3_text-mixed", {"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_attention_of_another_kind_is_refused(name, changes, what):
    assert_refused(tiny(name, **changes), what)


def assert_refused(model, what):
    with pytest.raises(buzz.UnsupportedModelError, match=what):
        buzz.patch_model(model)
    assert not any("_buzz" in vars(module) or "forward" in vars(module) for module in model.modules())
