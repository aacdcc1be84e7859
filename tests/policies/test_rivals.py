"""What is special about the rivals: layers with shares of their own, and draws that differ from one to the next."""

from __future__ import annotations

import itertools

import pytest
import torch

from buzz.policies import Held, make_policy


def test_the_pyramid_falls_on_a_line_and_keeps_its_mean():
    policy = make_policy("pyramidkv", capacity=248 + 8, window=8, beta=20)
    layers = policy.per_layer(30)
    assert {layer.name for layer in layers} == {"snapkv"}
    sizes = [layer.capacity - 8 for layer in layers]
    assert sizes[0] == round(2 * 248 - 248 / 20)
    assert sizes[-1] == round(248 / 20)
    assert sum(sizes) / 30 == pytest.approx(248, abs=0.5)
    steps = [a - b for a, b in itertools.pairwise(sizes)]
    assert max(steps) - min(steps) <= 1
    assert {layer.capacity for layer in make_policy("pyramidkv", beta=1).per_layer(7)} == {256}


def test_a_tiny_pyramid_leaves_every_layer_something():
    layers = make_policy("pyramidkv", capacity=9, window=8).per_layer(12)
    assert min(layer.capacity for layer in layers) == 9


def test_a_pyramid_of_one_layer_is_that_layers_mean():
    (layer,) = make_policy("pyramidkv", capacity=100).per_layer(1)
    assert layer.capacity == 100


def test_other_policies_are_the_same_in_every_layer():
    policy = make_policy("h2o")
    assert policy.per_layer(3) == [policy] * 3


def test_random_draws_are_uniform_differ_and_repeat():
    policy = make_policy("random", capacity=15, sink=2, window=3)
    dropped = []
    for evictions in range(2000):
        kept = policy.select(Held(), 16, evictions)[0, 0].tolist()
        assert kept == policy.select(Held(), 16, evictions)[0, 0].tolist()
        (slot,) = set(range(16)) - set(kept)
        dropped.append(slot)
    counts = torch.bincount(torch.tensor(dropped), minlength=16)
    assert counts[:2].sum() == 0
    assert counts[13:].sum() == 0
    assert counts[2:13].min() > 120  # 2000 / 11 = 182, standard deviation 13
    other = make_policy("random", capacity=15, sink=2, window=3, seed=1)
    assert any(other.select(Held(), 16, n).tolist() != policy.select(Held(), 16, n).tolist() for n in range(20))


def test_every_seed_has_draws_of_its_own():
    # Torch's generator reads 32 bits of its seed, and the draws of seeds below 4096 fill those.
    seeds = [0, 1, 4095, 4096, 8192, 2**32, 2**44, 2**44 + 1, 2**62, 2**63 - 1]
    draws = {tuple(make_policy("random", seed=seed).select(Held(), 4000, 5)[0, 0].tolist()) for seed in seeds}
    assert len(draws) == len(seeds)
    policy = make_policy("random", capacity=9, sink=1, window=2, seed=2**40)
    assert len({tuple(policy.select(Held(), 40, evictions)[0, 0].tolist()) for evictions in range(300)}) == 300


@pytest.mark.parametrize("seed", [0, 1, 4095])
def test_draws_of_small_seeds_are_those_they_always_were(seed):
    policy = make_policy("random", capacity=9, sink=1, window=2, seed=seed)
    generator = torch.Generator().manual_seed(seed * 2**20 + 3)
    drawn = torch.randperm(37, generator=generator)[:6].sort().values + 1
    assert policy.select(Held(), 40, 3)[0, 0].tolist() == [0, *drawn.tolist(), 38, 39]


def test_the_state_of_random_counts_evictions():
    policy = make_policy("random", capacity=50)
    state = policy.advance(80)
    assert state == (50, 1)
    for n in range(2, 10):
        state = policy.advance(51, state[1])
        assert state == (50, n)
    assert policy.steady() == (50.0, 50)


def test_snapkv_never_evicts_after_its_first_call():
    policy = make_policy("snapkv", capacity=40)
    assert policy.trace(30, 30) == list(range(30, 61))  # a prompt that fits is left alone for good
    assert policy.trace(100, 30) == list(range(40, 71))


def test_snapkv_prefers_neighbours_of_hitters():
    policy = make_policy("snapkv", capacity=5, window=2, kernel=3)
    scores = torch.zeros(1, 1, 12)
    scores[..., 6] = 1.0
    assert policy.select(Held(scores), 12)[0, 0].tolist() == [5, 6, 7, 10, 11]


def test_a_sink_of_h2o_is_kept_whatever_it_scores():
    scores = torch.arange(12.0).view(1, 1, 12)
    assert make_policy("h2o", heavy=3, window=2).select(Held(scores), 12)[0, 0].tolist() == [7, 8, 9, 10, 11]
    policy = make_policy("h2o", heavy=3, window=2, sink=2)
    assert policy.select(Held(scores), 12)[0, 0].tolist() == [0, 1, 7, 8, 9, 10, 11]
    assert (policy.plan(7), policy.plan(8)) == (None, (7, 0))
    assert policy.from_budget(50).steady().mean == 50
