"""How many tokens a policy holds over the calls of a sample: integers alone."""

from __future__ import annotations

from buzz.policies.base import Policy


def prompt_calls(tokens: int, chunk: int | None, context: int = 0) -> list[int]:
    """Tokens of each call that reads a prompt: whole chunks and what is left; a single call without a chunk size.

    context: so many of them are read before the others, in calls of their own.
    """
    if context:
        return prompt_calls(context, chunk) + prompt_calls(tokens - context, chunk)
    if chunk is None or tokens <= chunk:
        return [tokens]
    return [chunk] * (tokens // chunk) + [tokens % chunk] * (tokens % chunk > 0)


def walk(policy: Policy, first: int, calls: int, chunk: int | None = None, context: int = 0) -> list[tuple[int, int]]:
    """Cache length of a row in and after each call: those that read `first` tokens, then one-token calls."""
    state, lengths = (0, 0), []
    for tokens in [*prompt_calls(first, chunk, context), *[1] * calls]:
        during = state[0] + tokens
        state = policy.advance(during, state[1])
        lengths.append((during, state[0]))
    return lengths


def mean_cached(
    policy: Policy, first: int, calls: int, layers: int = 1, chunk: int | None = None, context: int = 0
) -> float:
    """Mean cache length in tokens, over layers and over the one-token calls that follow a prompt.

    Args:
        first: tokens of the prompt.
        calls: one-token calls; without any, the length after the prompt.
        layers: of the model; matters for policies that differ by layer.
        chunk: tokens of a call that reads the prompt; None: it is read in one call.
        context: of the prompt, tokens that calls of their own read before the others.
    """
    means = {}
    by_layer = policy.per_layer(layers)
    for layer in set(by_layer):
        lengths = [after for _, after in walk(layer, first, calls, chunk, context)]
        means[layer] = sum(lengths[-calls:]) / calls if calls else float(lengths[-1])
    return sum(means[layer] for layer in by_layer) / layers


def full_mean(first: int, calls: int) -> float:
    """`mean_cached` of a cache that never evicts."""
    return first + (calls + 1) / 2 if calls else float(first)
