"""A step where the heads of a row share a pool, each with slots of its own: against every head alone."""

from __future__ import annotations

import pytest
import torch

from buzz.attention.step import attend_step
from tests.attention.test_step import (
    CUDA,
    DEVICE,
    Case,
    every_function,
    make,
    naive,
    needs_triton,
    repeats,
    triton_step,
)

SCALE = 0.25


class Pool:
    """Cached slots of some rows' heads, and what `attend_step` is given of them.

    Args:
        lengths: of each row, of each head: cached slots.
        order: in which the heads lie in a row's pool; None: as they are counted.
        room: of each head beyond its slots. What no head holds is large, but finite.
    """

    def __init__(self, lengths, *, order=None, room=2, dim=16, group=1, dtype=torch.float32, live=None, **how):
        self.lengths, self.group, kv_heads = lengths, group, len(lengths[0])
        # Every head as a row of its own, with the table of the longest.
        self.heads = [
            [make([n], heads=1, slots=n + room, dim=dim, group=group, dtype=dtype, seed=7 * h + 100 * b, **how)
             for h, n in enumerate(row)] for b, row in enumerate(lengths)
        ]  # fmt: skip
        self.longest = max(map(max, lengths)) + 1
        places = max(sum(row) for row in lengths) + room * kv_heads + 3
        size = (3, len(lengths), places)
        self.begin = torch.zeros(len(lengths), kv_heads, dtype=torch.int32)
        keys, values = (torch.full((*size, dim), 1e4).to(dtype) for _ in range(2))
        scores = torch.full(size, 1e4)
        for b, row in enumerate(self.heads):
            at = 1
            for h in order or range(kv_heads):
                one, self.begin[b, h] = row[h], at
                for pool, own in ((keys, one.keys), (values, one.values)):
                    pool[1, b, at : at + lengths[b][h]] = own[0, 0, : lengths[b][h]]
                if one.scores is not None:
                    one.scores *= one.scores > 0.5  # as large as probabilities, or none yet
                    scores[1, b, at : at + lengths[b][h] + 1] = one.scores[0, 0, : lengths[b][h] + 1]
                at += lengths[b][h] + room
        longest = max((one for row in self.heads for one in row), key=lambda one: one.keys.shape[2])
        together = {name: torch.stack([torch.cat([getattr(one, name)[0] for one in row]) for row in self.heads])
                    for name in ("q", "k", "v")}  # fmt: skip
        self.case = Case(
            **together, keys=keys[1], values=values[1], scores=None if longest.scores is None else scores[1],
            lengths=torch.tensor(lengths, dtype=torch.int32), cos=longest.cos, sin=longest.sin,
            live=None if live is None else torch.tensor([live], dtype=torch.int32),
        )  # fmt: skip

    def run(self, function, **how):
        """Output, and the case afterwards."""
        after = self.case.copy(DEVICE)
        how = {"scale": SCALE, "begin": self.begin.to(DEVICE), "longest": self.longest, **how}
        return after.run(function, **how), after


def check(function, pool, *, tolerance=1e-5, logn_base=None, window=None, of="sum", beyond=0, **how):
    """Every head gives what it gives alone, nothing else changes, and a second run gives the same bits."""
    how |= {"logn_base": logn_base, "window": window, "of": of, "beyond": beyond}
    got, after = pool.run(function, **how)
    keys, values = pool.case.copy().keys, pool.case.copy().values
    scores = None if pool.case.scores is None else pool.case.scores.double()
    for b, row in enumerate(pool.heads):
        for h, one in enumerate(row):
            at, n = int(pool.begin[b, h]), pool.lengths[b][h]
            output, received = naive(one, SCALE, logn_base, window, of, beyond)
            part = got[b, h * pool.group : (h + 1) * pool.group].cpu()
            assert (part - output[0]).norm() < tolerance * output.norm()
            keys[b, at + n], values[b, at + n] = one.k[0, 0], one.v[0, 0]
            if scores is not None and (pool.case.live is None or pool.case.live):
                own, new = scores[b, at : at + n + 1], received[0, 0, : n + 1]
                own.copy_(own.maximum(new) if of == "largest" else own + new)
    assert torch.equal(after.keys.cpu(), keys)
    assert torch.equal(after.values.cpu(), values)
    if scores is not None:
        torch.testing.assert_close(after.scores.cpu().double(), scores, atol=1e-6, rtol=1e-5)
        untouched = after.scores.cpu() == pool.case.scores
        for b, row in enumerate(pool.lengths):
            held = torch.zeros(len(untouched[b]), dtype=torch.bool)
            for h, n in enumerate(row):
                held[pool.begin[b, h] : pool.begin[b, h] + n + 1] = True
            assert (held | untouched[b]).all()
    if repeats(function):
        again, other = pool.run(function, **how)
        assert torch.equal(got, again)
        assert all(a is None or torch.equal(a, b) for a, b in zip(after.cache, other.cache, strict=True))


