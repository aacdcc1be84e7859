"""Slots that stay are dealt out by the Triton kernels as they are by plain PyTorch: on a GPU if there is one."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("triton")

from buzz.cache import dealing
from buzz.cache.compaction import Block
from buzz.cache.dealing import Source, deal
from buzz.cache.pool import Pool
from buzz.rows import Rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS, DIM = 3, 12  # not a power of two


def stays(places, lengths, seed):
    """A mask of lengths[u] * heads taken places of unit u."""
    units = len(lengths)
    chance = torch.rand(units, places.size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    order = chance.masked_fill(~places.taken, -1).argsort(descending=True)
    wanted = torch.tensor(lengths, device=DEVICE)[:, None] * places.heads
    return torch.zeros_like(chance, dtype=torch.bool).scatter(
        1, order, torch.arange(places.size, device=DEVICE) < wanted
    )


def equal_parts(layers, rows, slots, seed, heads=HEADS):
    """Keys and values as a projection leaves them, and scores."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Block(
            *(torch.randn(rows, slots, heads, DIM, generator=generator).to(DEVICE).transpose(1, 2) for _ in range(2)),
            torch.rand(rows, heads, slots, generator=generator).to(DEVICE),
        )
        for _ in range(layers)
    ]


def contents(pool):
    """Everything that a pool holds where slots are, and its begins and lengths."""
    taken = pool.places().taken
    return pool.begin, pool.length, pool.scores, pool.keys[taken], pool.values[taken]


def both(monkeypatch, work):
    """What `work` leaves, with kernels and without."""
    found = []
    for kernels in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(dealing, "runs_triton", lambda x, kernels=kernels: kernels)
            found.append(contents(work()))
    for with_kernels, plain in zip(*found, strict=True):
        assert torch.equal(with_kernels, plain)
    return found[0]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lengths", [(5, 5), (3, 6)])
def test_prompts_go_into_a_pool(monkeypatch, layers, lengths):
    source = Source.equal(equal_parts(layers, 2, 70, seed=layers), Rows([70, 9]))
    stay = stays(source.places, lengths, seed=3)

    def work():
        pool = Pool(layers, layers, 2, HEADS, 8, source.parts[0].keys, "kept")
        deal(pool, source, stay, Rows(lengths), Rows([0, 1]), [0.5, 0.25])
        return pool

    _, _, scores, keys, _ = both(monkeypatch, work)
    whole = torch.cat([part.keys.flatten(1, 2) for part in source.parts], dim=1)
    assert torch.equal(keys, whole[stay])
    received = torch.cat([part.scores.flatten(1) for part in source.parts], dim=1)
    factors = torch.tensor([0.5, 0.25], device=DEVICE)[:, None].expand_as(stay)
    assert torch.equal(scores[scores > 0], (received * factors)[stay & (received > 0)])


def test_layers_go_one_after_another_where_they_will_share(monkeypatch):
    """And then lie as if they had gone together."""
    parts = equal_parts(2, 2, 20, seed=0)
    sources = [Source.equal([part], Rows([20, 12])) for part in parts]
    masks = [stays(source.places, (6, 4), seed=i) for i, source in enumerate(sources)]

    def work():
        pool = Pool(2, 2, 2, HEADS, 6, parts[0].keys, "kept")
        for layer, (source, stay) in enumerate(zip(sources, masks, strict=True)):
            deal(pool, source, stay, Rows([6, 4]), Rows([0, 1]), layer=layer)
        return pool

    def at_once():
        pool = Pool(2, 2, 2, HEADS, 6, parts[0].keys, "kept")
        source = Source.equal(parts, Rows([20, 12]))
        deal(pool, source, torch.cat(masks, dim=1), Rows([6, 4]), Rows([0, 1]))
        return pool

    for one, other in zip(both(monkeypatch, work), both(monkeypatch, at_once), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("rows", [(0, 1, 2), (2, 0)])
@pytest.mark.parametrize("heads", [HEADS, 1])
def test_pools_are_dealt_anew_in_place(monkeypatch, together, rows, heads):
    """Several times over, so that heads grow and shrink; other rows stay as they are."""
    source = Source.equal(equal_parts(together, 3, 9, seed=5, heads=heads), Rows([9, 9, 9]))

    def work():
        pool = Pool(2, together, 3, heads, 9, source.parts[0].keys, "kept")
        for members in ([0, 1],) if together == 2 else ([0], [1]):
            deal(pool, source, stays(source.places, [7] * 3, 0), Rows([7] * 3), pool.units_of_layers(members))
        for seed in range(3):
            before, units = copy.deepcopy(pool), pool.units_of(Rows(rows))
            pool.advance(Rows([1 if row in rows else 0 for row in range(3)]))
            whole = Source.pooled(pool)
            part = whole.units(units)
            stay = stays(part.places, [7] * len(units), seed)
            keys = pool.keys.clone()
            deal(pool, part, stay, Rows([7] * len(units)), units, [0.5] * len(units))
            places = pool.places()
            for u, unit in enumerate(units):
                assert torch.equal(pool.keys[unit][places.taken[unit]], keys[unit][stay[u]])
            for unit in set(range(len(pool.keys))) - set(units):
                assert torch.equal(pool.keys[unit], before.keys[unit])
                assert torch.equal(pool.scores[unit], before.scores[unit])
        return pool

    both(monkeypatch, work)


@pytest.mark.parametrize("capacity", [9, 14])
def test_what_all_stays_of_is_filled_in_as_it_would_be_dealt(capacity):
    """Layer by layer, rows of different lengths, with and without free places behind the longest."""
    lengths = Rows([9, 4])
    pools = [Pool(2, 2, 2, HEADS, capacity, torch.empty(DIM, device=DEVICE), "kept") for _ in range(2)]
    dealt, filled = pools
    for layer, part in enumerate(equal_parts(2, 2, 9, seed=4)):
        part.scores[1, :, 4:] = 0
        source = Source.equal([part], lengths)
        stay = source.places.taken
        source = source._replace(places=source.places._replace(first=layer * HEADS))
        deal(dealt, source, stay, lengths, Rows([0, 1]), layer=layer)
        filled.fill(layer, part, lengths)
    for one, other in zip(contents(dealt), contents(filled), strict=True):
        assert torch.equal(one, other)
    assert filled.lengths(0) == dealt.lengths(0) == [[9] * HEADS, [4] * HEADS]
