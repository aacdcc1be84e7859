"""Which slots stay of heads that share: bounds of heads and layers, and the highest of all, without sorting.

What a sort would decide a threshold decides as well: the n-th highest worth, and how many of those equal to it are
still among the first n. Of a head or a layer one program finds it, bit by bit; of all places together many programs do,
which count how often each value of nine bits is there, four times over.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.kernels.layout import check_rows, check_whole

_CHUNK = 8192  # places of a head or a layer that a program looks at together, at most
_TILE = 4096  # places of a row that a program counts
_BITS, _PASSES = 9, 4  # of a key and its group, 36 in all

_FREE = tl.constexpr(4)  # the group of places that hold nothing


@triton.jit
def _order(WORTH, KEYS, GROUP, size, N: tl.constexpr):
    """Unsigned keys, above 0, in the order of worth; what is not a number is worth least. All places are free yet."""
    place, row = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1).to(tl.int64) * size
    x = tl.load(WORTH + row + place, mask=place < size, other=0.0)
    x = tl.where(x != x, float("-inf"), tl.where(x == 0, 0.0, x))  # there is one zero
    bits = x.to(tl.uint32, bitcast=True)
    tl.store(KEYS + row + place, tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000), mask=place < size)
    tl.store(GROUP + row + place, tl.full([N], _FREE, tl.uint8), mask=place < size)


@triton.jit
def _candidates(KEYS, GROUP, start, end, N: tl.constexpr, GROUPED: tl.constexpr):
    """Keys of places start .. start + N - 1 before the end, where there are groups those of group 1; else 0."""
    place = start + tl.arange(0, N)
    inside = place < end
    if GROUPED:
        inside = tl.load(GROUP + place, mask=inside, other=_FREE) == 1
    return tl.load(KEYS + place, mask=inside, other=0)


@triton.jit
def _threshold(KEYS, GROUP, begin, end, number, wanted, N: tl.constexpr, GROUPED: tl.constexpr):
    """A key, and how many of those equal to it follow those above it among the first `wanted` candidates.

    The candidates are so many as `number`, of places begin .. end - 1. If all are wanted, the key is below all.
    """
    found = tl.where(wanted <= 0, 0xFFFFFFFF, 0).to(tl.uint32)
    bit = tl.where((wanted <= 0) | (wanted >= number), 0, 0x80000000).to(tl.uint32)
    while bit != 0:
        count = tl.zeros([N], tl.int32)
        for start in range(begin, end, N):
            count += (_candidates(KEYS, GROUP, start, end, N, GROUPED) >= (found | bit)).to(tl.int32)
        above = tl.sum(count, 0)
        found = tl.where(above >= wanted, found | bit, found)
        bit = tl.where(above == wanted, 0, bit >> 1).to(tl.uint32)  # no need to know it to the last bit
    count = tl.zeros([N], tl.int32)
    for start in range(begin, end, N):
        count += (_candidates(KEYS, GROUP, start, end, N, GROUPED) > found).to(tl.int32)
    return found, wanted - tl.sum(count, 0)


@triton.jit
def _bound_heads(
    KEYS, BEGIN, LENGTH, GROUP, BUDGETS, size, begin_row, length_row, heads, sink, window, least, most,
    BUDGETED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Groups of a head's places: 0 what it has at least, 1 what it may have, 3 what is above its ceiling."""
    row, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    KEYS += row * size
    GROUP += row * size
    begin = tl.load(BEGIN + row * begin_row + head).to(tl.int32)
    length = tl.load(LENGTH + row * length_row + head).to(tl.int32)
    end = begin + length
    if BUDGETED:
        least = tl.load(BUDGETS + head).to(tl.int32)
    stay = tl.minimum(length, sink + window)  # anyway: at both ends
    first = begin + tl.minimum(sink, length)
    last = tl.maximum(end - window, first)
    floor, of_floor = _threshold(KEYS, GROUP, first, last, last - first, least - stay, N, False)
    ceiling, of_ceiling = _threshold(KEYS, GROUP, first, last, last - first, most - stay, N, False)
    floor_ties = of_floor * 0  # so far
    ceiling_ties = of_ceiling * 0
    for start in range(begin, end, N):
        place = start + tl.arange(0, N)
        between = (place >= first) & (place < last)
        key = tl.load(KEYS + place, mask=between, other=0)
        at_floor, at_ceiling = (between & (key == floor)).to(tl.int32), (between & (key == ceiling)).to(tl.int32)
        above_floor = (key > floor) | ((at_floor != 0) & (floor_ties + tl.cumsum(at_floor, 0) <= of_floor))
        above_ceiling = (key > ceiling) | ((at_ceiling != 0) & (ceiling_ties + tl.cumsum(at_ceiling, 0) <= of_ceiling))
        floor_ties += tl.sum(at_floor, 0)
        ceiling_ties += tl.sum(at_ceiling, 0)
        group = tl.where(above_floor | ~between, 0, tl.where(above_ceiling, 1, 3))
        tl.store(GROUP + place, group.to(tl.uint8), mask=place < end)


