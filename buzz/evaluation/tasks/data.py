"""Reading data: local .jsonl and .txt files, gzip or not, and data from the hub.

Whatever is wrong with a file or a row is a ConfigError of one line that names the file and the row.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks.fields import Fields, Problem, Row, checked_rows
from buzz.evaluation.tasks.hub import FileSource, HubSource, fetch, guarded, hub_errors, stream

Keep = Callable[[str], bool]  # of a row's id


def read_text(path: str | Path, where: str = "task.data") -> str:
    """The whole text of a .txt or .txt.gz file (UTF-8).

    Raises:
        ConfigError: another ending, unreadable, broken gzip, bad UTF-8, or nothing but whitespace.
    """
    lines = [_decode(raw, f"{path} row {number}", where) for number, raw in _lines(path, (".txt", ".txt.gz"), where)]
    text = "".join(lines)
    if not text.strip():
        raise ConfigError(where, f"{path} is empty", "a file with text is wanted")
    return text


def read_rows(
    path: str | Path,
    fields: Fields,
    limit: int | None = None,
    where: str = "task.data",
    problem: Problem | None = None,
    keep: Keep | None = None,
) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.gz file, streamed: none after the last one wanted is read. Blank lines are skipped.

    Every row has an `id`: its own as text, or `row-<n>`, n being the row's line in the file, counted from 1.

    Args:
        path: the file, one JSON object a line, UTF-8.
        fields: what every row must have, name -> kind (see `buzz.evaluation.tasks.fields`).
        limit: rows to stop after; None: all.
        where: the config key that named the file, for errors.
        problem: a check beyond `fields`.
        keep: says of a row's id whether it is wanted; `limit` counts those that are. None: all are.

    Raises:
        ConfigError: another ending, unreadable, no row at all, a broken file or row, a missing, empty or mistyped
            field, an id that an earlier row has. Raised when the row is reached.
    """
    parsed = _parsed(_lines(path, (".jsonl", ".jsonl.gz"), where), str(path), where)
    yield from _wanted(checked_rows(parsed, str(path), fields, where, problem), limit, keep)


def read_hub_rows(
    source: HubSource | FileSource,
    split: str,
    fields: Fields,
    limit: int | None = None,
    where: str = "task.data",
    problem: Problem | None = None,
    keep: Keep | None = None,
) -> Iterator[Row]:
    """Rows of a hub data set or of a file on the network, like `read_rows`; n counts the rows from 1.

    Raises:
        ConfigError: the hub, the data set or the split cannot be had (says that `where` takes a local file), or a
            row that `read_rows` would refuse.
    """
    label, allowed = source.label(split), f"{where} takes a local .jsonl or .jsonl.gz file"
    if isinstance(source, FileSource):
        with hub_errors(label, allowed, where):
            file = _open(fetch(source), source.file.endswith(".gz"), source.member)
        numbered = _parsed(_numbered(file, label, where), label, where)
    else:
        with hub_errors(label, allowed, where):
            rows = stream(source, split)
        numbered = enumerate(guarded(rows, label, allowed, where), 1)
    yield from _wanted(checked_rows(numbered, label, fields, where, problem), limit, keep)


def _wanted(rows: Iterator[Row], limit: int | None, keep: Keep | None) -> Iterator[Row]:
    return islice((row for row in rows if keep is None or keep(row["id"])), limit)


def _lines(path: str | Path, endings: tuple[str, ...], where: str) -> Iterator[tuple[int, bytes]]:
    """Numbered raw lines of a file, gzip or not, from 1."""
    name = str(path)
    if not name.endswith(endings):
        raise ConfigError(where, f"{name} is no file this task reads", f"{' or '.join(endings)} is wanted")
    try:
        file = _open(name, name.endswith(".gz"))
    except OSError as error:
        raise _unreadable(name, error, where) from error
    yield from _numbered(file, name, where)


def _open(path: str, packed: bool, member: str | None = None) -> IO[bytes]:
    """A file's bytes; `packed`: it is gzip; `member`: the file of this name in the zip archive at `path`."""
    if member is not None:
        with zipfile.ZipFile(path) as archive:  # what is open inside outlives it
            return archive.open(member)
    return cast(IO[bytes], gzip.open(path, "rb") if packed else open(path, "rb"))


def _numbered(file: IO[bytes], name: str, where: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with file:
            for number, raw in enumerate(file, 1):
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw  # a byte order mark is no text
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        kind, ending = ("zip", ".zip") if isinstance(file, zipfile.ZipExtFile) else ("gzip", ".gz")
        what = f"{name} row {number + 1}: the {kind} data is cut off or broken ({error})"
        raise ConfigError(where, what, f"a whole {ending} file is wanted") from error
    except OSError as error:
        raise _unreadable(name, error, where) from error


def _unreadable(name: str, error: OSError, where: str) -> ConfigError:
    return ConfigError(where, f"{name} cannot be read ({error.strerror or error})", "a readable file is wanted")


def _parsed(lines: Iterator[tuple[int, bytes]], name: str, where: str) -> Iterator[tuple[int, Any]]:
    """Numbered JSON values of the lines that are not blank."""
    return ((number, _parse(raw, f"{name} row {number}", where)) for number, raw in lines if raw.strip())


def _decode(raw: bytes, place: str, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"{place}: byte {error.start + 1} is not UTF-8 (0x{raw[error.start]:02x})"
        raise ConfigError(where, what, "UTF-8 text is wanted") from error


def _parse(raw: bytes, place: str, where: str) -> Any:
    try:
        return json.loads(_decode(raw, place, where))
    except json.JSONDecodeError as error:
        # A cut line fails at its very end, a garbled one before.
        cut = " (is the line cut off?)" if error.pos >= len(error.doc.rstrip()) or "Unterminated" in error.msg else ""
        what = f"{place}: is not JSON: {error.msg} at character {error.pos + 1}{cut}"
        raise ConfigError(where, what, "one whole JSON object a line is wanted") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, absurd nesting
        what = f"{place}: is not JSON that can be read ({error})"
        raise ConfigError(where, what, "one JSON object a line is wanted") from error
