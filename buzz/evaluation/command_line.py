"""What the command lines share: their config, their exit status, and usage errors and warnings of one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from buzz.evaluation.errors import ConfigError, WriteError
from buzz.evaluation.packaged import find_config, packaged_config
from buzz.evaluation.paths import short
from buzz.words import one_line

DISTRIBUTION = "buzz-kv"  # what pip calls this package


class Parser(argparse.ArgumentParser):
    """Raises a ConfigError where argparse would print its usage and exit; keeps the line breaks of its texts."""

    def __init__(self, description: str, epilog: str, prog: str | None = None) -> None:
        plain = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=plain)

    def error(self, message: str) -> NoReturn:
        raise ConfigError("usage", message, "see --help")


def add_config(parser: argparse.ArgumentParser, what: str) -> None:
    """Let a command line name its config, first or as --config, and overrides of single values."""
    parser.usage = "%(prog)s [-h] CONFIG [key.sub=value ...]"
    named = f"YAML file that describes the {what}, or the name of a packaged one (buzz configs)"
    parser.add_argument("words", nargs="*", metavar="CONFIG", help=named)
    parser.add_argument("--config", metavar="CONFIG", action="append", help="the same, anywhere on the line")
    parser.add_argument_group("overrides", "key.sub=value replaces one value of the config, as often as wanted")


def config_of(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The config's path and the overrides that a command line gives. A file wins over a packaged config of its name.

    Raises:
        ConfigError: no config, or two, or one that is neither a file nor packaged.
    """
    named = [word for word in options.words if _names_file(word)]
    files = [*(options.config or []), *named]
    if "" in [*files, *options.words]:
        raise ConfigError("usage", "the config's path is empty", "a YAML file is wanted; see --help")
    if not files:
        for word in options.words:
            if "=" not in word and os.path.exists(word):
                kind = "a folder" if os.path.isdir(word) else "no regular file"
                raise ConfigError("usage", f"{short(word)} is {kind}", "a YAML file is wanted; see --help")
            if "=" not in word:
                find_config(word)  # for its error
        raise ConfigError("usage", "no config is given", "a YAML file is wanted; see --help")
    if len(files) > 1:
        raise ConfigError("usage", f"two configs are given, {short(files[0])} and {short(files[1])}", "one is wanted")
    return find_config(files[0]), [word for word in options.words if word not in named]


def _names_file(word: str) -> bool:
    """Whether a word is a config's path or name and not `key=value`."""
    if "=" in word:
        return False
    return word.endswith((".yaml", ".yml")) or os.path.isfile(word) or packaged_config(word) is not None


def need_extra(extra: str, packages: Iterable[str]) -> None:
    """Refuse to begin what would stop later for want of packages that an extra of the distribution brings.

    Args:
        packages: as they are imported; those that everything works without, if less well, are none of these.

    Raises:
        ConfigError: some are not installed.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        what = f"not installed: {', '.join(missing)}"
        raise ConfigError("packages", what, f"`pip install '{DISTRIBUTION}[{extra}]'` brings what is needed")


def spin_briefly() -> None:
    """Let OpenMP's threads wait for each other in a short busy loop, unless the environment says otherwise.

    On a CPU that others use too, the usual loop is so long that a step takes up to 40 times as long. A short one costs
    nothing on an idle machine. Read once, when torch is loaded: call it before.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def say(text: str) -> None:
    """Print text to stdout, whatever characters that takes.

    Raises:
        WriteError: it cannot be written to. Where its reader has gone, as `| head` does, there is no error.
    """
    out = sys.stdout
    encoding = getattr(out, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=out, flush=True)
    except OSError as error:
        # What is left in its buffer would be tried, and fail, once more when the process ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if not isinstance(error, BrokenPipeError):
            raise WriteError("stdout", error.strerror or str(error)) from error


def tell(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


def status_of(run: Callable[[], int], tell: Callable[[str], None] = tell) -> int:
    """The exit status of a command: what it gives, 2 after a mistake of the user's, 1 if a file cannot be written.

    Either is one line, and so is a warning.
    """
    try:
        with short_warnings(tell):
            return run()
    except ConfigError as error:
        tell(f"error: {error}")
        return 2
    except WriteError as error:
        tell(f"error: {error}")
        return 1


@contextlib.contextmanager
def short_warnings(tell: Callable[[str], None] = tell) -> Iterator[None]:
    """Inside the block a warning is one line, and what libraries say about their own future is left out."""

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        tell(f"warning: {one_line(message)}")

    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
