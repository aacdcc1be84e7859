"""What may be given for a number or a bool: Python's own, numpy's and torch's; a bool is never a number."""

from __future__ import annotations

import math
import operator
from typing import Any


def integer(value: Any) -> int | None:
    """Python's integer of what serves as one; None for anything else."""
    if _boolean(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(value: Any) -> int | float | None:
    """Python's number of what is one; None for anything else."""
    whole = integer(value)
    if whole is not None or _boolean(value) or not hasattr(value, "__float__"):
        return whole
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # an array or a tensor of several
        return None


def truth(value: Any) -> bool | None:
    """Python's bool of what is one; None for anything else."""
    try:
        return bool(value) if _boolean(value) else None
    except (TypeError, ValueError, RuntimeError):  # an array or a tensor of several
        return None


def finite(value: int | float) -> bool:
    """Whether it is so as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _boolean(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