UNEVEN = [[3, 19, 40], [25, 0, 8]]


@every_function
@pytest.mark.parametrize(
    ("group", "dim", "rotate"), [(1, 16, False), (3, 64, True), (1, 80, True), (4, 80, False), (4, 128, True)]
)
def test_groups_and_dimensions(function, group, dim, rotate):
    check(function, Pool(UNEVEN, group=group, dim=dim, rotate=rotate))


@every_function
@pytest.mark.parametrize("lengths", [[[0, 1]], [[7, 8], [9, 6]], [[0, 47, 15], [24, 23, 25]]])
@pytest.mark.parametrize("room", [1, 4])
def test_lengths(function, lengths, room):
    """Without room to spare the new token is a head's last one, right before another head's first."""
    check(function, Pool(lengths, group=3, room=room))


@every_function
def test_heads_in_any_order(function):
    check(function, Pool(UNEVEN, order=[2, 0, 1], group=2))


@every_function
@pytest.mark.parametrize(
    ("of", "beyond", "window"),
    [("sum", 0, None), ("sum", 6, 12), ("mean", 6, None), ("mean", 0, 12), ("largest", 6, None), ("largest", 6, 12)],
)
def test_scores(function, beyond, window, of):
    check(function, Pool(UNEVEN, group=2), of=of, beyond=beyond, window=window, logn_base=512)


@every_function
@pytest.mark.parametrize(("of", "live"), [("sum", 0), ("largest", 0), ("largest", 1)])
def test_live(function, of, live):
    check(function, Pool(UNEVEN, group=2, live=live), of=of)


@every_function
def test_without_scores(function):
    check(function, Pool(UNEVEN, group=4, scored=False))


@every_function
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(function, dtype):
    check(function, Pool(UNEVEN, group=2, dim=64, dtype=dtype), tolerance=4e-3)


@every_function
def test_more_room_than_any_head_uses(function):
    """`longest` is a bound: the host need not know the lengths."""
    pool = Pool(UNEVEN, group=2)
    pool.longest = pool.case.keys.shape[1]
    angles = make([0], slots=pool.longest)
    pool.case.cos, pool.case.sin = angles.cos, angles.sin
    check(function, pool)


@every_function
@pytest.mark.parametrize("group", [1, 3])
def test_equal_heads_are_a_case_of_it(function, group):
    """A pool dealt evenly is today's layout: the same bits, where nothing but the layout differs."""
    case = make([9, 9], heads=3, group=group, slots=24)
    alone, pooled = case.copy(DEVICE), case.copy(DEVICE)
    pooled.keys, pooled.values = (t.flatten(1, 2) for t in (pooled.keys, pooled.values))
    pooled.scores = pooled.scores.flatten(1, 2)
    pooled.lengths = pooled.lengths[:, None].expand(-1, 3)
    begin = torch.arange(0, 72, 24, dtype=torch.int32, device=DEVICE).expand(2, -1)
    got = pooled.run(function, scale=SCALE, begin=begin, longest=24)
    assert torch.allclose(got, alone.run(function, scale=SCALE), atol=1e-6)
    for a, b in zip(alone.cache, pooled.cache, strict=True):
        assert torch.allclose(a.flatten(1, 2), b, atol=1e-6)
    if function is triton_step:
        assert torch.equal(alone.scores.flatten(1, 2), pooled.scores)


