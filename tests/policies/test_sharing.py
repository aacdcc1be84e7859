"""Shared slots against a reference that hands out one slot at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import Places
from buzz.policies.sharing import share
from buzz.rows import Rows

NAN, INF = float("nan"), float("inf")


def places_of(lengths: list[list[int]], rooms: list[list[int]], layers: int) -> Places:
    """Places of rows [R, heads], each head in a room of its own size, some of it free."""
    ends = torch.tensor(rooms).cumsum(dim=1)
    return Places(len(lengths[0]), layers, int(ends[0, -1]), ends - torch.tensor(rooms), torch.tensor(lengths))


def naive_share(worth, places, row, kept, sink, window, floor, ceiling, layer_ceiling, budgets=None):
    """The kept places of one row, as a set."""
    heads, layers = places.heads, places.layers
    head, slot, length = places.head[row].tolist(), places.slot[row].tolist(), places.length[row].tolist()
    worth = [-INF if w != w else w for w in worth[row].tolist()]
    layer = [h // (heads // layers) for h in range(heads)]
    left = [p for p in range(len(head)) if slot[p] < length[head[p]]]
    best = sorted(left, key=lambda p: (-worth[p], p))
    kept_places: list[int] = []

    def of_head(h):
        return sum(head[p] == h for p in kept_places)

    def of_layer(one):
        return sum(layer[head[p]] == one for p in kept_places)

    for h in range(heads):
        kept_places += [p for p in left if head[p] == h and (slot[p] < sink or slot[p] >= length[h] - window)]
        for p in best:
            least = budgets[h] if budgets else max(1, int(floor * kept))
            if head[p] == h and p not in kept_places and of_head(h) < least:
                kept_places.append(p)
    for bound_head, bound_layer in ((True, True), (True, False), (False, False)):
        for p in best:
            if p in kept_places or len(kept_places) == kept * heads:
                continue
            if bound_head and ceiling is not None and of_head(head[p]) >= int(ceiling * kept):
                continue
            most = None if layer_ceiling is None else int(layer_ceiling * kept * (heads // layers))
            if bound_layer and most is not None and of_layer(layer[head[p]]) >= most:
                continue
            kept_places.append(p)
    return set(kept_places)


@st.composite
def shared(draw):
    """Worth, places and what `share` is asked, of one to three rows."""
    layers, rows = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = layers * draw(st.integers(1, 3))
    lengths = draw(st.lists(st.lists(st.integers(0, 12), min_size=heads, max_size=heads), min_size=rows, max_size=rows))
    mean = min(sum(row) for row in lengths) // heads
    if mean < 1:
        lengths, mean = [[n + 1 for n in row] for row in lengths], 1
    kept = draw(st.integers(1, mean))
    sink = draw(st.integers(0, min(2, kept)))
    window = draw(st.integers(0, kept - sink))
    # Rooms as long as the longest row needs, so that all rows have equally many places.
    longest = max(sum(row) for row in lengths) + draw(st.integers(0, 5))
    rooms = [[*row[:-1], row[-1] + longest - sum(row)] for row in lengths]
    if draw(st.booleans()):  # free places between heads, not at the end alone
        rooms = [[n + 2 for n in row] for row in rooms]
    values = st.sampled_from([0.0, 1.0, 2.0, 3.5, NAN, INF, -INF])
    size = sum(rooms[0])
    worth = torch.tensor(draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=rows, max_size=rows)))
    floor = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    ceiling = draw(st.sampled_from([None, 1.0, 1.5, 4.0]))
    layer_ceiling = draw(st.sampled_from([None, 1.0, 1.2, 2.0]))
    budgets = None
    if draw(st.booleans()):
        budgets = [max(1, sink + window)] * heads
        for head in draw(st.lists(st.integers(0, heads - 1), max_size=kept * heads - sum(budgets))):
            budgets[head] += 1
        budgets = Rows(budgets)
    return worth, places_of(lengths, rooms, layers), kept, (sink, window, floor, ceiling, layer_ceiling, budgets)


def asked(rule) -> dict:
    return dict(zip(("sink", "window", "floor", "ceiling", "layer_ceiling", "budgets"), rule, strict=True))


@settings(max_examples=600, deadline=None)
@given(shared())
def test_shares_equal_the_reference(case):
    worth, places, kept, rule = case
    mask = share(worth, places, kept, **asked(rule))
    assert (mask.dtype, mask.shape) == (torch.bool, worth.shape)
    assert mask.sum(-1).tolist() == [kept * places.heads] * len(worth)
    assert not (mask & ~places.taken).any()
    for row in range(len(worth)):
        assert set(mask[row].nonzero()[:, 0].tolist()) == naive_share(worth, places, row, kept, *rule)


@settings(max_examples=200, deadline=None)
@given(shared())
def test_a_row_among_others_is_as_it_is_alone(case):
    worth, places, kept, rule = case
    together = share(worth, places, kept, **asked(rule))
    for row in range(len(worth)):
        alone = places._replace(**{name: getattr(places, name)[row : row + 1] for name in ("begin", "length")})
        assert torch.equal(share(worth[row : row + 1], alone, kept, **asked(rule))[0], together[row])


def test_rows_of_equal_heads_share_one_description():
    places = Places.equal(4, 2, 6, torch.device("cpu"))
    worth = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    mask = share(worth, places, 3, sink=1, window=1)
    for row in range(3):
        assert torch.equal(share(worth[row : row + 1], places, 3, sink=1, window=1)[0], mask[row])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_heads_that_grow_alike_stay_below_their_ceilings(data):
    """What bounds the longest head, and each layer, over a stream of evictions."""
    layers, heads, kept = 2, 4, data.draw(st.integers(2, 6))
    lengths, seed = [kept] * heads, data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(6):
        more = data.draw(st.integers(1, 9))
        lengths = [n + more for n in lengths]
        places = places_of([lengths], [lengths], layers)
        worth = torch.rand(1, sum(lengths), generator=generator) * (1 + 3 * places.head)
        mask = share(worth, places, kept, window=1, floor=0.2, ceiling=1.5, layer_ceiling=1.25)
        lengths = [int((mask & (places.head == h)).sum()) for h in range(heads)]
        assert sum(lengths) == kept * heads
        assert max(lengths) <= int(1.5 * kept)
        assert max(sum(lengths[:2]), sum(lengths[2:])) <= int(1.25 * kept * 2)


def test_nothing_is_read_by_the_host():
    with torch.device("meta"):  # whose tensors have no values
        places = Places.equal(6, 3, 9, torch.device("meta"))
        mask = share(torch.rand(2, 54), places, 4, sink=1, window=2, floor=0.2, ceiling=2.0, layer_ceiling=1.5)
    assert (mask.device.type, mask.shape) == ("meta", (2, 54))


@pytest.mark.parametrize(("ceiling", "kept"), [(None, [2, 2, 5]), (1.0, [3, 3, 3]), (1.5, [2, 3, 4])])
def test_a_head_that_is_worth_more_gets_more(ceiling, kept):
    places = Places.equal(3, 1, 5, torch.device("cpu"))
    worth = torch.tensor([[0.0] * 5 + [1.0] * 5 + [2.0] * 5])
    mask = share(worth, places, 3, sink=1, window=1, ceiling=ceiling)
    assert mask.view(3, 5).sum(-1).tolist() == kept
