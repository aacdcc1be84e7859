"""One token per row against a cache, in one or two Triton kernels that read every length on the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton

from buzz.kernels.early import early_launch
from buzz.kernels.launch import Launch
from buzz.kernels.layout import check_rows
from buzz.kernels.step_kernels import attend_split, finish

LOG2E = 1.4426950408889634
_MOST_SPLITS = 256
_SHORT = 2048  # slots, up to which a program is small
_LONGER = 4  # times the mean that the longest head of a pool may hold, roughly
_LEAST = 128  # slots of a program in a pool, at least
# Of so many slots one larger program is quicker than two, where heads are twice as many as multiprocessors, or nearly
# so: 256 on an H100's 132. With matrix products any number from there on has one, and three times as many smaller ones.
_ALONE, _FROM, _MANY = 1024, 1.9, 3
_SCORES = 2048  # logits that a program looks at together once it puts a head together


def attend(
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
    ahead: bool = False,
    launch: Launch | None = None,
) -> torch.Tensor:
    """`buzz.attention.step.attend_step` in Triton: the keys and values that are seen are read once, whatever the group.

    Raises:
        ValueError: the last axis of keys, values, scores, cos or sin is not contiguous, nor are lengths of rows.
    """
    check_rows(keys=keys, values=values, scores=scores, cos=cos, sin=sin, lengths=lengths if begin is None else None)
    B, Hq, D = q.shape
    Hkv = k.shape[1]
    C = keys.shape[-2] if longest is None else longest
    group = Hq // Hkv
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    launch = launch or Launch()
    dot = group > 2 if launch.dot is None else launch.dot
    if window is not None and window >= C:
        window = None
    most = window or C  # slots that are seen
    pooled = begin is not None
    if begin is None:
        begin, strides = lengths, [*keys.stride()[:3], *values.stride()[:3]]
    else:
        strides = [stride for pool in (keys, values) for stride in (pool.stride(0), 0, pool.stride(1))]
        ahead = ahead and lengths.is_contiguous() and begin.is_contiguous()  # else they are copied now
        lengths, begin = lengths.contiguous(), begin.contiguous()
    exact = q.dtype == torch.float32
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
    tile = _tile(q.dtype, group, D, dot)
    N, splits, least, warps, stages = _cut(launch, most, B * Hkv, tile, processors, dot, exact, pooled)
    alone = splits == 1
    # Triton's interpreter multiplies no bfloat16.
    halves = dot and not exact and (isinstance(attend_split, triton.JITFunction) or q.dtype == torch.float16)
    half = (D + 1) // 2
    side = 16 if dot else 1  # of a matrix product, at least
    out = torch.empty(B, Hq, D, dtype=q.dtype, device=q.device)
    # Allocated in every call: inside a captured graph they belong to the graph.
    maxima, sums = torch.empty(2, B, Hq, splits, dtype=torch.float32, device=q.device).unbind()
    parts = torch.empty(B, Hq, splits, D, dtype=torch.float32, device=q.device)
    logits = out if scores is None else torch.empty(B, Hq, C, dtype=torch.float32, device=q.device)
    early = early_launch(q.device) if launch.early else {}
    # A kernel gets some tensor in the place of each that is not there, and does not look at it.
    cosines, sines = q if cos is None else cos, q if sin is None else sin
    alive, received = lengths if live is None else live, out if scores is None else scores
    score_strides = received.stride(0), 0 if pooled else received.stride(1)
    group_padded = max(side, triton.next_power_of_2(group))
    late = beyond + 1 if beyond else 0
    with torch.cuda.device_of(q):
        attend_split[(B * Hkv, splits)](
            q, k, v, keys, values, cosines, sines, lengths, begin, alive, logits, maxima, sums, parts, out, received,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *strides,
            cosines.stride(0), sines.stride(0), *score_strides, Hkv, C, splits, least,
            scale * LOG2E, 1.0 if logn_base is None else 1.0 / math.log2(logn_base), window or 0, late,
            GROUP=group, GROUP_PADDED=group_padded, D=D, HALF=half,
            HALF_PADDED=max(side, triton.next_power_of_2(half)), N=N,
            ROTATE=cos is not None and not own, OWN=cos is not None and own,
            LOGN=logn_base is not None, WITH_LOGITS=scores is not None, DOT=dot, HALVES=halves,
            LOGITS_PRECISION="ieee" if exact else "tf32x3", PRECISION="ieee" if exact else "tf32",
            STAGES=stages, WINDOWED=window is not None, POOLED=pooled,
            ALONE=alone, SCORE_SLOTS=max(16, _SCORES // group_padded), HAS_LIVE=live is not None, OF=of,
            EARLY=bool(early), AHEAD=ahead, num_warps=warps, **early,
        )  # fmt: skip
        if alone:
            return out
        blocks = 0 if scores is None else triton.cdiv(most, launch.score_slots)
        finish[(B * Hkv, group + blocks)](
            lengths, begin, alive, logits, maxima, sums, parts, out, received,
            *score_strides, Hkv, C, splits, least, window or 0, late,
            GROUP=group, D=D, D_PADDED=triton.next_power_of_2(D), N=N, SCORE_SLOTS=launch.score_slots, CHUNK=32,
            HAS_LIVE=live is not None, WINDOWED=window is not None, POOLED=pooled, OF=of, EARLY=bool(early), **early,
        )  # fmt: skip
    return out


def _tile(dtype: torch.dtype, group: int, head_dim: int, dot: bool) -> int:
    """Slots of a tile: as many as leave a thread of four warps some 128 registers, with `dot` some 230."""
    padded = triton.next_power_of_2(head_dim)
    if dot:
        return 16 if dtype == torch.float32 or padded > 128 else 32
    elements = 2048 if dtype == torch.float32 else 4096
    return max(1, min(64, elements // (padded * triton.next_power_of_2(group))))


class _Cut(NamedTuple):
    """slots: of a tile. splits: programs for each row and head, at most. least: tiles of each, at least."""

    slots: int
    splits: int
    least: int
    warps: int
    stages: int


def _cut(
    launch: Launch, slots: int, heads: int, tile: int, processors: int, dot: bool, exact: bool, pooled: bool
) -> _Cut:
    """How so many slots of each of B * Hkv rows and heads are cut up.

    As many programs as the device runs at once, none without a tile of its own. Where heads differ in length, `pooled`,
    programs should not: a long head has more of them. docs/measured/batches/groups.json has figures of groups.

    Args:
        heads: B * Hkv. tile: slots of a tile, unless many programs want smaller ones. dot: a group is multiplied by
            matrix products; exact: in float32.
    """
    warps, stages, programs, fewest = 2 if slots <= _SHORT else 4, 1 if exact else 2, 4, 1
    if dot and not exact and not pooled:
        # Fewer, larger programs, with more on its way to each: products keep them waiting.
        if heads < _MANY * processors:
            warps, stages, programs = 4, 3, 1 if slots <= _SHORT else 2
            fewest = 2 if heads < _FROM * processors else 1
        else:
            tile, warps, stages = 16, 2, 3
    elif not pooled and slots <= _ALONE and _FROM <= heads / processors <= 2 and not (launch.splits or launch.programs):
        warps, stages, programs = 4, 1 if exact else 3, 1
    tile = max(launch.slots or tile, 16 if dot else 1)
    tiles, wanted = triton.cdiv(slots, tile), max(fewest, (launch.programs or programs) * processors // heads)
    least = 1
    if pooled and launch.splits is None:
        least = max(triton.cdiv(_LEAST, tile), triton.cdiv(tiles, _LONGER * wanted))
        wanted = triton.cdiv(tiles, least)
    splits = launch.splits or min(wanted, tiles, _MOST_SPLITS)
    return _Cut(tile, splits, least, launch.warps or warps, launch.stages or stages)
