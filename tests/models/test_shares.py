"""Shares of heads are a model's own: measured once, by a text that it writes, and given to every cache that asks."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch

import buzz
from buzz.models import shares as measuring
from buzz.models.cache_argument import as_argument
from buzz.models.families import FAMILIES
from buzz.models.layer import Prompt
from tests.conftest import VOCAB, left_pad, tiny_llama, tiny_opt, tokens
from tests.models.tiny import tiny

SMALL = {"capacity": 12, "sink": 1, "window": 3, "lazy": 3, "beyond": 4, "near": 2}
pytestmark = pytest.mark.filterwarnings("ignore:every layer of this model has a sliding window")


@pytest.mark.parametrize("name", [*FAMILIES, "gemma3_text-mixed"])
def test_every_family_is_measured(name):
    model = tiny(name)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache("comb", model)
        found = buzz.head_shares(model)
        decided = len(cache.integers.counted)
        assert (found.layers, found.heads) == (decided, model.config.num_key_value_heads if "opt" not in name else 4)
        flat = [share for of in found.shares for share in of]
        assert sum(flat) / len(flat) == pytest.approx(1)
        assert buzz.head_shares(model) is found  # once


def test_they_are_what_an_echo_leaves_the_heads_of_the_models_own_text():
    model = tiny_llama()
    with buzz.patch_model(model):
        found = buzz.head_shares(model)
        text = measuring._written(model)
        assert text.shape == (1, 1 + 8 * 64)
        cache = buzz.BeehiveCache(buzz.make_policy("comb", capacity=64, echo=True), model)
        with torch.no_grad():
            model(text, past_key_values=cache)
    held = [n for layer in cache.layers for n in layer.pool.lengths(layer.member)[0]]
    assert found == buzz.HeadShares([held[i : i + 2] for i in range(0, len(held), 2)])
    assert len(set(held)) > 2


def test_a_text_of_ones_own_counts_from_then_on():
    model = tiny_llama()
    with buzz.patch_model(model):
        own = buzz.head_shares(model)
        other = buzz.head_shares(model, tokens(1, 100, seed=3))
        assert other != own
        assert buzz.head_shares(model) is other
        assert buzz.head_shares(model, again=True) == own
        with pytest.raises(ValueError, match=r"need one text of at least 64 tokens, \[1, tokens\], got \[2, 100\]"):
            buzz.head_shares(model, tokens(2, 100))
        with pytest.raises(ValueError, match=r"got \[1, 9\]"):
            buzz.head_shares(model, tokens(1, 9))


def test_the_first_call_of_a_cache_brings_them_and_changes_nothing_else():
    model, ids = tiny_llama(), tokens(1, 60)
    known = copy.deepcopy(model)
    with buzz.patch_model(model), buzz.patch_model(known), torch.no_grad():
        shares = buzz.head_shares(known)
        cache = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL), model)
        given = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL), known, shares=shares)
        assert cache.is_unmeasured
        assert not given.is_unmeasured
        torch.manual_seed(7)
        first = model(ids, past_key_values=cache).logits
        drawn = torch.rand(1)
        assert torch.equal(first, known(ids, past_key_values=given).logits)
        assert cache.shares == shares
        assert cache.stats() == given.stats()
        torch.manual_seed(7)
        assert torch.equal(drawn, torch.rand(1))  # the random numbers of others are theirs


@pytest.mark.parametrize("family", [tiny_llama, tiny_opt])
def test_generating_with_an_unmeasured_cache_is_the_same(family):
    ids, mask = left_pad([tokens(1, n, seed=n)[0] for n in (40, 17)])
    answers = []
    for measured_before in (True, False):
        model = family()
        with buzz.patch_model(model):
            if measured_before:
                buzz.head_shares(model)
            cache = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL), model)
            answers.append(
                model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=20, do_sample=False)
            )
    assert torch.equal(*answers)


def test_heads_hold_their_budgets():
    model = tiny_llama()
    policy = buzz.make_policy("comb", **SMALL, values=False)
    shares = buzz.HeadShares(
        [[1.0, 3.0] if layer % 2 else [0.5, 1.5] for layer in range(model.config.num_hidden_layers)]
    )
    with buzz.patch_model(model), torch.no_grad():
        cache = buzz.BeehiveCache(policy, model, shares=shares)
        model(tokens(1, 200), past_key_values=cache)
        held = cache.storage.head_lengths()[0]
        wanted = shares.budgets(12, 4, 96)
        assert sum(held) == 12 * len(held)
        assert all(wanted[i] <= n <= wanted[i] + len(held) for i, n in enumerate(held))


def test_shares_of_another_model_are_refused():
    with pytest.raises(ValueError, match="head shares are of 1 layers of 2 KV heads, the policy decides over"):
        buzz.BeehiveCache("comb", tiny_llama(), shares=buzz.HeadShares([[1, 2]]))


@pytest.mark.parametrize("wrong", ["heads.json", [[1, 2]] * 4])
def test_what_are_no_shares_is_refused(wrong):
    with pytest.raises(TypeError, match=f"shares must be buzz.HeadShares, .*, got {type(wrong).__name__}"):
        buzz.BeehiveCache("comb", tiny_llama(), shares=wrong)


def test_who_cannot_be_measured_says_so():
    with pytest.raises(ValueError, match=r"measured on a patched model: call buzz.patch_model\(model\) first"):
        buzz.head_shares(tiny_llama())
    backbone = tiny_llama().model
    with buzz.patch_model(backbone), torch.no_grad():
        cache = buzz.BeehiveCache("comb", backbone, budget=20)
        with pytest.raises(ValueError, match="LlamaModel gives no logits, so it writes no text"):
            backbone(tokens(1, 60), past_key_values=cache)
        buzz.head_shares(backbone, tokens(1, 100))
        backbone(tokens(1, 60), past_key_values=cache)
        assert cache.lengths == [cache.integers.policy(0).capacity]


def test_a_model_whose_logits_are_no_numbers_is_measured_all_the_same():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with buzz.patch_model(model):
        assert buzz.head_shares(model).heads == 2


def test_a_copy_of_a_model_has_its_shares():
    model = tiny_llama()
    with buzz.patch_model(model):
        given = buzz.head_shares(model, tokens(1, 100, seed=3))
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert all(buzz.head_shares(other) == given for other in others)
    for other in others:
        other._buzz_handle.remove()
        with buzz.patch_model(other):
            assert buzz.head_shares(other) == given


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_model_in_training_is_measured_without_dropout(name):
    """Dropout would draw from random numbers that are others', and in attention it is refused with a cache."""
    model = tiny(name, attention_dropout=0.3, **({"dropout": 0.3} if name == "opt" else {}))
    with buzz.patch_model(copy.deepcopy(model)) as handle:
        wanted = buzz.head_shares(handle.model)
    model.train()
    model.lm_head.eval()
    with buzz.patch_model(model):
        torch.manual_seed(7)
        assert buzz.head_shares(model) == wanted
        drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    assert [name for name, module in model.named_modules() if not module.training] == ["lm_head"]


