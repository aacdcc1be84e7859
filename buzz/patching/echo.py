"""The second reading of a call: its own tokens once more, behind themselves, chunk after chunk (`buzz.cache.echo`)."""

from __future__ import annotations

from typing import Any

import torch

from buzz.cache import BeehiveCache
from buzz.cache.echo import Copy
from buzz.models.cache_argument import as_argument
from buzz.models.layer import Prompt
from buzz.models.positions import Learned, Rotary
from buzz.patching.columns import pick_columns
from buzz.patching.standin import own_forward
from buzz.rows import Rows


def refuse_positions(positions: Rotary | Learned, cache: BeehiveCache, counts: list[int], ids: torch.Tensor) -> None:
    """Before anything is cached: whether the model has the positions that a copy needs.

    Args:
        counts: tokens of each row. ids: their positions, int64 [1 or B, width].

    Raises:
        ValueError: it has not.
    """
    if positions.known is None or cache.hearing is None:
        return
    last = _last(ids, counts).expand(len(counts), -1).flatten().tolist()
    needed = max(cache.hearing.last_positions(last)) + 1
    if needed > positions.known:
        raise ValueError(
            f"this OPT model has {positions.known} positions, and the call with the copy behind it needs {needed}: "
            "take a policy that reads a prompt once, or generate(prefill_chunk_size=...) with positions='cache' "
            "(docs/limits.md)"
        )


@torch.no_grad()
def read_again(
    backbone: Any,
    positions: Rotary | Learned,
    prompt: Prompt | None,
    cache: BeehiveCache,
    inputs: dict[str, Any],
    key: str,
    counts: list[int],
) -> None:
    """Feed the copies of a call that all layers have passed, and end it.

    The backbone's own forward reads them against the same cache. What it gives is of no use, so the last layer is asked
    for the least.

    Args:
        prompt: what its layers know of a prompt, where these have a faster way.
        inputs: of the call, the tokens `inputs[key]` of every row at the left.
        counts: tokens of each row.
    """
    assert cache.hearing is not None
    tokens, behind = inputs[key], _last(inputs["position_ids"], counts) + 1  # [1 or B, 1]
    for copy in cache.hearing.copies:
        call = cache.begin_copy(copy)
        if prompt is not None:
            prompt.asked = True
            prompt.begin(backbone, call.columns)
        ids = behind + torch.arange(call.columns, device=behind.device)
        if positions.known is not None:  # past a row's end: any position
            ids = ids.clamp(max=positions.known - 1)
        fed = {key: _chunk(tokens, copy), "position_ids": ids, "attention_mask": inputs["attention_mask"]}
        own_forward(
            backbone, **fed, **as_argument(cache), use_cache=True,
            output_hidden_states=False, output_router_logits=False, return_dict=True,
        )  # fmt: skip
    cache.end_copies()


def _last(ids: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The position of each row's last token, of ids [1 or B, width]: int64 [1 or B, 1]."""
    if len(set(counts)) == 1:
        return ids[:, counts[0] - 1 : counts[0]]
    last = Rows(max(0, count - 1) for count in counts).on(ids.device)[:, None]
    return pick_columns(ids.expand(len(counts), -1), last)


def _chunk(tokens: torch.Tensor, copy: Copy) -> torch.Tensor:
    """A chunk [B, copy.width] or [B, copy.width, width] of tokens; past a row's end: any token."""
    begin = copy.begins[0]
    if len(set(copy.begins)) == 1 and begin + copy.width <= tokens.shape[1]:
        return tokens[:, begin : begin + copy.width]
    columns = copy.begins.on(tokens.device)[:, None] + torch.arange(copy.width, device=tokens.device)
    return pick_columns(tokens, columns.clamp(max=tokens.shape[1] - 1))
