"""Which rows of a task are for tuning and which for the test: by a sample's id alone, the same in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

Rows = Literal["all", "tune", "test"]
_PARTS = 4  # one in so many samples is for tuning


def is_for_tuning(name: str) -> bool:
    """Whether the sample of this id is a tuning row: one whose id's SHA-256 begins with a number divisible by four.

    The number is that of the first eight hexadecimal digits. So the order of the data, their number and the seed of
    a run play no part, and rows that join a data set later move none.
    """
    return int(hashlib.sha256(name.encode("utf-8")).hexdigest()[:8], 16) % _PARTS == 0


def taker(rows: Rows) -> Callable[[str], bool]:
    """Says of a sample's id whether it is among these rows."""
    if rows == "all":
        return lambda name: True
    return lambda name: is_for_tuning(name) == (rows == "tune")
