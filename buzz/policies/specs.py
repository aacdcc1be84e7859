"""Which attention a policy wants to see."""

from __future__ import annotations

from typing import Literal, NamedTuple


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
    of: Literal["sum", "mean", "largest"] = "sum"
    beyond: int = 0
    mean: float = 0.0
    near: int = 0


__all__ = ["ScoreSpec"]