@pytest.mark.parametrize("first", [-1, VOCAB])
def test_a_beginning_that_the_model_does_not_have_is_none(first):
    found = []
    for token in (first, None):
        model = tiny("llama")
        model.config.bos_token_id = token
        with buzz.patch_model(model):
            found.append(buzz.head_shares(model))
    assert found[0] == found[1]


@pytest.mark.parametrize(("text", "got"), [([1] * 100, "list"), (torch.ones(1, 100), "torch.float32")])
def test_what_is_no_text_is_refused(text, got):
    model = tiny_llama()
    with buzz.patch_model(model), pytest.raises(ValueError, match=f"need a text of integers, .*, got {got}"):
        buzz.head_shares(model, text)


def test_another_default_device_changes_nothing():
    model = tiny_llama()
    with buzz.patch_model(copy.deepcopy(model)) as handle:
        wanted = buzz.head_shares(handle.model)
    with buzz.patch_model(model), torch.device("meta"):
        assert buzz.head_shares(model) == wanted


def test_what_the_call_that_measures_asks_for_still_holds(monkeypatch):
    """On a GPU the last layer of a prompt computes the last columns alone if no others are asked for."""
    model, asked = tiny_llama(), []
    begin = Prompt.begin
    monkeypatch.setattr(Prompt, "begin", lambda prompt, *args: asked.append(prompt.asked) or begin(prompt, *args))
    with buzz.patch_model(model), torch.no_grad():
        model(tokens(1, 60), past_key_values=buzz.BeehiveCache("comb", model, budget=20), logits_to_keep=1)
    assert asked[-1]


def test_a_cache_that_was_reset_takes_the_shares_of_the_next_model():
    models = [tiny("llama", seed=seed) for seed in (0, 1)]
    given = buzz.HeadShares([[1, 2]] * 4)
    with buzz.patch_model(models[0]), buzz.patch_model(models[1]), torch.no_grad():
        cache = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL), models[0])
        for model in models:
            cache.reset()
            assert cache.is_unmeasured
            output = model(tokens(1, 60), past_key_values=cache).logits
            assert cache.shares == buzz.head_shares(model)
            fresh = buzz.BeehiveCache(buzz.make_policy("comb", **SMALL), model)
            assert torch.equal(model(tokens(1, 60), past_key_values=fresh).logits, output)
            assert cache.storage.head_lengths() == fresh.storage.head_lengths()
        cache.shares = given  # by hand: they stay
        cache.reset()
        assert cache.shares == given
        cache.shares = None
        assert cache.is_unmeasured


def test_measuring_warns_of_nothing_that_nobody_did():
    """Its texts are rows of one call; a caller's single row depends on no neighbour."""
    model = tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with buzz.patch_model(model), torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(tokens(1, 60), **as_argument(buzz.BeehiveCache("comb", model, budget=20)))
        with pytest.warns(UserWarning, match="rotary angles depend on the longest row of a call"):
            model(tokens(2, 60), **as_argument(buzz.BeehiveCache("comb", model, budget=20)))


def test_rows_of_both_kinds_of_budgets_are_refused():
    policies = [buzz.make_policy("comb", **SMALL, budgets=kind) for kind in ("measured", "worth")]
    with pytest.raises(ValueError, match="rows of a batch need the same kind of budgets, measured or by worth"):
        buzz.PerRow(policies)


def test_few_heads_are_alike_but_with_a_text_of_ones_own(monkeypatch):
    """Measured they did harm (docs/comb.md), so those of a model with few are not."""
    monkeypatch.setattr(measuring, "_FEW", 16)
    model = tiny_llama()  # six heads
    with buzz.patch_model(model):
        assert buzz.head_shares(model).shares == ((1.0, 1.0),) * 3
        assert len(set(buzz.head_shares(model, tokens(1, 100, seed=3)).budgets(100, 1, 800))) > 1
    with buzz.patch_model(tiny("llama")) as handle:
        many = handle.model.config.num_hidden_layers * handle.model.config.num_key_value_heads
        monkeypatch.setattr(measuring, "_FEW", many)
        assert len({share for of in buzz.head_shares(handle.model).shares for share in of}) > 1
