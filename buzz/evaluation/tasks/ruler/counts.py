"""Words that are to be counted: the most common ones of a list, and the most frequent ones of a coded text."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from string import ascii_lowercase

from buzz.evaluation.tasks.ruler.texts import Asked, different, tokens_about
from buzz.evaluation.tasks.ruler.words import WORDS

# --- common words ----------------------------------------------------------------------------------------------------

LEAST_COMMON = 768  # about so many tokens are needed for the example and the common words
LONG = 4096  # from this length on a list repeats its words more often

_COMMON = 10
_LIST_OPENING = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
_LIST_QUESTION = "Question: What are the 10 most common words in the above list?"
_LIST_PREFIX = "Answer: The top 10 words that appear most often in the list are:"


def common_words(length: int, chance: random.Random) -> Asked:
    """A numbered list in which ten words are more common than the others, after a solved shorter one.

    Each common word occurs 6 times and each other once; from `LONG` tokens on 30 times and 3 times. If all words that
    there are do not fill the list, each occurs twice as often, three times as often, and so on.

    Args:
        length: about so many tokens of prompt and prefix, at least `LEAST_COMMON`; never more, by `tokens_about`.
    """
    (shown, often, seldom), times = ((20, 3, 1), (6, 1)) if length < LONG else ((40, 10, 3), (30, 3))
    words = chance.sample(WORDS, shown)
    numbered = _shuffled(words, often, seldom, chance)
    solved = f"{_LIST_OPENING}{_numbered(numbered)}\n{_LIST_QUESTION} {_LIST_PREFIX} {_numbered(words[:_COMMON])}\n"
    room = length - sum(map(tokens_about, [solved, _LIST_OPENING, "\n", _LIST_QUESTION, _LIST_PREFIX]))
    words = chance.sample(WORDS, len(WORDS))
    often, seldom = times
    while (count := _fitting(words, often, seldom, room)) == len(words):
        often, seldom = often + times[0], seldom + times[1]
    drawn = _shuffled(words[:count], often, seldom, chance)
    common = sorted(words[:_COMMON], key=drawn.index)
    opening = solved + _LIST_OPENING
    return Asked(opening, _numbered(drawn), _LIST_QUESTION, _LIST_PREFIX, common, _numbered(common))


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _shuffled(words: list[str], often: int, seldom: int, chance: random.Random) -> list[str]:
    """The first ten words so often each, and the others so seldom."""
    drawn = [*words[:_COMMON] * often, *words[_COMMON:] * seldom]
    chance.shuffle(drawn)
    return drawn


def _fitting(words: Sequence[str], often: int, seldom: int, room: int) -> int:
    """How many of the words a list has room for."""
    size = number = 0
    for place, word in enumerate(words):
        for _ in range(often if place < _COMMON else seldom):
            number += 1
            size += tokens_about(f"{number}. {word}")
        if size > room:
            return place
    return len(words)


# --- frequent words --------------------------------------------------------------------------------------------------

LEAST_FREQUENT = 256  # about so many tokens are needed for the first three words to stand out

_ASKED = 3
_DOTS = "..."  # the most frequent word of all, which is to be ignored
_LETTERS = 6
_CODED = 4  # about so many tokens are six letters without sense
_PER_WORD = 50  # one word of the vocabulary for so many tokens
_CODED_OPENING = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
_CODED_QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
_CODED_PREFIX = "Answer: According to the coded text above, the three most frequently appeared words are:"


def frequent_words(length: int, chance: random.Random) -> Asked:
    """A text of coded words, the k-th of which makes 1 / k^2 / zeta(2) of it. The first is three dots.

    Args:
        length: about so many tokens of prompt and prefix, at least `LEAST_FREQUENT`, a coded word counted as four.
    """
    taken: set[str] = set()
    words = [_DOTS, *(different(chance, _coded, taken) for _ in range(length // _PER_WORD - 1))]
    room = length - sum(map(tokens_about, [_CODED_OPENING, "\n", _CODED_QUESTION, _CODED_PREFIX]))
    total = 0
    while _coded_size(_shares(total + 1, len(words))) <= room:
        total += 1
    text = [word for word, count in zip(words, _shares(total, len(words)), strict=True) for _ in range(count)]
    chance.shuffle(text)
    asked = words[1 : 1 + _ASKED]
    return Asked(_CODED_OPENING, " ".join(text), _CODED_QUESTION, _CODED_PREFIX, asked, ", ".join(asked))


def _coded(chance: random.Random) -> str:
    return "".join(chance.choice(ascii_lowercase) for _ in range(_LETTERS))


def _shares(total: int, words: int) -> list[int]:
    """How often each word occurs in a text of about so many, by Zipf's law with the exponent 2."""
    zeta = math.pi**2 / 6
    return [int(total / rank**2 / zeta) for rank in range(1, words + 1)]


def _coded_size(counts: Sequence[int]) -> int:
    return counts[0] + _CODED * sum(counts[1:])
