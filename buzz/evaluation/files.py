"""Writing files such that a full disk, or any other, costs nothing that is already there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from buzz.evaluation.errors import WriteError

_ODD = "backslashreplace"  # a byte of a path that is not UTF-8 becomes \\udcff, which in JSON is right as well


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Inside the block a file or folder is written; what the system refuses becomes a WriteError that names it."""
    try:
        yield
    except OSError as error:
        raise WriteError(str(path), error.strerror or str(error) or type(error).__name__) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        WriteError: it cannot be written; the old one is still there.
    """
    with writing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8", errors=_ODD) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp lets nobody else read
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def append(path: Path, text: str) -> None:
    """Add whole lines to a file; they are on the disk when this returns.

    Raises:
        WriteError: they cannot be written; the file is as it was, or ends in a line that is cut off.
    """
    with writing(path), open(path, "ab", buffering=0) as file:
        data, before = memoryview(text.encode("utf-8", _ODD)), os.fstat(file.fileno()).st_size
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise
