"""What the slots of a prompt get in one reading and in a second: whole attention matrices of the unpatched model."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel


@torch.no_grad()
def naive_scores(
    model: PreTrainedModel, ids: torch.Tensor, chunk: int, weight: float = 0.0, beyond: int = 2, lead: int = 0
) -> list[torch.Tensor]:
    """The largest attention from the copy of a first prompt, ids [1, n], in chunks: [H, n] of each layer.

    Args:
        weight: of the mean attention of the first reading from more than `beyond` slots away, which is added.
        lead: tokens before a chunk that are read with it and do not count.
    """
    before, n = model.config._attn_implementation, ids.shape[1]
    model.set_attn_implementation("eager")
    heads = model.config.num_key_value_heads if hasattr(model.config, "num_key_value_heads") else None
    first = [_by_group(a[0], heads) for a in model(ids, output_attentions=True, use_cache=False).attentions]
    echo = [torch.zeros(len(a), n) for a in first]
    for begin in range(0, n, chunk):
        front = max(0, begin - lead)
        text = torch.cat([ids, ids[:, front : begin + chunk]], dim=1)
        for layer, attention in enumerate(model(text, output_attentions=True, use_cache=False).attentions):
            for h, group in enumerate(_by_group(attention[0], heads)):
                for query in range(n + begin - front, text.shape[1]):
                    for g in range(len(group)):
                        echo[layer][h] = torch.maximum(echo[layer][h], group[g, query, :n])
    model.set_attn_implementation(before)
    if not weight:
        return echo
    return [e + weight * _mean_from_afar(a, beyond) for e, a in zip(echo, first, strict=True)]


@torch.no_grad()
def naive_first_scores(
    model: PreTrainedModel, ids: torch.Tensor, beyond: int, weight: float, near: int
) -> list[torch.Tensor]:
    """The largest attention from more than `beyond` slots away, and `weight` times the mean from more than `near`, in a
    first prompt, ids [1, n]: [H, n] of each layer."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    heads = getattr(model.config, "num_key_value_heads", None)
    first = [_by_group(a[0], heads) for a in model(ids, output_attentions=True, use_cache=False).attentions]
    model.set_attn_implementation(before)
    scores = []
    for attention in first:
        n = attention.shape[-1]
        far = torch.arange(n)[:, None] > torch.arange(n) + beyond
        scores.append(attention.masked_fill(~far, 0).amax(dim=(1, 2)) + weight * _mean_from_afar(attention, near))
    return scores


@torch.no_grad()
def naive_norms(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """The norms of a first prompt's values, [H, n] of each layer."""
    cache = DynamicCache()  # without windows
    layers = model(ids, past_key_values=cache).past_key_values.layers
    return [torch.linalg.vector_norm(layer.values[0], dim=-1) for layer in layers]


def _by_group(attention: torch.Tensor, heads: int | None) -> torch.Tensor:
    """[H, G, queries, keys] of [Hq, queries, keys]."""
    return attention.unflatten(0, (heads or len(attention), -1)).float()


def _mean_from_afar(attention: torch.Tensor, beyond: int) -> torch.Tensor:
    """[H, n]: the mean over the query heads and over the queries more than `beyond` behind a slot."""
    heads, group, n, _ = attention.shape
    mean = torch.zeros(heads, n)
    for h in range(heads):
        for slot in range(n):
            given = [attention[h, g, query, slot] for query in range(slot + beyond + 1, n) for g in range(group)]
            if given:
                mean[h, slot] = sum(given) / len(given)
    return mean
