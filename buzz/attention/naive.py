"""The references that all else is tested against, in float32: of a call in query chunks, and of a decode step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from buzz.attention.wanted import Wanted
from buzz.rows import Rows

# Logits of one query chunk, in elements: 32 MiB in float32, which stays in or near the caches of a CPU; 512 MiB on a
# GPU, which wants few large kernels.
_CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    starts: Rows,
    counts: Rows,
    scale: float,
    window: int | None = None,
    wanted: Sequence[Wanted] = (Wanted(),),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output and what is wanted of one call, all its valid queries counted; see `buzz.attention.attend`.

    Memory beyond the results is O(chunk * C). Softmax statistics and scores are float32 (float64 for float64 inputs,
    scores excepted).

    Returns:
        output [B, Hq, Lq, D], and float32 [B, Hkv, C] for each of `wanted`.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    B, Hq, Lq, _ = q.shape
    Hkv, C = k.shape[1:3]
    q = grouped(q.to(dtype) * scale, Hkv)  # [B, Hkv, G, Lq, D]
    low, high = span(starts, 0, Lq, C, window)
    kt, v = k[:, :, low:high].to(dtype).transpose(-1, -2), v[:, :, low:high].to(dtype)
    chunk = queries_at_once(_CHUNK_ELEMENTS["cuda" if q.is_cuda else "cpu"], B * Hq, C, window)
    outputs, results = [], [q.new_zeros(B, Hkv, C, dtype=torch.float32) for _ in wanted]
    for i in range(0, Lq, chunk):
        n = min(chunk, Lq - i)
        begin, end = span(starts, i, n, C, window)
        rows = q[:, :, :, i : i + n].flatten(2, 3)  # [B, Hkv, G * n, D]
        logits = torch.matmul(rows, kt[..., begin - low : end - low]).unflatten(
            2, (-1, n)
        )  # [B, Hkv, G, n, end - begin]
        probs = torch.softmax(hide(logits, starts, i, begin, window), dim=-1)
        outputs.append(torch.matmul(probs.flatten(2, 3), v[:, :, begin - low : end - low]).unflatten(2, (-1, n)))
        for what, result in zip(wanted, results, strict=True):
            before, received = result[..., begin:end], _received(probs, starts, counts, i, begin, what)
            result[..., begin:end] = before.maximum(received) if what.of == "largest" else before + received
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=3)  # [B, Hkv, G, Lq, D]
    return output.flatten(1, 2), results


def grouped(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, Hq, L, D] -> [B, Hkv, G, L, D]: query heads g*h .. g*h+g-1 read KV head h."""
    return q.unflatten(1, (kv_heads, -1))


