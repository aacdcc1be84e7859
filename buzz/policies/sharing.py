"""How heads that share a pool divide what an eviction leaves: by one ranking of all their slots."""

from __future__ import annotations

import torch

from buzz.kernels.device import runs_triton
from buzz.policies.places import Places
from buzz.policies.ranking import ranked
from buzz.rows import Rows


def share(
    worth: torch.Tensor,
    places: Places,
    kept: int,
    chosen: int | None = None,
    *,
    sink: int = 0,
    window: int = 0,
    floor: float = 0.0,
    ceiling: float | None = None,
    layer_ceiling: float | None = None,
    budgets: Rows | None = None,
) -> torch.Tensor:
    """The places that stay: `kept` slots a head in the mean, most of them where worth is highest.

    Every head keeps its first `sink` and last `window` slots and then those of highest worth until it has `floor *
    kept`, at least one, or its budget where there are `budgets`. What is left goes to the highest worth of all heads,
    as far as no head gets more than `ceiling * kept` and no layer more than `layer_ceiling * kept` a head in the mean.
    Shares are rounded down. A head has no more than it holds, so ceilings may leave slots over: these go to the highest
    worth of what the layers' ceilings held back, and then of what the heads' did. (Heads that were within their
    ceilings and have grown by equally many slots leave none over.) On equal worth the earlier place wins; what is not a
    number is worth least.

    Heads of budgets of their own are from AdaKV (Feng et al., arXiv 2407.11550), and so is the floor.

    Shapes are fixed and nothing waits for a device.

    Args:
        worth: float32 [R, P]; of free places anything.
        places: which slot of which head each place holds; all heads of a row together at least `kept * heads` slots.
        kept: slots that a head keeps in the mean; at least 1, sink + window and what floor asks for.
        chosen: so many are marked in place of `kept`, in the same order.
        ceiling, layer_ceiling: at least 1; None: there is none.
        budgets: slots of each of the heads; together at most those that stay.

    Returns:
        bool [R, P], true in `(chosen or kept) * places.heads` taken places of each row.
    """
    rows, size = worth.shape
    total = (chosen or kept) * places.heads
    least: int | torch.Tensor = max(1, sink + window, int(floor * kept))
    if budgets is not None:
        least = budgets.on(worth.device)
    most = size if ceiling is None else int(ceiling * kept)
    layer_most = None  # one alone gets all that is shared out
    if layer_ceiling is not None and places.layers > 1:
        layer_most = int(layer_ceiling * kept * (places.heads // places.layers))
    if worth.dtype == torch.float32 and runs_triton(worth):
        from buzz.kernels.share import share_out

        return share_out(
            worth.contiguous(), places.begin, places.length, places.layers, total,
            sink=sink, window=window, least=least, most=most, layer_most=layer_most,
        )  # fmt: skip
    head, slot, length = (t.expand(rows, -1) for t in (places.head, places.slot, places.length))  # [R, P], [R, heads]
    here = torch.arange(size, device=worth.device).expand(rows, size)
    end = length.gather(1, head)
    taken = slot < end
    protected = taken & ((slot < sink) | (slot >= end - window))
    order = ranked(worth)

    # A head's slots in the order in which it gives them up last; `turn` counts from the first of them.
    first = length.clamp(max=sink + window)  # those that stay anyway
    turn = _turns(head, places.heads, taken & ~protected, order, here) + first.gather(1, head)
    least_of = least if isinstance(least, int) else least[head]
    group = torch.where(protected | (turn < least_of), 0, torch.where(turn < most, 1, 3))
    if layer_most is not None:
        layer, heads = places.layer.expand(rows, -1), places.heads // places.layers
        before = length.clamp(max=least).unflatten(1, (places.layers, heads)).sum(dim=2)  # of its first group
        turn = _turns(layer, places.layers, taken & (group == 1), order, here) + before.gather(1, layer)
        group = group.where((group != 1) | (turn < layer_most), 2)
    by_group = _sorted(order, torch.where(taken, group, 4), torch.uint8)
    return torch.zeros_like(taken).scatter(1, by_group, here < total)


def _turns(
    part: torch.Tensor, parts: int, among: torch.Tensor, order: torch.Tensor, here: torch.Tensor
) -> torch.Tensor:
    """How many places of its part (a head, a layer) come before each in an order, counting those `among` alone.

    What it says of the other places means nothing.
    """
    of = torch.where(among, part, parts)
    by_part = _sorted(order, of, torch.int16 if parts < 2**15 else torch.int64)
    # Where each part begins is looked up: to count its places, all would add to the same few numbers.
    numbers = torch.arange(parts, device=of.device).expand(len(of), -1).contiguous()
    begin = torch.searchsorted(of.gather(1, by_part), numbers)
    return torch.empty_like(order).scatter(1, by_part, here) - begin.gather(1, part)


def _sorted(order: torch.Tensor, key: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """An order of places sorted again, by a key of theirs first. Of few bits, it is sorted quickly."""
    return order.gather(1, key.gather(1, order).to(kind).argsort(dim=-1, stable=True))
