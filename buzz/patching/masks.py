"""Masks that a wrapper around the language model has made already, such as one with a vision tower, read back."""

from __future__ import annotations

from typing import Any

import torch


def tokens_of(mask: Any, rows: int, columns: int, seen: int) -> Any:
    """The mask of a call as a BeehiveCache takes it, nonzero where there is a token; None: everywhere.

    Args:
        mask: as a backbone is given it. For each kind of layer, masks [B, 1, columns, at least seen + columns] may
            stand in a dictionary: bool, or numbers that are added to logits; or the caller's own mask, as flash
            attention takes it. Anything else is given back.
        seen: columns before this call.

    Returns:
        [B, columns] or [B, seen + columns].

    Raises:
        ValueError: some tokens see later ones, or not all earlier ones.
    """
    if not isinstance(mask, dict):
        return mask
    full = mask.get("full_attention")
    if full is None and "full_attention" in mask:
        return None
    if not isinstance(full, torch.Tensor):
        return mask
    if full.dim() != 4:  # of flash attention: as the caller gave it
        return full
    visible = full[:, 0, :, seen : seen + columns]  # what the call's columns see of each other: [B, columns, columns]
    visible = (visible if visible.dtype == torch.bool else visible == 0).expand(rows, -1, -1)
    tokens = visible.diagonal(dim1=1, dim2=2)  # [B, columns]: a token sees itself
    causal = torch.ones(columns, columns, dtype=torch.bool, device=visible.device).tril()
    if not bool((((causal & tokens[:, None]) == visible) | ~tokens[..., None]).all()):
        raise ValueError(
            "some tokens of the prompt see later ones, as those of an image do in this model: a BeehiveCache reads a "
            "prompt from left to right (docs/limits.md)"
        )
    if not seen or not bool(tokens.any(dim=1).all()):
        return tokens
    earlier = full[:, 0, :, :seen]  # a token sees all earlier ones: the cache compares them with what it was told then
    earlier = (earlier if earlier.dtype == torch.bool else earlier == 0).expand(rows, -1, -1)
    return torch.cat([(earlier & tokens[..., None]).any(dim=1), tokens], dim=1)
