"""The name of the argument that holds a cache: what a patched model takes, and what it refuses."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from transformers import DynamicCache

import buzz
from buzz.models.cache_argument import CACHE, OTHER, as_argument, named
from tests.conftest import tokens
from tests.models.tiny import CASES, tiny

NAMES = ("cache", "past_key_values")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_forwards_of_every_family_take_a_name_or_refuse_it(case):
    model = tiny(case)
    ids = tokens(2, 30)
    with buzz.patch_model(model):
        one, other = (buzz.BeehiveCache("h2o", model, budget=16) for _ in NAMES)
        output = model(ids, **as_argument(one))
        assert output[CACHE] is one
        if CACHE == "cache":
            assert model(ids, **{OTHER: other}).logits.equal(output.logits)
            assert other.lengths == one.lengths
            return
        with pytest.raises(ValueError, match="call the argument past_key_values: give the cache by that name"):
            model(ids, **{OTHER: other})
        assert other.get_seq_length() == 0


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generate_takes_either_name_without_a_word(model, name):
    ids = tokens(1, 24)
    how = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    with buzz.patch_model(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = buzz.BeehiveCache("buzz", model)
        out = model.generate(ids, **{name: cache}, **how)
        assert out[CACHE] is cache
        assert cache.get_seq_length() == 29


@torch.no_grad()
def test_a_backbone_is_given_one_cache(model):
    backbone = next(m for m in model.modules() if hasattr(m, "layers"))
    ids = tokens(1, 9)
    with buzz.patch_model(model):
        one, other = (buzz.BeehiveCache("full", model) for _ in NAMES)
        assert backbone(ids, **as_argument(one))[CACHE] is one
        if CACHE == "cache":
            assert backbone(ids, **{OTHER: other})[CACHE] is other
            with pytest.raises(ValueError, match="given twice, as cache and as past_key_values: give it once"):
                backbone(ids, cache=one, past_key_values=other)
        before = list(inspect.signature(type(backbone).forward).parameters)[2:]
        between = [None] * before.index(CACHE)
        assert backbone(ids[:, :1], *between, one)[CACHE] is one
        with pytest.raises(TypeError, match="multiple values"):
            backbone(ids[:, :1], *between, one, **as_argument(other))


@torch.no_grad()
def test_a_cache_that_is_given_twice_is_refused(model):
    with buzz.patch_model(model):
        one, other = (buzz.BeehiveCache("full", model) for _ in NAMES)
        with pytest.raises(ValueError, match="give it once"):
            model.generate(tokens(1, 9), cache=one, past_key_values=other)


def test_arguments_without_a_beehive_cache_are_as_they_were():
    for kwargs in ({"use_cache": True, CACHE: None}, {OTHER: DynamicCache(), CACHE: 1}, dict.fromkeys(NAMES)):
        assert named(kwargs) is kwargs
    cache = buzz.BeehiveCache("full", tiny("llama"))
    for kwargs in ({OTHER: cache}, {OTHER: cache, CACHE: None}, {OTHER: None, CACHE: cache}, {CACHE: cache}):
        assert named({"use_cache": True, **kwargs}) == {"use_cache": True, CACHE: cache}
