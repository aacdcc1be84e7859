"""What stands in for a real model and real data: a tiny Llama with a byte-level tokenizer, and rows of articles."""

from __future__ import annotations

from pathlib import Path

import torch
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


def save_model(folder: Path) -> None:
    """A Llama of 0.1 M random parameters, as save_pretrained writes it, with sampling settings left in."""
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