def queries_at_once(elements: int, heads: int, slots: int, window: int | None = None) -> int:
    """Queries of a chunk whose logits, of so many heads, are some `elements` in number; at least 16.

    n queries with a window look at window + n - 1 slots, so there a chunk is kept short beside its window.
    """
    if window is None:
        return max(16, elements // (heads * slots))
    most = max(256, window // 4)
    return max(16, min(most, elements // (heads * min(slots, window + most))))


def span(starts: Rows, first: int, n: int, slots: int, window: int | None = None) -> tuple[int, int]:
    """First and end of the slots, of so many, that some of the queries first .. first + n - 1 see."""
    begin = 0 if window is None else max(0, min(min(starts) + first + 1, slots) - window)
    return begin, min(slots, max(starts) + first + n)


def hide(logits: torch.Tensor, starts: Rows, first: int, begin: int, window: int | None = None) -> torch.Tensor:
    """Set to -inf, in place, what queries from `first` on do not see of slots from `begin` on: [B, Hkv, G, n, S]."""
    n, slots = logits.shape[-2:]
    # Without a window every query of the chunk sees the slots before this one.
    clear = min(starts) + first + 1 - begin if window is None else 0
    if clear < slots:
        visible = seen(starts, first, n, begin + clear, begin + slots, logits.device, window)
        logits[..., clear:].masked_fill_(~visible[:, None, None], -torch.inf)
    return logits


def seen(
    starts: Rows, first: int, n: int, begin: int, end: int, device: torch.device, window: int | None = None
) -> torch.Tensor:
    """Which of the slots begin .. end - 1 the queries first .. first + n - 1 see: bool [B or 1, n, end - begin]."""
    last = starts.on(device)[:, None] + torch.arange(first, first + n, device=device)  # [B, n]
    last = (last[:1] if min(starts) == max(starts) else last)[..., None]
    slots = torch.arange(begin, end, device=device)
    if window is None:
        return slots <= last
    last = last.clamp(max=end - 1)  # a query past its row's end sees something, too: its output must be finite
    return (slots <= last) & (slots > last - window)


def _received(probs: torch.Tensor, starts: Rows, counts: Rows, first: int, begin: int, wanted: Wanted) -> torch.Tensor:
    """Probability received per slot from `begin` on, float32 [B, Hkv, S], from the valid queries of this chunk."""
    n, slots = probs.shape[-2:]
    if min(counts) < first + n:
        index = torch.arange(first, first + n, device=probs.device)
        valid = index < counts.on(probs.device)[:, None]  # [B, n]
        # Filled, not multiplied: a query past its row's end may hold anything.
        probs = probs.masked_fill(~valid[:, None, None, :, None], 0.0)
    if wanted.lag:
        behind = seen(starts, first - wanted.lag, n, begin, begin + slots, probs.device)
        probs = probs.masked_fill(~behind[:, None, None], 0.0)
    return probs.amax(dim=(2, 3)).float() if wanted.of == "largest" else probs.sum(dim=(2, 3), dtype=torch.float32)


def counted(
    starts: Rows, firsts: Rows, counts: Rows, slots: int, device: torch.device, window: int | None = None, lag: int = 0
) -> torch.Tensor:
    """How many of the queries firsts[b] .. counts[b] - 1 count for each of so many slots: int64 [B, slots]."""
    start, first, end = (rows.on(device)[:, None] for rows in (starts, firsts, counts))
    query = torch.arange(slots, device=device) - start  # the one that sits in the slot
    if window is not None:
        end = end.minimum(query + window)
    return (end - first.maximum(query + lag)).clamp(min=0)


def attend_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor | None,
    lengths: torch.Tensor,
    *,
    scale: float,
    logn_base: float | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    live: torch.Tensor | None = None,
    window: int | None = None,
    of: str = "sum",
    beyond: int = 0,
    begin: torch.Tensor | None = None,
    longest: int | None = None,
    own: bool = False,
) -> torch.Tensor:
    """`buzz.attention.step.attend_step`: all slots under a mask, float32 arithmetic (float64 for float64 inputs)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    if own and cos is not None and sin is not None:
        angles = cos.to(dtype)[:, None], sin.to(dtype)[:, None]  # [B, 1, D]
        q, k = (_rotate(x.to(dtype), *angles).to(x.dtype) for x in (q, k))
        cos = sin = None
    Hkv, D = k.shape[1:]
    if begin is None:
        slot, C, places = lengths.long()[:, None], keys.shape[2], None  # [B, 1]: of all heads
        at = slot[..., None, None].expand(-1, Hkv, 1, D)
        keys.scatter_(2, at, k[:, :, None])
        values.scatter_(2, at, v[:, :, None])
        seen_keys, seen_values = keys, values
    else:
        assert longest is not None
        slot, C = lengths.long(), longest  # [B, Hkv]
        at = (begin + slot)[..., None].expand(-1, -1, D)
        keys.scatter_(1, at, k)
        values.scatter_(1, at, v)
        # What follows a head's slots belongs to others, and is masked.
        places = (begin.long()[..., None] + torch.arange(C, device=q.device)).clamp(max=keys.shape[1] - 1)
        gathered = places.flatten(1)[..., None].expand(-1, -1, D)
        seen_keys, seen_values = (pool.gather(1, gathered).unflatten(1, (Hkv, C)) for pool in (keys, values))
    queries, seen_keys = q.to(dtype).unflatten(1, (Hkv, -1)), seen_keys.to(dtype)  # [B, Hkv, G, D], [B, Hkv, C, D]
    if cos is not None and sin is not None:
        queries = _rotate(queries, cos[slot][:, :, None], sin[slot][:, :, None])
        seen_keys = _rotate(seen_keys, cos[:C], sin[:C])
    queries = queries * scale
    if logn_base is not None:
        queries = queries * ((slot + 1).to(dtype).log() / math.log(logn_base))[..., None, None]
    logits = queries @ seen_keys.transpose(2, 3)  # [B, Hkv, G, C]
    slots, last = torch.arange(C, device=q.device), slot[..., None]
    hidden = slots > last  # [B, 1 or Hkv, C]
    if window is not None:
        hidden |= slots <= last - window
    probs = logits.masked_fill_(hidden[:, :, None], -torch.inf).softmax(dim=-1)
    if scores is not None:
        received = probs.amax(dim=2).float() if of == "largest" else probs.sum(dim=2, dtype=torch.float32)
        if of == "mean":
            received /= probs.shape[2]
        if beyond:
            received.masked_fill_(slots >= last - beyond, 0.0)
        if live is not None:
            received.masked_fill_(live == 0, 0.0)
        # Where nothing is received, adding 0 and the larger of a score and 0 leave what is there.
        if places is not None:
            how = "amax" if of == "largest" else "sum"
            scores.scatter_reduce_(1, places.flatten(1), received.flatten(1), how)
        elif of == "largest":
            torch.maximum(scores, received, out=scores)
        else:
            scores.add_(received)
    return (probs @ seen_values.to(dtype)).flatten(1, 2).to(q.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [..., D] with its halves rotated against each other; sin is signed."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], dim=-1) * sin
