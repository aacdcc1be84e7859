"""What is wanted of a call's attention."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Wanted(NamedTuple):
    """Of the probabilities that the counted queries of a call give a slot: their sum, or the largest.

    lag: a query counts for the slots that are at least so many before its own.
    """

    of: Literal["sum", "largest"] = "sum"
    lag: int = 0


__all__ = ["Wanted"]
