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
    """

    accumulate: bool
    queries: int | tuple[int, ...] | None
    of: Literal["sum", "mean", "largest"] = "sum"
    beyond: int = 0


class Echo(NamedTuple):
    """How calls of several tokens are read a second time, behind themselves (after KVzip, arXiv 2505.23416).

    After a call whose evictions are due, its tokens are fed once more, in chunks, each right behind the call's last
    token; what the copies hold is dropped again. The largest attention that a token of the copy gives a slot says
    whether the slot is needed to tell the text again.

    chunk: tokens of the copy that are read at once. first: what the first reading of such a call is asked for in place
    of `Policy.score_spec` (whether it accumulates is not looked at); None: nothing.
    """

    chunk: int
    first: ScoreSpec | None


__all__ = ["Echo", "ScoreSpec"]
