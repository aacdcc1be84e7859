"""A tiny Llama with a byte-level tokenizer in a folder, a data file and configs around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that any text goes there and back; 0 pads, 1 ends."""
    special = ["<pad>", "<end>", "<user>", "<bot>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(special + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.1 M random parameters, as save_pretrained writes it, with sampling settings left in."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=400,
        initializer_range=0.15,  # large enough that answers vary with the prompt
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.3, top_p=0.5, repetition_penalty=3.0, eos_token_id=[1, 3], pad_token_id=0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread costs more than it brings, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TEXT = "river stone council market tunnel drought lake bed summit vote price winter bridge train harbour"
WORDS = TEXT.split()


def articles(n: int) -> list[dict[str, str]]:
    """Rows of unequal lengths, 30 to 200 tokens or so."""
    return [
        {
            "id": f"s{i}",
            "document": " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(5 + 5 * (i * 3 % 5))),
            "summary": f"The {WORDS[i % len(WORDS)]} won the vote.",
        }
        for i in range(n)
    ]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in articles(6)))
    return path


@pytest.fixture
def raw_config(model_folder: Path, data_file: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of 6 short samples; tests change it and write it."""
    return {
        "name": "tiny",
        "model": {"id": str(model_folder)},
        "task": {"name": "xsum", "data": str(data_file), "prompt": "{document}"},
        "methods": ["full", {"policy": "buzz", "sink": 2, "window": 12, "stride": 3, "threshold": 10}],
        "generation": {"max_new_tokens": 12},
        "batch_size": 4,
        "output": str(tmp_path / "out"),
    }


@pytest.fixture
def write_config(raw_config: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny config with top-level keys replaced; returns its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**raw_config, **changes}))
        return path

    return write
