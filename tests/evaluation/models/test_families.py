"""Which checkpoints and GGUF files are of a family that buzz knows, and that they are loaded whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models import load as model_load
from buzz.evaluation.models.gguf import MODEL_TYPES, repair_tokenizer
from buzz.evaluation.models.load import load_model
from buzz.evaluation.models.section import ModelConfig
from buzz.evaluation.models.source import check_model
from buzz.patching import UnsupportedModelError, supported_families
from tests.evaluation.tiny import byte_tokenizer
from tests.models.tiny import LAYERS, WINDOW, spread, tiny

TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 400,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def saved(model: PreTrainedModel, folder: Path) -> ModelConfig:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return ModelConfig(id=str(folder), device="cpu")


def multimodal(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "gemma3":
        images: dict[str, Any] = {"vision_config": VISION, "mm_tokens_per_image": 4, "image_token_id": 4}
        return spread(Gemma3ForConditionalGeneration(Gemma3Config(text_config=TEXT, **images)).eval())
    clip = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    text = {"model_type": "llama", **TEXT}
    config = LlavaConfig(text_config=text, vision_config=clip, image_token_index=4)
    return spread(LlavaForConditionalGeneration(config).eval())


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", supported_families())
def test_every_family_is_loaded(tmp_path, family):
    model = tiny(family)
    loaded, _, info = load_model(saved(model, tmp_path))
    assert type(loaded) is type(model)
    assert (info["model_type"], info["whole"], info["layers"]) == (family, None, LAYERS)
    weights = loaded.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "full", "window"),
    [
        ("llama", LAYERS, None),
        ("mistral", 0, WINDOW),
        ("mistral-unbounded", LAYERS, None),
        ("qwen2", LAYERS, None),
        ("gemma3_text", 0, WINDOW),
        ("gemma3_text-mixed", LAYERS // 2, WINDOW),
        ("qwen3_moe-windows", 0, WINDOW),
    ],
)
def test_how_far_layers_look_back(tmp_path, name, full, window):
    _, _, info = load_model(saved(tiny(name), tmp_path))
    assert (info["full_attention_layers"], info["sliding_window"]) == (full, window)


@pytest.mark.parametrize(("name", "text"), [("gemma3", "gemma3_text"), ("llava", "llama")])
def test_the_text_model_of_a_multimodal_checkpoint(tmp_path, name, text):
    whole = multimodal(name)
    config = saved(whole, tmp_path)
    source = check_model(config)
    assert (source.model_type, source.whole, source.max_positions) == (text, name, 400)
    model, _, info = load_model(config)
    assert (model.config.model_type, info["whole"], info["kv_heads"]) == (text, name, 2)
    ids = torch.randint(5, 300, (1, 20))
    pictures = {"token_type_ids": torch.zeros_like(ids)} if name == "gemma3" else {}
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, whole(input_ids=ids, **pictures).logits)


def test_a_multimodal_checkpoint_of_an_unknown_text_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "text_config": {"model_type": "y"}}))
    with pytest.raises(ConfigError) as caught:
        check_model(ModelConfig(id=str(tmp_path)))
    assert str(caught.value).startswith(
        "model.id: the model family 'y', the text model of 'x', is not supported, one of llama, "
    )


def test_a_weight_that_is_missing_is_one_line(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"^model.id: .*: 1 of its weights are missing, such as model.layers.1.mlp"):
        load_model(ModelConfig(id=str(copy), device="cpu"))


def test_what_cannot_be_patched_is_one_line(model_folder, monkeypatch):
    def refuse(_):
        raise UnsupportedModelError("cannot patch it")

    monkeypatch.setattr(model_load, "patch_model", refuse)
    with pytest.raises(ConfigError, match=r"^model.id: cannot patch it, "):
        load_model(ModelConfig(id=str(model_folder), device="cpu"))


# --- GGUF files ------------------------------------------------------------------------------------------------------


def header(folder: Path, architecture: str) -> ModelConfig:
    """A GGUF file without tensors."""
    writer = gguf.GGUFWriter(folder / "x.gguf", architecture)
    writer.add_context_length(2048)
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return ModelConfig(gguf=str(folder / "x.gguf"))


@pytest.mark.parametrize("architecture", MODEL_TYPES)
def test_architectures_are_called_as_transformers_does(tmp_path, architecture):
    source = check_model(header(tmp_path, architecture))
    assert source.model_type == AutoConfig.from_pretrained(tmp_path, gguf_file="x.gguf").model_type
    assert source.max_positions == 2048


@pytest.mark.parametrize("family", sorted(set(supported_families()) - set(MODEL_TYPES.values())))
def test_an_architecture_that_transformers_does_not_read(tmp_path, family):
    config = header(tmp_path, family)
    with pytest.raises(ConfigError, match=f"^model.gguf: transformers reads no GGUF files of the family '{family}'"):
        check_model(config)
    with pytest.raises(ValueError, match="not supported"):
        AutoConfig.from_pretrained(tmp_path, gguf_file="x.gguf")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("said", "bos", "eos"),
    [
        ({"add_bos_token": True, "add_eos_token": False}, True, False),
        ({"add_bos_token": False, "add_eos_token": True}, False, True),
        ({"model": "llama", "add_eos_token": False}, True, False),  # llama.cpp's default
    ],
)
def test_texts_begin_and_end_as_the_file_says(before, said, bos, eos):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<user>"
    tokenizer.add_bos_token = tokenizer.add_eos_token = before
    plain = tokenizer("ab", add_special_tokens=False)["input_ids"]
    metadata = {"bos_token_id": 2, "eos_token_id": 1, **said}
    repair_tokenizer(tokenizer, {f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert tokenizer("ab")["input_ids"] == [2] * bos + plain + [1] * eos