@needs_triton
@pytest.mark.parametrize("changes", [{}, {"slots": 4, "splits": 16}, {"slots": 16, "splits": 1}, {"score_slots": 64}])
@pytest.mark.parametrize("group", [1, 4])
def test_launches(group, changes):
    """How the work is cut up changes no result; {}: long heads get more programs than short ones."""
    from buzz.kernels.step import Launch

    check(triton_step, Pool([[0, 300, 9, 131]], group=group, dim=24), launch=Launch(**changes))


@needs_triton
def test_garbage_of_no_head_is_not_read():
    pool, clean = Pool(UNEVEN, group=2), Pool(UNEVEN, group=2)
    held = torch.zeros(pool.case.scores.shape, dtype=torch.bool)
    for b, row in enumerate(UNEVEN):
        for h, n in enumerate(row):
            held[b, pool.begin[b, h] : pool.begin[b, h] + n] = True
    pool.case.keys[~held] = pool.case.values[~held] = torch.nan
    assert torch.equal(pool.run(triton_step)[0], clean.run(triton_step)[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"begin": None},
        {"begin": torch.zeros(2, 2, dtype=torch.int32)},
        {"lengths": torch.zeros(2, dtype=torch.int32)},
        {"keys": torch.zeros(2, 3, 90, 16)},
        {"scores": torch.zeros(2, 3, 90)},
        {"longest": None},
        {"longest": 0},
        {"longest": 1000},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_refusals(changes):
    pool = Pool(UNEVEN)
    given = {**vars(pool.case), "begin": pool.begin, "longest": pool.longest, "scale": SCALE}
    with pytest.raises(ValueError):
        attend_step(**{**given, **changes})


@pytest.mark.parametrize("of", ["sum", "largest"])
def test_operator(of):
    """What torch.compile believes about the operator is true."""
    pool = Pool([[3, 5], [4, 1]], group=2, live=1)
    case = pool.case.copy(DEVICE)
    tensors = (case.q, case.k, case.v, case.keys, case.values, case.scores, case.lengths)
    more = (None, of, 2, pool.begin.to(DEVICE), pool.longest)
    torch.library.opcheck(
        torch.ops.buzz.attend_step.default, (*tensors, 0.25, None, case.cos, case.sin, case.live, *more)
    )


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("group", "dim", "of"), [(1, 128, "sum"), (4, 128, "largest"), (8, 64, "mean"), (3, 80, "sum"), (1, 64, "largest")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_heads_and_short_ones(dtype, group, dim, of):
    """Heads from one slot to 6k, with bounds that are tight and loose."""
    pool = Pool([[0, 6000, 300, 2100], [2000, 17, 128, 129]], group=group, dim=dim, dtype=dtype)
    for longest in (pool.longest, pool.case.keys.shape[1]):
        pool.longest = longest
        angles = make([0], slots=longest, dim=dim, dtype=dtype)
        pool.case.cos, pool.case.sin = angles.cos, angles.sin
        for window in (None, 1000):
            check(
                attend_step, pool, tolerance=1e-2 if dtype == torch.bfloat16 else 1e-4, of=of, window=window, beyond=3
            )


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_replayed_graph_follows_begins_and_lengths():
    """A captured step reads them anew in every replay, as after an eviction that dealt the pool otherwise."""
    pool = Pool([[5, 900, 40], [300, 7, 600]], group=4, dim=128, dtype=torch.bfloat16, room=8)
    case, begin = pool.case.copy(DEVICE), pool.begin.to(DEVICE)
    expected = case.copy(DEVICE)
    how = {"scale": 0.1, "longest": pool.case.cos.shape[0] - 5}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        case.copy(DEVICE).run(attend_step, begin=begin, **how)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = case.run(attend_step, begin=begin, **how)
    for change in (0, 1, 1, -4):
        case.lengths += change
        expected.lengths += change
        begin += 2 * (change < 0)
        graph.replay()
        assert torch.equal(output, expected.run(attend_step, begin=begin, **how))
        assert all(torch.equal(a, b) for a, b in zip(case.cache, expected.cache, strict=True))
