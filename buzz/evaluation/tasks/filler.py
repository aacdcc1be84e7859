"""Text of no consequence, to hide a needle in: made from templates, or taken from a text file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import resolve_path
from buzz.evaluation.tasks.data import read_text

_TIMES = (
    "Early in the morning",
    "Just before noon",
    "On the first day of spring",
    "After a long rain",
    "Towards evening",
    "When the market closed",
    "During the quiet weeks of winter",
    "A little later",
)
_PEOPLE = (
    "the baker",
    "an old sailor",
    "the schoolteacher",
    "a young clockmaker",
    "the ferryman",
    "her neighbour",
    "the postmistress",
    "a travelling musician",
    "the gardener",
    "one of the carpenters",
)
_DEEDS = (
    "carried a basket of apples",
    "mended a torn sail",
    "wrote a short letter",
    "swept the narrow stairs",
    "looked for a lost umbrella",
    "counted the swallows",
    "painted the window frames",
    "told a story about a bear",
    "waited for the evening train",
    "shared some bread and cheese",
    "tuned an old violin",
    "watched the clouds drift by",
)
_PLACES = (
    "by the harbour",
    "behind the library",
    "near the stone bridge",
    "at the edge of the forest",
    "under the chestnut trees",
    "across the square",
    "on the road to the mill",
    "beside the empty fountain",
)
_ENDS = (
    "",
    ", and nobody took much notice",
    ", although the wind was cold",
    " while the bells were ringing",
    ", as on every other day",
    " until the lamps were lit",
    ", and two dogs followed at a distance",
)


def invented(chance: random.Random) -> Iterator[str]:
    """Endless simple sentences without a digit, about 20 words each and seldom the same one twice."""
    while True:
        time, person, deed, place, end = (chance.choice(part) for part in (_TIMES, _PEOPLE, _DEEDS, _PLACES, _ENDS))
        yield f"{time} {person} {deed} {place}{end}."


def given_sentences(data: str | None, words: int) -> list[str] | None:
    """Sentences of the text file `task.data`, which must hold so many words; None: text is to be invented.

    Raises:
        ConfigError: no such file, or one that is too short.
    """
    return None if data is None else sentences_of(resolve_path(data, "task.data"), words, "task.data")


def sentences_of(path: Path, least: int, where: str) -> list[str]:
    """The sentences of a text file, on one line each.

    Raises:
        ConfigError: the file cannot be read, or holds fewer than `least` words.
    """
    text = " ".join(read_text(path, where).split())
    words = text.count(" ") + 1
    if words < least:
        raise ConfigError(where, f"{path} holds {words} words", f"a text of at least {least} words is wanted")
    return re.split(r"(?<=[.!?])\s+", text)


def passage(sentences: list[str], chance: random.Random) -> Iterator[str]:
    """The sentences from a random one on, and round again from the first."""
    start = chance.randrange(len(sentences))
    while True:
        yield sentences[start]
        start = (start + 1) % len(sentences)


def fill(sentences: Iterator[str], room: int, size: Callable[[str], int] = lambda word: 1) -> list[str]:
    """Sentences of as many words as there is room for; the last one is cut short if need be.

    Args:
        size: of a word; by default words are counted.
    """
    taken: list[str] = []
    while True:
        fitting: list[str] = []
        for word in (words := next(sentences).split()):
            room -= size(word)
            if room < 0:
                break
            fitting.append(word)
        if fitting:
            taken.append(" ".join(fitting))
        if len(fitting) < len(words) or room == 0:
            return taken


def insert(sentences: list[str], added: Sequence[tuple[int, str]]) -> None:
    """Put sentences between others, in place.

    Args:
        added: pairs of a slot and what goes there, slots ascending and counted before anything is added; of several at
            one slot the first comes first.
    """
    for slot, sentence in reversed(added):  # from the back, so that none moves the slots before it
        sentences.insert(slot, sentence)
