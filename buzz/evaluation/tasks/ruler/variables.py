"""Variable tracking: a chain of assignments hidden in noise, of which all names with one value are asked for."""

from __future__ import annotations

import random
from string import ascii_uppercase

from buzz.evaluation.tasks.filler import insert
from buzz.evaluation.tasks.ruler.texts import NOISE, Asked, different, tokens_about

LEAST = 640  # about so many tokens are needed for the example and a chain in some noise
HOPS = 4  # a chain has one name more

_OPENING = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_QUESTION = "Question: Find all variables that are assigned the value {} in the text above."
_PREFIX = (
    "Answer: According to the chain(s) of variable assignment in the text above, {} variables are assigned the value "
    "{}, they are:"
)
_EXAMPLE_LINES = 10
_EXAMPLE_LETTERS, _LETTERS = 3, 5  # of a name


def track(length: int, chance: random.Random) -> Asked:
    """A chain in noise, after a solved example with shorter names.

    Args:
        length: about so many tokens of prompt and prefix, at least `LEAST`; never more, by `tokens_about`.
    """
    taken: set[str] = set()
    example = _chain(_EXAMPLE_LETTERS, _EXAMPLE_LINES, chance, taken)
    solved = f"{_OPENING}{example.context}\n{example.question} {example.prefix} {example.answer}\n\n"
    bare = _chain(_LETTERS, 0, chance, taken)  # as long as any other
    room = length - sum(map(tokens_about, [solved, _OPENING, bare.context, "\n", bare.question, bare.prefix]))
    own = _chain(_LETTERS, room // tokens_about(f"{NOISE}\n"), chance, taken)
    return Asked(solved + _OPENING, own.context, own.question, own.prefix, own.references, own.answer)


def _chain(letters: int, lines: int, chance: random.Random, taken: set[str]) -> Asked:
    """A chain whose assignments stand, in their order, on lines of their own anywhere between so many lines of noise.

    Names and values are not among those taken, which they join.
    """
    names = [different(chance, lambda drawn: _name(letters, drawn), taken) for _ in range(HOPS + 1)]
    value = different(chance, lambda drawn: str(drawn.randrange(10**4, 10**5)), taken)
    sources = [value, *(f"VAR {name}" for name in names[:-1])]
    assigned = [f"VAR {name} = {source}" for name, source in zip(names, sources, strict=True)]
    text = [NOISE] * lines
    slots = sorted(chance.randrange(lines + 1) for _ in names)
    insert(text, list(zip(slots, assigned, strict=True)))
    return Asked(
        "", "\n".join(text), _QUESTION.format(value), _PREFIX.format(len(names), value), names, " ".join(names)
    )


def _name(letters: int, chance: random.Random) -> str:
    return "".join(chance.choice(ascii_uppercase) for _ in range(letters))
