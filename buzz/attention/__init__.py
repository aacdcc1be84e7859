"""Attention that can also tell what each key received. It knows no cache, no policy and no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch

from buzz.attention import fused, naive, one
from buzz.attention.wanted import Wanted
from buzz.rows import Rows


class Spec(Protocol):
    """The part of a policy's `ScoreSpec` that attention reads."""

    @property
    def queries(self) -> int | Sequence[int] | None:
        """How many of a row's last queries count, for all rows or for each; None: all."""

    @property
    def of(self) -> Literal["sum", "mean", "largest"]:
        """What a slot gets of the probabilities that the counted queries give it."""

    @property
    def beyond(self) -> int:
        """A query counts for the slots that are more than so many before its own; 0: for all that it sees."""

    @property
    def mean(self) -> float:
        """Weight of the mean that a slot gets beside the largest; 0 where `of` is something else."""

    @property
    def near(self) -> int:
        """For this mean, a query counts for the slots that are more than so many before its own."""


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    starts: Sequence[int] | torch.Tensor,
    scale: float,
    spec: Spec | None,
    counts: Sequence[int] | torch.Tensor | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal attention of one call over cached and new slots: one meaning for prompt, chunk and decode step.

    Query i of row b sees the slots 0 .. starts[b] + i, or the last `window` of these. K and V are never repeated for
    grouped queries.

    Args:
        q: [B, Hq, Lq, D], any floating dtype.
        k, v: [B, Hkv, C, D] with Hq a multiple of Hkv and C >= starts[b] + counts[b]. Slots past a row's end may
            hold anything finite.
        starts: cached slots of each row before this call, [B].
        scale: factor of the logits.
        spec: which queries count for the scores; None: no scores are computed.
        counts: valid queries of each row, [B]; None: all Lq. Queries from counts[b] on give undefined output and
            add nothing to the scores.
        window: slots that a query sees at most, its own included, as in transformers' sliding-window attention; None:
            any number.

    Returns:
        output [B, Hq, Lq, D] in q's dtype, and scores float32 [B, Hkv, C] or None: the attention probability that
        every slot received, summed over the counted queries and over the query heads of the group, or, as `spec.of`
        says, the mean or the largest of these; and `spec.mean` times their mean. 0 where no query counts for a slot.

    Raises:
        ValueError: shapes that do not fit together, a window of no slot, a mean beside something else.
    """
    (B, Hq, Lq, _), (rows, Hkv, C, _) = q.shape, k.shape
    if k.shape != v.shape or rows != B or Hq % Hkv:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together")
    starts = _integers(starts)
    counts = Rows([Lq] * B) if counts is None else _integers(counts)
    if len(starts) != B or len(counts) != B:
        raise ValueError(f"starts and counts need one number per row, {B}, got {len(starts)} and {len(counts)}")
    longest = max(s + c for s, c in zip(starts, counts, strict=True))
    if longest > C:
        raise ValueError(f"a row ends past the {C} slots of k and v")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if window is not None and window >= longest:
        window = None
    if spec is not None and spec.mean and spec.of != "largest":
        raise ValueError(f"a mean is added to the largest alone, got of={spec.of!r}")
    how: dict[str, Any] = {"scale": scale, "window": window}
    if spec is None:
        return fused.attend(q, k, v, starts=starts, counts=counts, **how), None
    firsts = Rows([0] * B)
    if spec.queries is not None:
        last = [spec.queries] * B if isinstance(spec.queries, int) else spec.queries
        firsts = Rows(max(0, count - n) for count, n in zip(counts, last, strict=True))
    wanted = [Wanted("largest" if spec.of == "largest" else "sum", spec.beyond + 1 if spec.beyond else 0)]
    if spec.mean:
        wanted.append(Wanted("sum", spec.near + 1 if spec.near else 0))
    if Lq == 1 and window is None and min(counts) == 1 and not any(firsts):
        output, got = one.attend_scored(q, k, v, starts=starts, scale=scale, wanted=wanted)
    elif window is None and fused.gives_scores(q, k):
        output, got = fused.attend_scored(
            q, k, v, starts=starts, firsts=firsts, counts=counts, scale=scale, wanted=wanted
        )  # fmt: skip
    elif any(firsts):
        # The output needs no scores, and the scores only a few queries.
        few, starts_few, counts_few = _last_queries(q, starts, counts, firsts)
        _, got = naive.attend(few, k, v, starts=starts_few, counts=counts_few, wanted=wanted, **how)
        output = fused.attend(q, k, v, starts=starts, counts=counts, **how)
    else:
        output, got = naive.attend(q, k, v, starts=starts, counts=counts, wanted=wanted, **how)

    def mean(index: int) -> torch.Tensor:
        state = (firsts, counts, C, q.device, window, wanted[index].lag)
        number = starts.once((state, Hq // Hkv), lambda: _numbers(starts, *state, Hq // Hkv))  # alike in many layers
        return got[index] / number

    scores = mean(0) if spec.of == "mean" else got[0]
    return output.to(q.dtype), scores + spec.mean * mean(1) if spec.mean else scores


def _numbers(
    starts: Rows, firsts: Rows, counts: Rows, slots: int, device: torch.device, window: int | None, lag: int, group: int
) -> torch.Tensor:
    """How many probabilities each slot has a mean of, at least 1: int64 [B, 1, slots]."""
    return (naive.counted(starts, firsts, counts, slots, device, window, lag) * group).clamp(min=1)[:, None]


def _last_queries(q: torch.Tensor, starts: Rows, counts: Rows, first: Rows) -> tuple[torch.Tensor, Rows, Rows]:
    """The valid queries of each row b from first[b] on, [B, Hq, n, D], with their starts and counts."""
    width = max(1, *(count - f for count, f in zip(counts, first, strict=True)))
    if min(first) == max(first):
        picked = q[:, :, first[0] : first[0] + width]
    else:
        columns = first.on(q.device)[:, None] + torch.arange(width, device=q.device)
        columns = columns.clamp(max=q.shape[2] - 1)[:, None, :, None]  # past a row's end: any query
        picked = q.gather(2, columns.expand(-1, q.shape[1], -1, q.shape[3]))
    starts = Rows(start + f for start, f in zip(starts, first, strict=True))
    return picked, starts, Rows(count - f for count, f in zip(counts, first, strict=True))


def _integers(values: Sequence[int] | torch.Tensor) -> Rows:
    if isinstance(values, Rows):
        return values
    return Rows(values.tolist() if isinstance(values, torch.Tensor) else values)


__all__ = ["attend"]
