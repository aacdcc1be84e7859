"""The language model inside a model that also sees: patched there, it gives what the unpatched one gives."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import buzz
from buzz.patching.masks import tokens_of
from tests.conftest import VOCAB, tokens
from tests.models.reference import NaiveModel
from tests.models.tiny import spread, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore:every layer of this model has a sliding window")

IMAGE = VOCAB  # a token that no text has
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def llava(name):
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=tiny_config(name, vocab_size=VOCAB + 1),
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    return LlavaForConditionalGeneration(config)


def gemma3(name):
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=tiny_config(name, vocab_size=VOCAB + 1),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
    )
    return Gemma3ForConditionalGeneration(config)


SEEING = [(llava, "llama"), (llava, "qwen3-windows"), (llava, "mistral"), (gemma3, "gemma3_text-mixed")]


@pytest.fixture(params=SEEING, ids=lambda pair: f"{pair[0].__name__}-{pair[1]}")
def model(request):
    torch.manual_seed(0)
    build, name = request.param
    return spread(build(name).eval())


@torch.no_grad()
def test_text_alone_gives_the_same_logits_and_ids(model):
    ids, mask = tokens(2, 30), torch.ones(2, 30).long()
    mask[1, :9] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    expected, written = model(ids, attention_mask=mask).logits, model.generate(ids, **settings)
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache("buzz", model)
        logits = model(ids, attention_mask=mask, past_key_values=cache).logits
        torch.testing.assert_close(logits[mask == 1], expected[mask == 1], atol=2e-4, rtol=0)
        got = model.generate(ids, past_key_values=buzz.BeehiveCache("h2o", model), **settings)
    assert got.tolist() == written.tolist()


@torch.no_grad()
def test_text_alone_evicts_as_the_naive_model(model):
    model, params = model.double(), {"heavy": 7, "window": 6}
    naive = NaiveModel(model, "h2o", params, "cache")
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(buzz.make_policy("h2o", **params), model)
        for ids in tokens(1, 36).split([30, *[1] * 6], dim=1):
            logits = model(ids, past_key_values=cache).logits[0]
            torch.testing.assert_close(logits, naive(ids), atol=1e-5, rtol=0)
        assert cache.get_seq_length() == 36


@pytest.mark.parametrize("name", [name for build, name in SEEING if build is llava])
@torch.no_grad()
def test_an_image_gives_the_same_ids_and_is_evicted_like_text(name):
    torch.manual_seed(0)
    model = spread(llava(name).eval())
    ids = torch.cat([tokens(1, 25), torch.full((1, 4), IMAGE), tokens(1, 6, seed=1)], dim=1)
    pixels = torch.randn(1, 3, 8, 8)
    settings = {"pixel_values": pixels, "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **settings)
    assert expected.tolist() != model.generate(ids, **{**settings, "pixel_values": -pixels}).tolist()
    with buzz.patch_model(model):
        got = model.generate(ids, past_key_values=buzz.BeehiveCache("buzz", model), **settings)
        assert got.tolist() == expected.tolist()
        cache = buzz.BeehiveCache(buzz.make_policy("streaming", sink=2, window=10), model)
        model.generate(ids, past_key_values=cache, **settings)
    assert max(cache.lengths) <= 12


def test_a_mask_for_flash_attention_is_the_callers_own():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert tokens_of({"full_attention": mask, "sliding_attention": mask}, rows=2, columns=3, seen=0) is mask


def test_masks_of_a_later_call_tell_of_earlier_columns():
    """Bool or added to logits; what they say of columns that were seen, the cache compares with what was said then."""
    known = torch.tensor([[True, True, False, True, True], [False, True, True, True, True]])
    visible = torch.zeros(2, 1, 2, 5, dtype=torch.bool)  # of two queries
    visible[:, 0, 0] = known & torch.tensor([True, True, True, True, False])
    visible[:, 0, 1] = known
    added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    for mask in (visible, added):
        assert torch.equal(tokens_of({"full_attention": mask}, rows=2, columns=2, seen=3), known)
    pads = visible.clone()
    pads[1, 0] = False  # a row without a token in this call says nothing of earlier ones
    assert tokens_of({"full_attention": pads}, rows=2, columns=2, seen=3).tolist() == [[True, True], [False, False]]
