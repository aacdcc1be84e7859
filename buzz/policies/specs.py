"""Which attention a policy wants to see."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Of = Literal["sum", "mean", "largest"]


class ScoreSpec(NamedTuple):
    """Which attention a policy wants to see.

    accumulate: scores add up over all calls since a slot was appended; False: the current call alone. A slot's sum is
        float32, of 24 bits: at 2**17 it no longer notices attention below 2**-7, and at 2**24 (a sink, after about as
        many queries) it stops growing. A policy that reads the scores of old slots, such as H2O, has this limit in an
        endless stream; BUZZ reads those of fresh slots alone.
    queries: how many of a call's last queries count; None: all of them. (One number per batch row where the rows'
        policies differ in it.)
    of: what a slot gets of the probabilities that the counted queries of a call, and the query heads of its group, give
        it: their "sum", their "mean", or the "largest". What accumulates by "largest" is a running maximum; "mean"
        does not accumulate.
    beyond: only queries that come more than so many slots behind a slot count for it: attention from afar, as what its
        neighbours give a token says little of its use later. A slot that no query counts for gets 0.
    mean, near: so many times the mean over the queries that come more than `near` slots behind a slot is added to what
        `of` gives it. Beside the "largest", and in calls of several tokens alone (`Policy.prompt_spec`).
    """

    accumulate: bool
    queries: int | tuple[int, ...] | None
    of: Of = "sum"
    beyond: int = 0
    mean: float = 0.0
    near: int = 0


def refuse_unheard(name: str, steps: ScoreSpec | None, texts: ScoreSpec | None, echoes: bool) -> None:
    """Whether a policy can be given what it asks for.

    Args:
        steps, texts: its `score_spec` and `prompt_spec`. echoes: whether its prompts are read twice.

    Raises:
        ValueError: no; it would be given something else, or nothing.
    """
    for key, spec in (("score_spec", steps), ("prompt_spec", texts)):
        if spec is None:
            continue
        counted = spec.queries if isinstance(spec.queries, tuple) else (spec.queries,)
        if spec.of not in get_args(Of):
            raise ValueError(f"{name}: {key}.of must be one of {', '.join(get_args(Of))}, got {spec.of!r}")
        if any(queries is not None and queries < 1 for queries in counted):
            raise ValueError(f"{name}: {key}.queries must be at least 1, or None for all, got {spec.queries}")
        if min(spec.beyond, spec.near) < 0:
            raise ValueError(f"{name}: {key}.beyond and near must be at least 0, got {spec.beyond} and {spec.near}")
        if spec.mean and spec.of != "largest":
            raise ValueError(f"{name}: {key}.mean goes with of='largest' alone, got of={spec.of!r}")
    if steps is not None and steps.mean:
        raise ValueError(f"{name}: score_spec.mean must be 0, as steps add no mean: ask for one in prompt_spec")
    if (steps is None) != (texts is None) and not echoes:
        alone = "prompt_spec" if steps is None else "score_spec"
        raise ValueError(f"{name}: score_spec and prompt_spec must be None both or neither, got a {alone} alone")


__all__ = ["ScoreSpec", "refuse_unheard"]
