"""Words for error messages: the value that was given, in short, and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_SHOWN = 60  # characters of a value that a message shows
_TOLD = 200  # of another error's message


def shown(value: Any) -> str:
    """`repr(value)` on one line and not too long, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # what is shown is wrong anyway, and its own trouble must not hide that
        text = f"<{type(value).__name__}>"  # among others an integer of thousands of digits
    return one_line(text, _SHOWN)


def one_line(text: object, most: int | None = None) -> str:
    """Text, or an error's message, with every run of blanks and line breaks as one blank; cut to `most` characters."""
    line = " ".join(str(text).split())
    return line if most is None or len(line) <= most else line[: most - 3] + "..."


def told(error: BaseException) -> str:
    """What an error says, in short, for the message of another one."""
    return one_line(error, _TOLD)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a word is most like, whatever its capitals, dashes and underscores; None: it is like none."""
    names = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(word), names, n=1)
    return names[near[0]] if near else None


def hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'window'?)`, or nothing."""
    near = nearest(word, known)
    return "" if near is None else f" (did you mean {near!r}?)"


def _plain(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter not in "-_ .")
