"""The two kernels of `buzz.kernels.step`: splits of the slots, and what is put together from them.

Where a program has all slots of a head, the first one does both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from buzz.kernels.early import let_next_start, wait_for_last


@triton.jit
def _head(LENGTHS, BEGIN, row, head, kv_heads, POOLED: tl.constexpr):
    """Cached slots of a head, and its first place in the pool of its row; 0 without one."""
    if POOLED:
        length = tl.load(LENGTHS + row * kv_heads + head).to(tl.int32)
        place = tl.load(BEGIN + row * kv_heads + head).to(tl.int64)
    else:
        length = tl.load(LENGTHS + row).to(tl.int32)
        place = 0
    return length, place


@triton.jit
def _share(length, window, splits, least, N: tl.constexpr, WINDOWED: tl.constexpr):
    """First cached slot that is seen, slots of a split, and how many splits have any: whole tiles, shared out evenly.

    Of `length` cached slots those are seen that lie, with the token's own, in the window. A split has `least` tiles at
    least, if there are so many.
    """
    begin = 0
    if WINDOWED:
        begin = tl.maximum(length + 1 - window, 0)
    span = tl.maximum(tl.cdiv(tl.cdiv(length - begin, N), splits), least) * N
    return begin, span, tl.maximum(tl.cdiv(length - begin, span), 1)


@triton.jit
def _places(base, stride, n, h, FLAT: tl.constexpr):
    """Pointers to elements h of the slots n: [N, len(h)], or [1, N, len(h)] where a group comes first."""
    if FLAT:
        places = base + n[:, None].to(tl.int64) * stride + h[None, :]
    else:
        places = base + n[None, :, None].to(tl.int64) * stride + h[None, None, :]
    return places


@triton.jit
def _inside(n, end, h, width, FLAT: tl.constexpr):
    if FLAT:
        inside = (n < end)[:, None] & (h < width)[None, :]
    else:
        inside = (n < end)[None, :, None] & (h < width)[None, None, :]
    return inside


@triton.jit
def _halves(base, stride, n, end, D: tl.constexpr, HALF: tl.constexpr, HALF_PADDED: tl.constexpr, FLAT: tl.constexpr):
    """The two halves of the slots n, zero from `end` on."""
    h = tl.arange(0, HALF_PADDED)
    places = _places(base, stride, n, h, FLAT)
    first = tl.load(places, mask=_inside(n, end, h, HALF, FLAT), other=0.0)
    return first, tl.load(places + HALF, mask=_inside(n, end, h, D - HALF, FLAT), other=0.0)


@triton.jit
def _angles(
    COS, cos_slot, SIN, sin_slot, n, end, HALF: tl.constexpr, HALF_PADDED: tl.constexpr, FLAT: tl.constexpr
):  # fmt: skip
    """Cosines and sines of the slots n, of one half: the other has the same."""
    h = tl.arange(0, HALF_PADDED)
    inside = _inside(n, end, h, HALF, FLAT)
    c = tl.load(_places(COS + HALF, cos_slot, n, h, FLAT), mask=inside, other=0.0)
    s = tl.load(_places(SIN + HALF, sin_slot, n, h, FLAT), mask=inside, other=0.0)
    return c.to(tl.float32), s.to(tl.float32)


@triton.jit
def _in_two(x, dtype: tl.constexpr):
    """x, float32, rounded, and what the rounding took, rounded: a product of such pairs is quicker than in tf32."""
    large = x.to(dtype)
    return large, (x - large.to(tl.float32)).to(dtype)


@triton.jit
def _angle(COS, SIN, h, HALF: tl.constexpr):
    """Cosines and sines of one position, of one half."""
    cos, sin = (tl.load(COS + HALF + h, mask=h < HALF, other=0.0), tl.load(SIN + HALF + h, mask=h < HALF, other=0.0))
    return cos.to(tl.float32), sin.to(tl.float32)


@triton.jit(do_not_specialize=["window", "least", "lag"])
def attend_split(
    Q, K_NEW, V_NEW, K, V, COS, SIN, LENGTHS, BEGIN, LIVE, LOGITS, MAXIMA, SUMS, PARTS, OUT, SCORES,
    q_row, q_head, k_new_row, k_new_head, v_new_row, v_new_head, k_row, k_head, k_slot, v_row, v_head, v_slot,
    cos_slot, sin_slot, score_row, score_head, kv_heads, slots, splits, least, scale, logn, window, lag,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HALF_PADDED: tl.constexpr,
    N: tl.constexpr, ROTATE: tl.constexpr, OWN: tl.constexpr, LOGN: tl.constexpr, WITH_LOGITS: tl.constexpr,
    DOT: tl.constexpr, HALVES: tl.constexpr, LOGITS_PRECISION: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, WINDOWED: tl.constexpr, POOLED: tl.constexpr, ALONE: tl.constexpr,
    SCORE_SLOTS: tl.constexpr, HAS_LIVE: tl.constexpr, OF: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One program attends with the heads of a group to one split of the slots of one row and KV head.

    MAXIMA, SUMS float32 [B, Hq, splits] and PARTS float32 [B, Hq, splits, D]: the split's largest logit, and its sums
    of exp2(logit - maximum) and of the values weighted by that. LOGITS float32 [B, Hq, C], in units of log 2. Keys
    are read in halves, so that a rotation needs no exchange between threads; values too, for equal layouts. The new
    token belongs to split 0, which writes it to the cache; no program reads that slot. POOLED: LENGTHS and BEGIN int32
    [B, Hkv] say which places of its row a head has, of which C is the most; else all have C, and LENGTHS is [B].
    ROTATE: by COS and SIN [C, D] of the slots; OWN: the queries and the new key alone, by COS and SIN [B, D]. HALVES:
    DOT, of tensors in half precision: values are multiplied as they are, and, without ROTATE, queries and keys, which
    in bfloat16 are else in two parts.

    ALONE: there is one split, whose program does what `finish` does. AHEAD: lengths, places and angles of slots are
    read while kernels before this one may still run.
    """
    if EARLY:
        let_next_start()
        if not AHEAD:
            wait_for_last()
    row, head, split = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads, tl.program_id(1)
    length, place = _head(LENGTHS, BEGIN, row, head, kv_heads, POOLED)
    begin, span, used = _share(length, window, splits, least, N, WINDOWED)
    if split >= used:
        return
    row, head = row.to(tl.int64), head.to(tl.int64)
    keys, values = K + row * k_row + head * k_head, V + row * v_row + head * v_head
    if POOLED:
        keys, values = keys + place * k_slot, values + place * v_slot
    first_query = (row * kv_heads + head) * GROUP
    logits_out = LOGITS + first_query * slots
    g, h = tl.arange(0, GROUP_PADDED), tl.arange(0, HALF_PADDED)
    in_group, in_first, in_second = g < GROUP, h < HALF, h < D - HALF
    dtype: tl.constexpr = Q.dtype.element_ty

    angle = row if OWN else length.to(tl.int64)
    if ROTATE:
        cos, sin = _angle(COS + angle * cos_slot, SIN + angle * sin_slot, h, HALF)
    if EARLY and AHEAD:
        wait_for_last()
    if OWN:
        cos, sin = _angle(COS + angle * cos_slot, SIN + angle * sin_slot, h, HALF)
    queries = Q + row * q_row + (head * GROUP + g[:, None]) * q_head + h[None, :]
    q1 = tl.load(queries, mask=in_group[:, None] & in_first[None, :], other=0.0).to(tl.float32)
    q2 = tl.load(queries + HALF, mask=in_group[:, None] & in_second[None, :], other=0.0).to(tl.float32)
    if ROTATE or OWN:
        q1, q2 = q1 * cos[None, :] - q2 * sin[None, :], q2 * cos[None, :] + q1 * sin[None, :]
        if OWN:
            q1, q2 = q1.to(dtype).to(tl.float32), q2.to(dtype).to(tl.float32)
    if LOGN:
        scale *= tl.log2((length + 1).to(tl.float32)) * logn
    as_cached: tl.constexpr = HALVES and not ROTATE  # queries and keys are multiplied as they are
    if not as_cached:
        q1, q2 = q1 * scale, q2 * scale  # [GROUP_PADDED, HALF_PADDED]
    # In float16 a rotated key may be too large for the one part, and what is left of it too small for the other.
    in_two: tl.constexpr = HALVES and ROTATE and dtype == tl.bfloat16
    if in_two:
        large_q1, small_q1 = _in_two(q1, dtype)
        large_q2, small_q2 = _in_two(q2, dtype)

    # Without a matrix product, every place of a tile keeps statistics of its own until the end: no thread waits.
    # They start at a finite number, since -inf less -inf is none.
    if DOT:
        maximum = tl.full([GROUP_PADDED], -1e30, tl.float32)
        total = tl.zeros([GROUP_PADDED], tl.float32)
        part1 = tl.zeros([GROUP_PADDED, HALF_PADDED], tl.float32)
        part2 = tl.zeros([GROUP_PADDED, HALF_PADDED], tl.float32)
    else:
        maximum = tl.full([GROUP_PADDED, N], -1e30, tl.float32)
        total = tl.zeros([GROUP_PADDED, N], tl.float32)
        part1 = tl.zeros([GROUP_PADDED, N, HALF_PADDED], tl.float32)
        part2 = tl.zeros([GROUP_PADDED, N, HALF_PADDED], tl.float32)
    end = tl.minimum(begin + (split + 1) * span, length)
    for n0 in tl.range(begin + split * span, end, N, num_stages=STAGES):
        n = n0 + tl.arange(0, N)
        k1, k2 = _halves(keys, k_slot, n, end, D, HALF, HALF_PADDED, DOT)  # [N, HALF_PADDED], or [1, N, HALF_PADDED]
        v1, v2 = _halves(values, v_slot, n, end, D, HALF, HALF_PADDED, DOT)
        if not as_cached:
            k1, k2 = k1.to(tl.float32), k2.to(tl.float32)
        if ROTATE:
            c, s = _angles(COS, cos_slot, SIN, sin_slot, n, end, HALF, HALF_PADDED, DOT)
            k1, k2 = k1 * c - k2 * s, k2 * c + k1 * s
        if as_cached:
            logits = tl.dot(q1.to(dtype), tl.trans(k1))
            logits = tl.dot(q2.to(dtype), tl.trans(k2), logits) * scale
        elif in_two:  # the product of the small parts is beyond what is known of the inputs
            large_k1, small_k1 = _in_two(k1, dtype)
            large_k2, small_k2 = _in_two(k2, dtype)
            logits = tl.dot(small_q2, tl.trans(large_k2), tl.dot(small_q1, tl.trans(large_k1)))
            logits = tl.dot(large_q2, tl.trans(small_k2), tl.dot(large_q1, tl.trans(small_k1), logits))
            logits = tl.dot(large_q2, tl.trans(large_k2), tl.dot(large_q1, tl.trans(large_k1), logits))
        elif DOT:
            logits = tl.dot(q1, tl.trans(k1), input_precision=LOGITS_PRECISION)
            logits = tl.dot(q2, tl.trans(k2), logits, input_precision=LOGITS_PRECISION)
        else:
            logits = tl.sum(q1[:, None, :] * k1 + q2[:, None, :] * k2, axis=2)
        logits = tl.where((n < end)[None, :], logits, float("-inf"))  # [GROUP_PADDED, N]
        if WITH_LOGITS:
            places = logits_out + g[:, None] * slots + n[None, :]
            tl.store(places, logits, mask=in_group[:, None] & (n < end)[None, :])
        if not HALVES:
            v1, v2 = v1.to(tl.float32), v2.to(tl.float32)
        if DOT:
            larger = tl.maximum(maximum, tl.max(logits, axis=1))
            shrink, weights = tl.exp2(maximum - larger), tl.exp2(logits - larger[:, None])
            total = total * shrink + tl.sum(weights, axis=1)
            part1, part2 = part1 * shrink[:, None], part2 * shrink[:, None]
            if HALVES:  # what rounding takes from the weights comes in a second product
                large, small = _in_two(weights, dtype)
                part1 = tl.dot(small, v1, tl.dot(large, v1, part1))
                part2 = tl.dot(small, v2, tl.dot(large, v2, part2))
            else:
                part1 = tl.dot(weights, v1, part1, input_precision=PRECISION)
                part2 = tl.dot(weights, v2, part2, input_precision=PRECISION)
        else:
            larger = tl.maximum(maximum, logits)
            shrink, weights = tl.exp2(maximum - larger), tl.exp2(logits - larger)
            total = total * shrink + weights
            part1 = part1 * shrink[:, :, None] + weights[:, :, None] * v1
            part2 = part2 * shrink[:, :, None] + weights[:, :, None] * v2
        maximum = larger
    if not DOT:
        largest = tl.max(maximum, axis=1)
        factor = tl.exp2(maximum - largest[:, None])
        total = tl.sum(total * factor, axis=1)
        part1 = tl.sum(part1 * factor[:, :, None], axis=1)
        part2 = tl.sum(part2 * factor[:, :, None], axis=1)  # [GROUP_PADDED, HALF_PADDED]
        maximum = largest

    if split == 0:
        new = K_NEW + row * k_new_row + head * k_new_head + h
        new_k1, new_k2 = tl.load(new, mask=in_first, other=0.0), tl.load(new + HALF, mask=in_second, other=0.0)
        new = V_NEW + row * v_new_row + head * v_new_head + h
        new_v1, new_v2 = tl.load(new, mask=in_first, other=0.0), tl.load(new + HALF, mask=in_second, other=0.0)
        logit_k1, logit_k2 = new_k1.to(tl.float32), new_k2.to(tl.float32)
        if ROTATE or OWN:
            logit_k1, logit_k2 = logit_k1 * cos - logit_k2 * sin, logit_k2 * cos + logit_k1 * sin
        if OWN:
            new_k1, new_k2 = logit_k1.to(dtype), logit_k2.to(dtype)
            logit_k1, logit_k2 = new_k1.to(tl.float32), new_k2.to(tl.float32)
        logit = tl.sum(q1 * logit_k1[None, :] + q2 * logit_k2[None, :], axis=1)  # [GROUP_PADDED]
        if as_cached:
            logit *= scale
        if length < slots:
            k_place, v_place = keys + length.to(tl.int64) * k_slot + h, values + length.to(tl.int64) * v_slot + h
            tl.store(k_place, new_k1, mask=in_first)
            tl.store(k_place + HALF, new_k2, mask=in_second)
            tl.store(v_place, new_v1, mask=in_first)
            tl.store(v_place + HALF, new_v2, mask=in_second)
            if WITH_LOGITS:
                tl.store(logits_out + g * slots + length, logit, mask=in_group)
        joint = tl.maximum(maximum, logit)
        old, own = tl.exp2(maximum - joint), tl.exp2(logit - joint)
        total = total * old + own
        part1 = part1 * old[:, None] + own[:, None] * new_v1.to(tl.float32)[None, :]
        part2 = part2 * old[:, None] + own[:, None] * new_v2.to(tl.float32)[None, :]
        maximum = joint

    in_first, in_second = in_group[:, None] & in_first[None, :], in_group[:, None] & in_second[None, :]
    if ALONE:
        out = OUT + (first_query + g)[:, None] * D + h[None, :]
        tl.store(out, (part1 / total[:, None]).to(dtype), mask=in_first)
        tl.store(out + HALF, (part2 / total[:, None]).to(dtype), mask=in_second)
        live = tl.load(LIVE) if HAS_LIVE else 1
        if WITH_LOGITS and live != 0:
            tl.debug_barrier()  # all threads have written the logits that are read now
            scores = SCORES + row * score_row + head * score_head
            if POOLED:
                scores += place
            last = length - lag
            for n0 in range(begin, last + 1, SCORE_SLOTS):
                n = n0 + tl.arange(0, SCORE_SLOTS)
                inside = (n <= last) & (n < slots)
                seen = logits_out + g[:, None] * slots + n[None, :]
                logits = tl.load(seen, mask=in_group[:, None] & inside[None, :], other=float("-inf"))
                given = tl.exp2(logits - maximum[:, None]) / total[:, None]
                received = tl.max(given, axis=0) if OF == "largest" else tl.sum(given, axis=0)
                before = tl.load(scores + n, mask=inside, other=0.0)
                tl.store(scores + n, _taken_in(before, received, GROUP, OF), mask=inside)
    else:
        places = (first_query + g) * splits + split
        tl.store(MAXIMA + places, maximum, mask=in_group)
        tl.store(SUMS + places, total, mask=in_group)
        parts_out = PARTS + places[:, None] * D + h[None, :]
        tl.store(parts_out, part1, mask=in_first)
        tl.store(parts_out + HALF, part2, mask=in_second)


