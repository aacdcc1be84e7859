"""Parameters of a policy, checked one by one: Python's own value, or an error that says what is allowed.

`where` is what a message begins with: the policy's name and the parameter's.
"""

from __future__ import annotations

from typing import Any

from buzz.policies.numbers import finite, integer, number, truth
from buzz.words import hint, shown


def integer_within(where: str, given: Any, low: int, high: int) -> int:
    """An integer of a range. Raises TypeError: it is none. ValueError: it lies outside."""
    value = integer(given)
    if value is None:
        raise TypeError(f"{where} must be an integer, got {shown(given)}")
    _within(where, value, low, high)
    return value


def number_within(where: str, given: Any, low: float, high: float) -> float:
    """A number of a range. Raises TypeError: it is none. ValueError: it lies outside, or is not a number by name."""
    value = number(given)
    if value is None:
        raise TypeError(f"{where} must be a number, got {shown(given)}")
    _within(where, value, low, high)
    return float(value)


def base_of_logs(where: str, given: Any) -> int | float:
    """A finite number above 1. Raises TypeError: no number. ValueError: another one."""
    value = number(given)
    if value is None:
        raise TypeError(f"{where} must be a number, got {shown(given)}")
    if not value > 1:
        raise ValueError(f"{where} must be above 1, got {shown(value)}")
    if not finite(value):
        raise ValueError(f"{where} must be finite, got {shown(value)}")
    return value


def flag(where: str, given: Any) -> bool:
    """A bool. Raises TypeError: it is none."""
    value = truth(given)
    if value is None:
        raise TypeError(f"{where} must be True or False, got {shown(given)}")
    return value


def choice(where: str, given: Any, words: tuple[str, ...]) -> str:
    """One of some words. Raises TypeError: no word. ValueError: another one (names the nearest)."""
    if isinstance(given, str) and given in words:
        return given
    guess = hint(given, words) if isinstance(given, str) else ""
    wrong = ValueError if isinstance(given, str) else TypeError
    raise wrong(f"{where} must be one of {', '.join(words)}, got {shown(given)}{guess}")


def _within(where: str, value: int | float, low: float, high: float) -> None:
    if not value >= low:
        raise ValueError(f"{where} must be at least {low:g}, got {shown(value)}")
    if value > high:
        raise ValueError(f"{where} must be at most {high}, got {shown(value)}")
