"""What every generator gives, and how long a text is without a tokenizer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

# What RULER repeats where a haystack shall say nothing.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_|\n")
_NUMBER = re.compile(r"(?<!\S)\d")
_LONG = 10  # letters


@dataclass(frozen=True)
class Asked:
    """One sample.

    Args:
        opening: what stands before the context, up to its first letter: the task, and an example where RULER has one.
        context: the long text.
        question: about it.
        prefix: what the answer begins with, without a blank around it; RULER's answer prefix.
        references: what the answer must hold.
        answer: the whole of a right one, behind the prefix.
    """

    opening: str
    context: str
    question: str
    prefix: str
    references: list[str]
    answer: str


def tokens_about(text: str) -> int:
    """About how many tokens a text has, by a rule that is no tokenizer's: the same for every model and machine.

    A run of letters is one, of more than ten letters two; every digit, mark and line feed is one, and one more before
    a number. Blanks do not count, so the figure of a text is the sum of those of its words and line feeds.
    """
    return sum(2 if len(piece) > _LONG else 1 for piece in _PIECES.findall(text)) + len(_NUMBER.findall(text))


def different(chance: random.Random, draw: Callable[[random.Random], str], taken: set[str]) -> str:
    """A drawn text that is not among those taken, which it joins."""
    while (drawn := draw(chance)) in taken:
        pass
    taken.add(drawn)
    return drawn
