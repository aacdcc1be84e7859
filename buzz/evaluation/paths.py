"""Paths that users name: what cannot be one is a ConfigError, never a traceback of the file system's."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from buzz.evaluation.errors import ConfigError


def unspeakable(text: str) -> str | None:
    """Why text can neither be written to a UTF-8 file nor name one; None: it can."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return None


def user_path(text: str | Path, where: str, wanted: str = "a path is wanted") -> Path:
    """A path as a user wrote it, with `~` expanded. What it names need not exist.

    Args:
        where: the config key or argument it came from, for the error.
        wanted: what may stand there instead, for the error.

    Raises:
        ConfigError: no path: not UTF-8, a NUL in it, the home of nobody, a name that is too long or goes in circles, or
            a folder on the way that may not be entered.
    """
    if not str(text):
        raise ConfigError(where, "is empty", wanted)
    if problem := unspeakable(str(text)):
        raise ConfigError(where, f"{short(text)} {problem}", wanted)
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError as error:
        raise ConfigError(where, f"{short(text)} is in the home of an unknown user", wanted) from error
    except OSError as error:
        raise ConfigError(where, f"{short(text)} cannot be read ({error.strerror or error})", wanted) from error
    return path


def read_regular(path: Path) -> bytes:
    """A file's content. A pipe or a device may never end, so it is an OSError like any other that cannot be read."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "is no regular file")
    return path.read_bytes()


def short(text: object) -> str:
    """Text for a message: quoted where it would not print as it is, and cut where it is long."""
    shown = str(text)
    shown = shown if shown.isprintable() else repr(shown)
    return shown if len(shown) <= 200 else f"{shown[:120]}...{shown[-60:]}"
