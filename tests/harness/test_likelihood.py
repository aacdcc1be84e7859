"""Batches of continuations against a computation one by one."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.harness.likelihood import answer, asked
from tests.evaluation.toys import POLICIES, model_of, naive_logits, numbers

CONTEXTS = [numbers(length, length) for length in (30, 17, 17, 2, 1)]
# What belongs to which context: two share one, another one has a continuation of a single token.
PAIRS = [(0, numbers(3, 1)), (0, numbers(7, 2)), (1, numbers(1, 3)), (0, numbers(1, 4)), (3, [5]), (4, numbers(4, 5))]


def naive(model, policy, positions, context, continuation):
    """Log-likelihood, whether it is greedy, and cached tokens after the first call and after each later one."""
    first, last = (context[:-1], context[-1:]) if len(context) > 1 else (context, [])
    rest = [*last, *continuation[:-1]]
    logits, lengths = naive_logits(model, policy, positions, first, rest)
    chances = logits[len(last) :].double().log_softmax(-1)
    wanted = torch.tensor(continuation)
    return chances.gather(1, wanted[:, None]).sum().item(), bool((chances.argmax(-1) == wanted).all()), lengths


def greedy(model, policy, positions, context, count):
    """The likeliest continuation."""
    found: list[int] = []
    for _ in range(count):
        first, last = context[:-1], context[-1:]
        found.append(int(naive_logits(model, policy, positions, first, [*last, *found])[0][-1].argmax()))
    return found


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("name", list(POLICIES))
def test_a_batch_is_what_each_request_is_alone(family, positions, name):
    model, policy = model_of(family), POLICIES[name]
    with buzz.patch_model(model):
        pairs = [(CONTEXTS[i], continuation) for i, continuation in PAIRS]
        pairs.append((CONTEXTS[1], greedy(model, policy, positions, CONTEXTS[1], 4)))
        batch = [asked(context, continuation, 100) for context, continuation in pairs]
        found = answer(model, batch, [policy] * len(batch), positions)
        for (context, continuation), one in zip(pairs, found, strict=True):
            likelihood, is_greedy, lengths = naive(model, policy, positions, context, continuation)
            assert one.likelihood == pytest.approx(likelihood, rel=1e-5, abs=1e-4)
            assert one.greedy == is_greedy
            assert one.held.lengths == lengths
    assert found[-1].greedy


def test_rows_with_policies_of_their_own_share_no_context():
    model = model_of("llama")
    policies = [buzz.make_policy("streaming", sink=2, window=window) for window in (5, 9, 9)]
    context, continuations = CONTEXTS[0], [numbers(3, seed) for seed in (1, 2, 3)]
    with buzz.patch_model(model):
        batch = [asked(context, continuation, 100) for continuation in continuations]
        found = answer(model, batch, policies, None)
        for one, policy, continuation in zip(found, policies, continuations, strict=True):
            assert one.likelihood == pytest.approx(naive(model, policy, None, context, continuation)[0], rel=1e-5)


def test_the_full_cache_is_one_forward():
    model = model_of("llama")
    context, continuation = CONTEXTS[0], numbers(6, 1)
    with torch.no_grad():
        chances = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    wanted = chances.gather(1, torch.tensor(continuation)[:, None]).sum().item()
    with buzz.patch_model(model):
        (found,) = answer(model, [asked(context, continuation, 100)], [POLICIES["full"]], None)
    assert found.likelihood == pytest.approx(wanted, abs=1e-4)


def test_a_long_request_is_cut_at_the_left():
    assert asked([1, 2, 3, 4, 5], [6, 7], 4) == ((3, 4), [5, 6], [-1, 6, 7])
    assert asked([1, 2, 3], [6, 7], 4) == ((1, 2), [3, 6], [-1, 6, 7])
    assert asked([1, 2], [6, 7, 8], 3) == (
        (2,),
        [6, 7],
        [6, 7, 8],
    )  # of the context one token is left
    assert asked([1], [6], 3) == ((1,), [], [6])
