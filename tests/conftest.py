"""Tiny random models on the CPU, and no network."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which transformers does

from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

import buzz
from buzz.cache import Curve
from buzz.models import shares

# No deadlines: a busy machine is no bug. On CI the same examples every time; elsewhere fresh ones.
settings.register_profile("buzz", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("buzz")

VOCAB = 97

# Tiny tensors gain nothing from threads, and on a busy machine the threads wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _tiny_models_are_measured():
    """They have fewer heads than the models whose heads are measured, and would all have equal shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "_FEW", 0)
        yield


def tiny_llama(kv_heads: int = 2, seed: int = 0, **changes) -> LlamaForCausalLM:
    """Three layers, four query heads of 16; kv_heads 4, 2 and 1 are MHA, GQA and MQA."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        initializer_range=0.1,  # large enough that attention is far from uniform
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def tiny_opt(seed: int = 0, **changes) -> OPTForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "init_std": 0.1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return OPTForCausalLM(OPTConfig(**{**settings, **changes})).eval()


MODELS = {
    "llama-mha": lambda: tiny_llama(4),
    "llama-gqa": lambda: tiny_llama(2),
    "llama-mqa": lambda: tiny_llama(1),
    "opt": tiny_opt,
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def recorded(*args, **kwargs) -> buzz.BeehiveCache:
    """A cache, built from the same arguments, whose curve is recorded."""
    cache = buzz.BeehiveCache(*args, **kwargs)
    cache.curve = Curve()
    return cache


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids [rows, length], none of them special."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_pad(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, longest] of rows [length], padded with 0 at the left."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    return ids, mask
