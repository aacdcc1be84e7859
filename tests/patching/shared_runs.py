"""What processes run that share a model, as one does that has all of it, and how the two are compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import buzz

LENGTHS = (40, 21, 29)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


def load_whole(folder: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    """The model in a folder, all of it in this process."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).to(device).eval()


def load_shared(folder: str, dtype: torch.dtype, **options: Any) -> Any:
    """The same model, shared by all processes."""
    plan = DistributedConfig(tp_plan="auto", tp_size=dist.get_world_size())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, distributed_config=plan, **options).eval()


class Result(NamedTuple):
    """What a model gave: ids [B, L], the slots of every eviction, the lengths and the tensors of every layer, and the
    bytes of the cache."""

    ids: torch.Tensor
    evictions: list[tuple[int, torch.Tensor]]
    lengths: list[list[int]]
    tensors: list[list[torch.Tensor | None]]
    nbytes: int


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any, **options: Any) -> torch.Tensor:
    return model.generate(ids, attention_mask=mask, past_key_values=cache, **{**GREEDY, **options})


@torch.no_grad()
def forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
    """A prompt, a second turn with pads of its own, and single tokens."""
    given: list[torch.Tensor] = []
    for _ in range(2):
        mask = torch.cat([mask, mask[:, -24:-19]], dim=1) if given else mask
        logits = model(ids[:, -5:] if given else ids, attention_mask=mask, past_key_values=cache).logits
        given.append(logits[:, -1:].argmax(dim=-1))
    for _ in range(5):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        given.append(model(given[-1], attention_mask=mask, past_key_values=cache).logits.argmax(dim=-1))
    return torch.cat(given, dim=1)


def prompt(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a left-padded batch."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 96, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) >= max(LENGTHS) - torch.tensor(LENGTHS)[:, None]).long()
    return (ids * mask).to(device), mask.to(device)


def run(model: Any, call: Any, policy: Any, positions: str) -> Result:
    cache, evictions = buzz.BeehiveCache(policy, model.config, positions=positions), []
    cache.on_evict = lambda layer, eviction, slots: evictions.append((layer, slots.cpu()))
    ids = call(model, *prompt(model.device), cache)
    layers = range(len(cache.layers))
    return Result(
        ids,
        evictions,
        [cache.layer_lengths(layer) for layer in layers],
        [list(cache.layers[layer].tensors) for layer in layers],
        cache.nbytes,
    )


def differences(expected: Result, got: Result, spread: bool = True) -> Iterator[str]:
    """In what a shared model differs; spread: whether a process has the KV heads of its part alone, and not all."""
    processes = dist.get_world_size() if spread else 1
    if expected.ids.tolist() != got.ids.tolist():
        yield "tokens differ"
    if expected.nbytes != got.nbytes * processes:
        yield f"the cache has {got.nbytes} bytes of {expected.nbytes}"
    if expected.lengths != got.lengths:
        yield "lengths differ"
        return
    evictions = zip(expected.evictions, got.evictions, strict=False)
    same = all(a[0] == b[0] and torch.equal(_own(a[1], processes), b[1]) for a, b in evictions)
    if len(expected.evictions) != len(got.evictions) or not same:
        yield "other slots stay"
    for before, after, lengths in zip(expected.tensors, got.tensors, expected.lengths, strict=True):
        for a, b in zip(before, after, strict=True):
            if a is None or b is None:
                if a is not b:
                    yield "scores are kept or not"
            elif not all(close(_own(a, processes)[i, :, :n], b[i, :, :n]) for i, n in enumerate(lengths)):
                yield "keys, values or scores differ"
                return


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def _own(tensor: torch.Tensor, processes: int) -> torch.Tensor:
    """The heads of this process in [B, H or 1, ...] of all, which are spread over so many."""
    if tensor.shape[1] == 1 or processes == 1:
        return tensor
    return tensor.chunk(processes, dim=1)[dist.get_rank()]
