"""Slots by their scores: the same order on every device, ties and all."""

from __future__ import annotations

import torch

from buzz.kernels.device import runs_triton
from buzz.policies.places import Places


def ranked(scores: torch.Tensor) -> torch.Tensor:
    """Slots by falling score along the last axis: the older one first on a tie, what is not a number at the end."""
    # A stable sort, since top-k promises no order between equal scores.
    return worst_if_undefined(scores).argsort(dim=-1, descending=True, stable=True)


def ends_and_highest(scores: torch.Tensor, kept: int, sink: int, window: int) -> torch.Tensor:
    """The first `sink` slots, the last `window`, and those with the highest scores between them: `kept` in all.

    Args:
        scores: float32 [R, H, L], L above `kept`, which is at least sink + window.

    Returns:
        int64 [R, H, kept], ascending.
    """
    length = scores.shape[-1]
    history = scores[..., sink : length - window]
    heavy = ranked(history)[..., : kept - sink - window].sort(dim=-1).values + sink
    first = torch.arange(sink, device=scores.device).expand(*scores.shape[:2], -1)
    last = torch.arange(length - window, length, device=scores.device).expand(*scores.shape[:2], -1)
    return torch.cat([first, heavy, last], dim=-1)


def by_recency(worth: torch.Tensor, places: Places | None = None) -> torch.Tensor:
    """Worth times the place of a slot among its head's, from 1 / n of the oldest of n to 1 of the latest.

    Args:
        worth: float32: [R, H, n] of equal heads; [R, P] with the places of a pool, of which free ones get anything.
    """
    if places is None:
        number = torch.arange(1, worth.shape[-1] + 1, dtype=torch.float32, device=worth.device)
        return worth * number * number[-1].reciprocal()
    inverse = places.length.float().reciprocal()
    if runs_triton(worth):
        from buzz.kernels.recency import weigh

        return weigh(worth.contiguous(), places.begin, places.length, inverse)
    return worth * (places.slot + 1).float() * places.of_head(inverse)


def worst_if_undefined(scores: torch.Tensor) -> torch.Tensor:
    """Scores with -inf for what is not a number, which sorting would put before everything else."""
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def highest(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mask of the counts [R, 1, 1] highest places of scores [R, H, L]; on equal scores the older slot.

    For rows that keep different numbers of slots. Where all keep as many, sorting those that rank first is less work.
    """
    order = ranked(scores)
    chosen = torch.arange(scores.shape[-1], device=scores.device) < counts
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, chosen.expand_as(order))


def kept_slots(keep: torch.Tensor, width: int) -> torch.Tensor:
    """The first `width` true places of a mask [R, H, L], ascending, as int64 [R, H, width]; then any false ones."""
    return (~keep).to(torch.uint8).argsort(dim=-1, stable=True)[..., :width]
