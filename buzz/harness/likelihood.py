"""How likely continuations are behind contexts that a cache has compressed: a batch of requests, read call by call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from buzz.cache import BeehiveCache, Curve, PerRow
from buzz.evaluation.measure.batch import Held, Reading, right_padded
from buzz.policies import Policy

_SKIP = -1  # no target


class Asked(NamedTuple):
    """A request in tokens: `first` are read in one call, `rest` one by one; `targets` says what is to be predicted
    after the first call and after each later one, -1 where nothing is."""

    first: tuple[int, ...]
    rest: list[int]
    targets: list[int]


class Answer(NamedTuple):
    """Log-likelihood of a continuation in nats, whether each of its tokens is the likeliest, and what was cached."""

    likelihood: float
    greedy: bool
    held: Held


def asked(context: Sequence[int], continuation: Sequence[int], longest: int) -> Asked:
    """A request as it is read.

    The context without its last token is the first call, after which the policy evicts: so already the first token of
    the continuation is predicted from what it kept. A context of one token is a call of its own.

    Args:
        longest: tokens that the model reads at the most; more are cut off at the left, as lm-eval does.
    """
    read = [*context, *continuation][-(longest + 1) :][:-1]
    ahead = len(read) - len(continuation)  # tokens after which nothing is to be predicted
    first = read[: max(1, ahead)]
    return Asked(tuple(first), read[len(first) :], [*[_SKIP] * (ahead > 0), *continuation])


def answer(
    model: Any,
    batch: Sequence[Asked],
    policies: Sequence[Policy],
    positions: str | None,
    dtype: torch.dtype | None = None,
) -> list[Answer]:
    """Read requests in one batch, each under its policy. Those with the same context and policy share its reading.

    Args:
        model: patched, in eval mode.
        policies: of each request; of one family.
        positions: of the BeehiveCache; None: what the policy prefers.
        dtype: of the softmax; None: that of the logits. Sums are float32.

    Returns:
        An answer for each request, in order; `held.lengths` after its first call and after each later one.
    """
    contexts: dict[tuple[tuple[int, ...], Policy], int] = {}
    branches = [
        contexts.setdefault((one.first, policy), len(contexts)) for one, policy in zip(batch, policies, strict=True)
    ]
    cache = BeehiveCache(PerRow([policy for _, policy in contexts]), model, positions=positions)
    cache.curve = Curve()
    targets = right_padded([one.targets for one in batch], _SKIP, model.device)  # [B, calls]
    likelihood = torch.zeros(targets.shape, device=model.device)  # float32
    greedy = targets == _SKIP
    with torch.inference_mode():
        reading = Reading(
            model,
            cache,
            [list(first) for first, _ in contexts],
            [one.rest for one in batch],
            branches=branches if len(contexts) < len(batch) else (),
        )
        for call, (rows, logits) in enumerate(reading):
            wanted = targets[rows, call]  # [R]
            chances = F.log_softmax(logits, dim=-1, dtype=dtype).gather(1, wanted.clamp(min=0)[:, None])[:, 0]
            likelihood[rows, call] = chances.float() * (wanted != _SKIP)
            greedy[rows, call] |= logits.argmax(dim=-1) == wanted
        sums, all_greedy = likelihood.cpu().double().sum(1).tolist(), greedy.all(1).tolist()
    return [Answer(sums[row], all_greedy[row], reading.held[row]) for row in range(len(batch))]
