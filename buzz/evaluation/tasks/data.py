"""Reading data: local .jsonl and .txt files (plain or gzip), files inside packages, and data from the hub.

Whatever is wrong with a file or a row is a ConfigError of one line that names the file and the row.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import short, user_path
from buzz.evaluation.tasks.fields import Fields, Maybe, Problem, Row, checked_rows
from buzz.evaluation.tasks.hub import FileSource, HubSource, fetch, guarded, hub_errors, stream

PACKAGE_PREFIX = "package:"


# --- files -----------------------------------------------------------------------------------------------------------


def resolve_path(spec: str | Path, where: str) -> Path:
    """The existing file that a config value names.

    Args:
        spec: a path (`~` is expanded, relative to the working directory), or `package:PKG/path/inside` for a file
            inside an installed package, which is found without importing the package.
        where: the config key the value came from, for the error.

    Raises:
        ConfigError: no such package or file, or a folder.
    """
    text = str(spec)
    wanted = f"a file or {PACKAGE_PREFIX}PKG/path/inside is wanted"
    path = user_path(_package_file(text, where) if text.startswith(PACKAGE_PREFIX) else text, where, wanted)
    if path.is_dir():
        raise ConfigError(where, f"{short(path)} is a folder", wanted)
    if not path.exists():
        seen_from = "" if path.is_absolute() else f" (seen from {short(Path.cwd())})"
        raise ConfigError(where, f"{short(path)} does not exist{seen_from}", wanted)
    if not path.is_file():  # a pipe or a device is read once or never ends
        raise ConfigError(where, f"{short(path)} is no regular file", wanted)
    return path


def _package_file(spec: str, where: str) -> Path:
    package, _, inside = spec.removeprefix(PACKAGE_PREFIX).partition("/")
    # A dotted name would make find_spec import the parent package, so only top-level packages are taken.
    if not package.isidentifier() or not inside:
        raise ConfigError(
            where, f"{short(spec)} names no file in a package", f"{PACKAGE_PREFIX}PKG/path/inside is wanted"
        )
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # __main__
        found = None
    folders = list(found.submodule_search_locations or []) if found else []
    if not folders:
        raise ConfigError(where, f"package {package!r} is not installed", "install it or give the path of a file")
    files = [user_path(Path(folder) / inside, where) for folder in folders]
    return next((file for file in files if file.exists()), files[0])


def fingerprint(path: str | Path) -> dict[str, Any]:
    """What identifies a file's content: `{"path": str, "bytes": int, "sha256": hex str}`."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"path": str(path), "bytes": file.tell(), "sha256": digest.hexdigest()}


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
) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.gz file, streamed: at most `limit` rows are read. Blank lines are skipped.

    Every row has an `id`: its own as text, or `row-<n>`, n being the row's line in the file, counted from 1.

    Args:
        path: the file, one JSON object a line, UTF-8.
        fields: what every row must have, name -> kind (see `buzz.evaluation.tasks.fields`).
        limit: rows to stop after; None: all.
        where: the config key that named the file, for errors.
        problem: a check beyond `fields`.

    Raises:
        ConfigError: another ending, unreadable, no row at all, a broken file or row, a missing, empty or mistyped
            field, an id that an earlier row has. Raised when the row is reached.
    """
    parsed = _parsed(_lines(path, (".jsonl", ".jsonl.gz"), where), str(path), limit, where)
    yield from checked_rows(parsed, str(path), fields, where, problem)


def read_hub_rows(
    source: HubSource | FileSource,
    split: str,
    fields: Fields,
    limit: int | None = None,
    where: str = "task.data",
    problem: Problem | None = None,
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
        numbered = _parsed(_numbered(file, label, where), label, limit, where)
    else:
        with hub_errors(label, allowed, where):
            rows = stream(source, split)
        numbered = enumerate(islice(guarded(rows, label, allowed, where), limit), 1)
    yield from checked_rows(numbered, label, fields, where, problem)


def _lines(path: str | Path, endings: tuple[str, ...], where: str) -> Iterator[tuple[int, bytes]]:
    """Numbered raw lines of a plain or gzip file, from 1."""
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


def _parsed(lines: Iterator[tuple[int, bytes]], name: str, limit: int | None, where: str) -> Iterator[tuple[int, Any]]:
    """Numbered JSON values of the lines that are not blank."""
    filled = ((number, raw) for number, raw in lines if raw.strip())
    return ((number, _parse(raw, f"{name} row {number}", where)) for number, raw in islice(filled, limit))


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


__all__ = [
    "PACKAGE_PREFIX",
    "FileSource",
    "HubSource",
    "Maybe",
    "Row",
    "fingerprint",
    "read_hub_rows",
    "read_rows",
    "read_text",
    "resolve_path",
]
