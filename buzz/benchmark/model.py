"""The model of a benchmark: a shape with random weights, made on its device, or one that is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from buzz.benchmark.config import SHAPES, BenchModel
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.memory import is_out_of_memory
from buzz.evaluation.models.load import load_model, quiet_transformers
from buzz.evaluation.models.source import resolve_device


def load(config: BenchModel, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """The model in eval mode, its tokenizer (None for a shape), and what the results say about it.

    Nothing ends an answer early, but a loop has to look: the end of sequence is a token that does not exist.

    Raises:
        ConfigError: no such model, damaged, of a family that is not supported, or too large for the memory.
    """
    with quiet_transformers():
        if config.shape is None:
            model, tokenizer, info = load_model(config.loadable())
            info["root"] = Path(info["root"]).name  # where it lies on this machine is nobody's business
        else:
            model, tokenizer, info = _random(config, seed), None, {"shape": config.shape}
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=model.config.vocab_size)
    facts = {"parameters": model.num_parameters(), "dtype": str(model.dtype).removeprefix("torch.")}
    return model, tokenizer, {**info, **facts, "device": str(model.device)}


def _random(config: BenchModel, seed: int) -> Any:
    """Made on the device itself: initialising 13 GB on a CPU would take minutes."""
    device = resolve_device(config.device)
    auto = torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = auto if config.dtype == "auto" else getattr(torch, config.dtype)
    torch.manual_seed(seed)
    shape = AutoConfig.for_model(**SHAPES[str(config.shape)])
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").eval()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        what = f"{config.shape} does not fit into the free memory of {device}"
        raise ConfigError("model.shape", what, "another shape or device is wanted") from error


def weight_bytes(model: Any) -> int:
    """Bytes of the weights that one step reads: all but the input embeddings, of which it reads a row a token."""
    first, last = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    unread = 0 if first is last else first.numel() * first.element_size()
    return sum(p.numel() * p.element_size() for p in model.parameters()) - unread
