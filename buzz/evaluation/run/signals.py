"""SIGINT and SIGTERM end a run between two batches."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal ended a run between two batches; everything finished is in its folder."""

    def __init__(self, number: int, output: str) -> None:
        super().__init__(number, output)
        self.number, self.output = number, output


@contextlib.contextmanager
def held_back(launched: bool = False) -> Iterator[Callable[[], int | None]]:
    """Hold SIGINT and SIGTERM back inside the block; yields a function that returns the first that has come, or None.

    A second signal acts as it would without this. Outside of the main thread signals cannot be caught, and are not.

    Args:
        launched: a launcher stands between the user and this process. One Ctrl-C then comes twice, from the terminal
            and from the launcher, which in the end kills what does not stop; so a second signal is held back as well.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        came.append(number)
        if not launched:
            restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        restore()
