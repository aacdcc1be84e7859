"""A patched model takes a cache by the name of any version of transformers, and hands it on by that of this one."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import DynamicCache

import buzz
from buzz.models.cache_argument import CACHE, as_argument, named
from tests.conftest import tokens
from tests.models.tiny import CASES, tiny

NAMES = ("cache", "past_key_values")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_family_takes_either_name(case):
    model = tiny(case)
    ids = tokens(2, 30)
    with buzz.patch_model(model):
        caches = [buzz.BeehiveCache("h2o", model, budget=16) for _ in NAMES]
        one, other = (model(ids, **{name: cache}).logits for name, cache in zip(NAMES, caches, strict=True))
        assert one.equal(other)
        assert caches[0].lengths == caches[1].lengths
        assert model(ids[:, :1], **as_argument(caches[0]))[CACHE] is caches[0]


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
        # Nor are others lost, or given by no name that generate() knows.
        plain = DynamicCache(config=model.config)
        assert model.generate(ids, **{name: plain}, **how)[CACHE] is plain
        assert model.generate(ids, **{name: None}, **how).sequences.shape == (1, 30)


@torch.no_grad()
def test_a_backbone_takes_either_name(model):
    backbone = next(m for m in model.modules() if hasattr(m, "layers"))
    with buzz.patch_model(model):
        caches = [buzz.BeehiveCache("full", model) for _ in NAMES]
        for name, cache in zip(NAMES, caches, strict=True):
            assert backbone(tokens(1, 9), **{name: cache})[CACHE] is cache
        with pytest.raises(ValueError, match="a cache is given twice, as cache and as past_key_values: give it once"):
            backbone(tokens(1, 9), cache=caches[0], past_key_values=caches[1])


@torch.no_grad()
def test_a_cache_that_is_given_twice_is_refused(model):
    with buzz.patch_model(model):
        one, other = (buzz.BeehiveCache("full", model) for _ in NAMES)
        with pytest.raises(ValueError, match="give it once"):
            model.generate(tokens(1, 9), cache=one, past_key_values=other)


def test_arguments_without_a_cache_are_as_they_were():
    kwargs = {"use_cache": True, CACHE: None}
    assert named(kwargs) is kwargs
    assert named({"past_key_values": None, "cache": 1, "use_cache": True}) == {"use_cache": True, CACHE: 1}
    assert named(dict.fromkeys(NAMES)) == {CACHE: None}
