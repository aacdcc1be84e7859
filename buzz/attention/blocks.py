"""What each slot receives, from the log-sum-exp of fused attention: in plain torch, a block of probabilities at a time.

The counterpart of `buzz.kernels.received` where there is no Triton, as on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from buzz.attention.naive import grouped
from buzz.attention.wanted import Wanted
from buzz.rows import Rows

# Of a block: queries of a head, and slots. Large enough for matrix products to be fast, and small enough to stay in the
# caches of a CPU between the three passes over it.
_QUERIES, _SLOTS = 256, 512
_ELEMENTS = 1 << 21  # of all heads of a block together
_LEAST = 128  # queries, times the heads of a group, of a product that is worth a thread


@torch.no_grad()  # scores choose slots, through which no gradient goes
def received(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    *,
    starts: Rows,
    firsts: Rows,
    counts: Rows,
    scale: float,
    wanted: Sequence[Wanted],
) -> list[torch.Tensor]:
    """What is wanted of the probabilities that a call's queries give each slot, over the query heads of its group.

    Logarithms of probabilities come out of matrix products in the inputs' dtype, which sum up in float32. So they are
    rounded to it once: in bfloat16 probabilities near 1 are right to 0.4%, one of e^-8 to 2%, and sums of many much
    better. Arguments and result as of `buzz.kernels.received.received`.
    """
    B, Hkv, C = k.shape[:3]
    results = [torch.zeros(B, Hkv, C, dtype=torch.float32, device=q.device) for _ in wanted]
    states = list(zip(starts, firsts, counts, strict=True))
    alike = len(set(states)) == 1
    for rows, (start, first, count) in (
        [(slice(None), states[0])] if alike else [(slice(row, row + 1), state) for row, state in enumerate(states)]
    ):
        if count > first:
            queries, end = slice(first, count), start + count
            parts = [result[rows, :, :end] for result in results]
            _add(q[rows, :, queries], k[rows, :, :end], lse[rows, :, queries], start + first, scale, wanted, parts)
    return results


def _add(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, start: int, scale: float,
    wanted: Sequence[Wanted], results: Sequence[torch.Tensor],
) -> None:  # fmt: skip
    """Add to the results what queries [b, Hq, n, D] give, the first of which sits in the slot `start`."""
    (Hkv, end), n = k.shape[1:3], q.shape[2]
    rows, keys = _augmented(grouped(q * scale, Hkv), k, grouped(lse, Hkv))  # [b * Hkv, G, n, D'], [b * Hkv, D', end]
    heads = rows.shape[0] * rows.shape[1]
    most = max(16, min(_QUERIES, _ELEMENTS // (heads * min(end, _SLOTS))))
    order = sorted(zip(wanted, results, strict=True), key=lambda one: one[0].lag)  # masks only grow
    room = rows.new_empty(heads * most * min(end, _SLOTS))  # of one block after another
    pieces = _pieces(rows, most)
    repeated = keys if pieces == 1 else keys.repeat_interleave(pieces, dim=0)
    for i in range(0, n, most):
        block = rows[:, :, i : i + most]
        last = start + i + block.shape[2]  # slots up to here are seen by some of the block
        flat = block.flatten(1, 2)
        even = pieces if flat.shape[1] % pieces == 0 else 1
        left, right = flat.unflatten(1, (even, -1)).flatten(0, 1), keys if even == 1 else repeated
        for j in range(0, last, _SLOTS):
            stop = min(j + _SLOTS, last)
            probs = room[: flat.shape[0] * flat.shape[1] * (stop - j)].view(*flat.shape[:2], stop - j)
            torch.bmm(left, right[:, :, j:stop], out=probs.view(*left.shape[:2], stop - j))
            probs = probs.exp_().unflatten(1, block.shape[1:3])
            for what, result in order:
                _hide(probs, start + i - what.lag, j)
                part = result.flatten(0, 1)[:, j:stop]
                if what.of == "largest":
                    torch.maximum(part, probs.amax(dim=(1, 2)).float(), out=part)
                else:
                    part += probs.sum(dim=(1, 2), dtype=torch.float32)


def _pieces(rows: torch.Tensor, most: int) -> int:
    """Pieces of each KV head's queries, as many as leave no thread without work: threads share products by heads.

    Args:
        rows: [b * Hkv, G, n, D']; most: queries of a block.
    """
    if rows.dtype not in (torch.float32, torch.float64):  # whose products are shared otherwise
        return 1
    threads = torch.get_num_threads()
    pieces = threads // math.gcd(threads, rows.shape[0])
    return pieces if rows.shape[1] * most >= _LEAST * pieces else 1


def _augmented(q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys, transposed, whose products are logits less the log-sum-exp.

    In half precision that takes three columns, which together hold it to the bits of float32.
    """
    left, columns = -lse.float(), []
    for _ in range(1 if q.dtype == torch.float32 else 3):
        columns.append(left.to(q.dtype))
        left = left - columns[-1].float()
    q = torch.cat([q, torch.stack(columns, dim=-1)], dim=-1)
    k = torch.cat([k, k.new_ones(*k.shape[:3], len(columns))], dim=-1)
    return q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2).contiguous()


def _hide(probs: torch.Tensor, seen: int, begin: int) -> None:
    """Set to 0 what query i of a block [.., n, S] does not count for: slots, from `begin` on, after `seen + i`."""
    n, slots = probs.shape[-2:]
    clear = max(0, seen + 1 - begin)  # slots that all queries count for
    if clear < slots:
        index = torch.arange(begin + clear, begin + slots, device=probs.device)
        behind = index > seen + torch.arange(n, device=probs.device)[:, None]
        probs[..., clear:].masked_fill_(behind, 0.0)


__all__ = ["received"]