@triton.jit
def _bound_layers(
    KEYS, BEGIN, LENGTH, GROUP, BUDGETS, size, begin_row, length_row, heads, layers, least, most, layer_most,
    BUDGETED: tl.constexpr, H_PADDED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Group 2: those of group 1 that are above their layer's ceiling."""
    row, layer = (tl.program_id(0) // layers).to(tl.int64), tl.program_id(0) % layers
    KEYS += row * size
    GROUP += row * size
    h = tl.arange(0, H_PADDED)
    length = tl.load(LENGTH + row * length_row + layer * heads + h, mask=h < heads, other=0).to(tl.int32)
    begin = tl.load(BEGIN + row * begin_row + layer * heads).to(tl.int32)
    end = tl.load(BEGIN + row * begin_row + (layer + 1) * heads, mask=layer + 1 < layers, other=size).to(tl.int32)
    if BUDGETED:
        of_0 = tl.sum(tl.minimum(length, tl.load(BUDGETS + layer * heads + h, mask=h < heads, other=0).to(tl.int32)), 0)
    else:
        of_0 = tl.sum(tl.minimum(length, least), 0)
    of_1 = tl.sum(tl.minimum(length, most), 0) - of_0
    wanted = layer_most - of_0
    if of_1 > wanted:
        ceiling, of_ceiling = _threshold(KEYS, GROUP, begin, end, of_1, wanted, N, True)
        ties = of_ceiling * 0
        for start in range(begin, end, N):
            key = _candidates(KEYS, GROUP, start, end, N, True)
            at = ((key != 0) & (key == ceiling)).to(tl.int32)
            above = (key > ceiling) | ((at != 0) & (ties + tl.cumsum(at, 0) <= of_ceiling))
            ties += tl.sum(at, 0)
            tl.store(GROUP + start + tl.arange(0, N), tl.full([N], 2, tl.uint8), mask=(key != 0) & ~above)


@triton.jit
def _whole_keys(KEYS, GROUP, place, size):
    """Integers in the order in which places stay, the group first; -1 for free ones."""
    group = tl.load(GROUP + place, mask=place < size, other=_FREE)
    key = tl.load(KEYS + place, mask=place < size, other=0).to(tl.int64) + ((3 - group.to(tl.int64)) << 32)
    return tl.where(group == _FREE, -1, key)


@triton.jit
def _found(COUNTS, row, rows, wanted, DONE: tl.constexpr, BINS: tl.constexpr):
    """The first digits of the wanted-th key, and how many of the keys that begin with them are wanted."""
    prefix, digits = tl.cast(0, tl.int64), tl.arange(0, BINS)
    for i in tl.static_range(DONE):
        number = tl.load(COUNTS + (i * rows + row) * BINS + digits)
        higher = tl.sum(number, 0) - tl.cumsum(number, 0)
        hit = (higher < wanted) & (wanted <= higher + number)
        wanted -= tl.sum(tl.where(hit, higher, 0), 0)
        prefix = prefix * BINS + tl.sum(tl.where(hit, digits, 0), 0)
    return prefix, wanted


@triton.jit
def _count(
    KEYS, GROUP, COUNTS, OF_TILES, size, wanted,
    DONE: tl.constexpr, BITS: tl.constexpr, PASSES: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """How often each next digit follows the first ones of the wanted-th key, in all of a row and in each tile."""
    BINS: tl.constexpr = 1 << BITS
    tile, row, digits = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, BINS)
    prefix, _ = _found(COUNTS, row, tl.num_programs(1), wanted, DONE, BINS)
    key = _whole_keys(KEYS + row * size, GROUP + row * size, tile * N + tl.arange(0, N), size)
    rest: tl.constexpr = BITS * (PASSES - 1 - DONE)
    of_prefix = (key >= 0) & (key >> (rest + BITS) == prefix)
    number = tl.histogram(((key >> rest) & (BINS - 1)).to(tl.int32), BINS, mask=of_prefix)
    tl.store(OF_TILES + (row * tl.num_programs(0) + tile) * BINS + digits, number)
    tl.atomic_add(COUNTS + (DONE * tl.num_programs(1) + row) * BINS + digits, number, mask=number > 0)


@triton.jit
def _mark(
    KEYS, GROUP, COUNTS, OF_TILES, STAY, size, wanted,
    TILES: tl.constexpr, BITS: tl.constexpr, PASSES: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The places of the first keys; of those equal to the last of these the earlier ones."""
    BINS: tl.constexpr = 1 << BITS
    tile, row, tiles = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, TILES)
    last, of_last = _found(COUNTS, row, tl.num_programs(1), wanted, PASSES, BINS)
    equal = OF_TILES + (row * tl.num_programs(0) + tiles) * BINS + (last & (BINS - 1))
    ties = tl.sum(tl.load(equal, mask=tiles < tile, other=0), 0)
    place = tile * N + tl.arange(0, N)
    key = _whole_keys(KEYS + row * size, GROUP + row * size, place, size)
    at = (key == last).to(tl.int32)
    stay = (key > last) | ((at != 0) & (ties + tl.cumsum(at, 0) <= of_last))
    tl.store(STAY + row * size + place, stay.to(tl.uint8), mask=place < size)


def share_out(
    worth: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, layers: int, total: int, *,
    sink: int, window: int, least: int | torch.Tensor, most: int, layer_most: int | None,
    chunk: int = _CHUNK, tile: int = _TILE,
) -> torch.Tensor:  # fmt: skip
    """The places that stay, as of `buzz.policies.sharing.share`, which says by which rule.

    Args:
        worth: float32 [R, P], contiguous.
        begin, length: int64 [R or 1, heads], where each head's slots are, as of `buzz.policies.places.Places`. The
            last axis is contiguous.
        total: places of a row that stay, of all heads.
        least, most: slots that a head has at least and may have, as far as it holds them; least may be int64 [heads],
            contiguous.
        layer_most: slots that a layer may have; None: there is no such bound.
        chunk, tile: how the work is cut up; powers of two.

    Returns:
        bool [R, P].

    Raises:
        ValueError: a tensor does not lie in memory like that.
    """
    check_whole(worth=worth, least=None if isinstance(least, int) else least)
    check_rows(begin=begin, length=length)
    (rows, size), heads = worth.shape, begin.shape[1]
    begin_row, length_row = (0 if len(t) == 1 else t.stride(0) for t in (begin, length))
    keys = torch.empty((rows, size), dtype=torch.uint32, device=worth.device)
    group, stay = torch.empty((2, rows, size), dtype=torch.uint8, device=worth.device)
    tiles, bins = triton.cdiv(size, tile), 1 << _BITS
    counts = torch.zeros(_PASSES, rows, bins, dtype=torch.int32, device=worth.device)
    of_tiles = torch.empty(rows, tiles, bins, dtype=torch.int32, device=worth.device)
    of_heads = min(chunk, triton.next_power_of_2(triton.cdiv(size, heads)))
    budgeted = not isinstance(least, int)
    budgets, least = (least, 0) if budgeted else (begin, least)
    lies = (begin, length, group, budgets, size, begin_row, length_row)
    with torch.cuda.device_of(worth):
        _order[(tiles, rows)](worth, keys, group, size, N=tile)
        _bound_heads[(rows * heads,)](
            keys,
            *lies,
            heads,
            sink,
            window,
            least,
            most,
            BUDGETED=budgeted,
            N=of_heads,
            num_warps=min(16, max(1, of_heads // 512)),
        )
        if layer_most is not None:
            _bound_layers[(rows * layers,)](
                keys, *lies, heads // layers, layers, least, most, layer_most,
                BUDGETED=budgeted, H_PADDED=triton.next_power_of_2(heads // layers), N=chunk, num_warps=16,
            )  # fmt: skip
        for done in range(_PASSES):
            _count[(tiles, rows)](
                keys, group, counts, of_tiles, size, total, DONE=done, BITS=_BITS, PASSES=_PASSES, N=tile, num_warps=8,
            )  # fmt: skip
        _mark[(tiles, rows)](
            keys, group, counts, of_tiles, stay, size, total,
            TILES=triton.next_power_of_2(tiles), BITS=_BITS, PASSES=_PASSES, N=tile, num_warps=8,
        )  # fmt: skip
    return stay.view(torch.bool)


__all__ = ["share_out"]
