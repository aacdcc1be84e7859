"""What the command lines share: usage errors and warnings of one line."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from buzz.evaluation.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises a ConfigError where argparse would print its usage and exit; keeps the line breaks of its texts."""

    def __init__(self, description: str, epilog: str) -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise ConfigError("usage", message, "see --help")


def tell(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


@contextlib.contextmanager
def short_warnings(tell: Callable[[str], None] = tell) -> Iterator[None]:
    """Inside the block a warning is one line, and what libraries say about their own future is left out."""

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        tell(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
