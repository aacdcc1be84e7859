"""Needles in a haystack: magic numbers or uuids of some keys, hidden in a text, and asked for by key."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

from buzz.evaluation.tasks.filler import fill, insert, invented, passage
from buzz.evaluation.tasks.ruler.texts import NOISE, Asked, different, tokens_about
from buzz.evaluation.tasks.ruler.words import ADJECTIVES, NOUNS

LEAST = 384  # about so many tokens are needed for the needles, a little haystack and the question

_NEEDLE = "One of the special magic {}s for {} is: {}."
_ONE = (
    "A special magic {0} is hidden within the following text. Make sure to memorize it. I will quiz you about the {0} "
    "afterwards.\n",
    "What is the special magic {} for {} mentioned in the provided text?",
    "The special magic {} for {} mentioned in the provided text is",
)
_SEVERAL = (
    "Some special magic {0}s are hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{0}s afterwards.\n",
    "What are all the special magic {}s for {} mentioned in the provided text?",
    "The special magic {}s for {} mentioned in the provided text are",
)


@dataclass(frozen=True)
class Kind:
    """One of RULER's tasks with needles.

    Args:
        haystack: the repeated noise, prose, or nothing but other needles.
        key: of a needle: a pair of words, or a uuid.
        value: a number of seven digits, or a uuid.
        keys: hidden, of which `asked` are asked for; the others distract.
        values: of each key.
    """

    haystack: Literal["noise", "essay", "needles"]
    key: Literal["words", "uuid"] = "words"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values: int = 1
    asked: int = 1

    @property
    def single(self) -> bool:
        """Whether one needle is asked for, which then has a depth."""
        return self.asked * self.values == 1


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "niah_single_1": Kind("noise"),
        "niah_single_2": Kind("essay"),
        "niah_single_3": Kind("essay", value="uuid"),
        "niah_multikey_1": Kind("essay", keys=4),
        "niah_multikey_2": Kind("needles"),
        "niah_multikey_3": Kind("needles", key="uuid", value="uuid"),
        "niah_multivalue": Kind("essay", values=4),
        "niah_multiquery": Kind("essay", keys=4, asked=4),
    }
)


def _words(chance: random.Random) -> str:
    return f"{chance.choice(ADJECTIVES)}-{chance.choice(NOUNS)}"


def _number(chance: random.Random) -> str:
    return str(chance.randrange(10**6, 10**7))


def _uuid(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


_DRAWS: Mapping[str, Callable[[random.Random], str]] = {"words": _words, "number": _number, "uuid": _uuid}


def hide(
    kind: Kind, length: int, depth: float | None, chance: random.Random, sentences: list[str] | None = None
) -> Asked:
    """A haystack with its needles.

    No key or value occurs twice, and no value in the prose.

    Args:
        length: about so many tokens of prompt and prefix, at least `LEAST`; never more, by `tokens_about`.
        depth: where the needle that is asked for stands, as a share of the haystack's sentences, or lines; the others
            stand anywhere. None: all stand anywhere.
        sentences: of a text to take prose from; None: it is invented.
    """
    taken: set[str] = set()
    key = partial(different, chance, _DRAWS[kind.key], taken)
    value = partial(different, chance, _DRAWS[kind.value], taken)
    pairs = [(name, value()) for name in [key() for _ in range(kind.keys)] for _ in range(kind.values)]
    needles = [_NEEDLE.format(kind.value, *pair) for pair in pairs]
    asked = list(dict.fromkeys(name for name, _ in pairs))[: kind.asked]
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    opening, question, prefix = (text.format(kind.value, query) for text in (_ONE if kind.single else _SEVERAL))

    room = length - sum(map(tokens_about, [opening, question, prefix, *needles])) - len(needles) - 1
    if kind.haystack == "noise":
        hay = [NOISE] * (room // tokens_about(f"{NOISE}\n"))
    elif kind.haystack == "needles":
        hay = _lines(lambda: _NEEDLE.format(kind.value, key(), value()), room)
    else:
        hay = fill(passage(sentences, chance) if sentences else invented(chance), room, tokens_about)
    if any(hidden in sentence for sentence in hay for _, hidden in pairs):
        return hide(kind, length, depth, chance, sentences)  # the text holds one of the values: others are drawn

    slots = [chance.randrange(len(hay) + 1) for _ in needles]
    if depth is not None:
        slots[0] = round(depth * len(hay))
    order = sorted(range(len(needles)), key=lambda place: slots[place])
    insert(hay, [(slots[place], needles[place]) for place in order])
    # The values of one key are told in the order of the text, those of several keys in the order of the question.
    told = range(len(pairs)) if kind.values == 1 else order
    references = [pairs[place][1] for place in told if pairs[place][0] in asked]
    context = (" " if kind.haystack == "essay" else "\n").join(hay)
    return Asked(opening, context, question, prefix, references, ", ".join(references))


def _lines(draw: Callable[[], str], room: int) -> list[str]:
    """As many drawn lines as there is room for."""
    lines: list[str] = []
    while (room := room - tokens_about(f"{(line := draw())}\n")) >= 0:
        lines.append(line)
    return lines