@triton.jit
def _taken_in(before, received, GROUP: tl.constexpr, OF: tl.constexpr):
    """Scores of slots after they have received so much, OF a group's heads."""
    if OF == "largest":
        after = tl.maximum(before, received)
    elif OF == "mean":
        after = before + received / GROUP
    else:
        after = before + received
    return after


@triton.jit
def _normaliser(MAXIMA, SUMS, query, used, splits, CHUNK: tl.constexpr):
    """Largest logit of a query head over all splits, and its sum of exp2(logit - maximum)."""
    maxima, sums = MAXIMA + query * splits, SUMS + query * splits
    maximum, total = float("-inf"), 0.0
    for s0 in range(0, used, CHUNK):
        s = s0 + tl.arange(0, CHUNK)
        maximum = tl.maximum(maximum, tl.max(tl.load(maxima + s, mask=s < used, other=float("-inf")), axis=0))
    for s0 in range(0, used, CHUNK):
        s = s0 + tl.arange(0, CHUNK)
        weights = tl.exp2(tl.load(maxima + s, mask=s < used, other=float("-inf")) - maximum)
        total += tl.sum(weights * tl.load(sums + s, mask=s < used, other=0.0), axis=0)
    return maximum, total


@triton.jit(do_not_specialize=["window", "least", "lag"])
def finish(
    LENGTHS, BEGIN, LIVE, LOGITS, MAXIMA, SUMS, PARTS, OUT, SCORES,
    score_row, score_head, kv_heads, slots, splits, least, window, lag,
    GROUP: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, N: tl.constexpr, SCORE_SLOTS: tl.constexpr,
    CHUNK: tl.constexpr, HAS_LIVE: tl.constexpr, WINDOWED: tl.constexpr, POOLED: tl.constexpr, OF: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """The first GROUP programs of a row and KV head put one head's output together; each further one changes scores.

    OUT [B, Hq, D]. Slots take in what they receive, OF the group, from `lag` before the token's own on. No atomics: a
    slot's score has one writer, and every sum one order.
    """
    if EARLY:
        let_next_start()
        wait_for_last()
    row, head, job = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads, tl.program_id(1)
    length, place = _head(LENGTHS, BEGIN, row, head, kv_heads, POOLED)
    seen, _, used = _share(length, window, splits, least, N, WINDOWED)
    first_query = (row * kv_heads + head).to(tl.int64) * GROUP
    if job < GROUP:
        maximum, total = _normaliser(MAXIMA, SUMS, first_query + job, used, splits, CHUNK)
        d = tl.arange(0, D_PADDED)
        output = tl.zeros([D_PADDED], tl.float32)
        for s0 in range(0, used, CHUNK):
            s = s0 + tl.arange(0, CHUNK)
            places = (first_query + job) * splits + s
            weights = tl.exp2(tl.load(MAXIMA + places, mask=s < used, other=float("-inf")) - maximum)
            inside = (s < used)[:, None] & (d < D)[None, :]
            parts = tl.load(PARTS + places[:, None] * D + d[None, :], mask=inside, other=0.0)
            output += tl.sum(weights[:, None] * parts, axis=0)
        output = (output / total).to(OUT.dtype.element_ty)
        tl.store(OUT + (first_query + job) * D + d, output, mask=d < D)
    else:
        begin = seen + (job - GROUP) * SCORE_SLOTS
        live = tl.load(LIVE) if HAS_LIVE else 1
        last = length - lag
        if (begin <= last) & (live != 0):
            n = begin + tl.arange(0, SCORE_SLOTS)
            inside = (n <= last) & (n < slots)
            received = tl.zeros([SCORE_SLOTS], tl.float32)
            for i in tl.static_range(GROUP):
                maximum, total = _normaliser(MAXIMA, SUMS, first_query + i, used, splits, CHUNK)
                logits = tl.load(LOGITS + (first_query + i) * slots + n, mask=inside, other=float("-inf"))
                if OF == "largest":
                    received = tl.maximum(received, tl.exp2(logits - maximum) / total)
                else:
                    received += tl.exp2(logits - maximum) / total
            scores = SCORES + row.to(tl.int64) * score_row + head.to(tl.int64) * score_head + n
            if POOLED:
                scores += place
            before = tl.load(scores, mask=inside, other=0.0)
            tl.store(scores, _taken_in(before, received, GROUP, OF), mask=inside)
