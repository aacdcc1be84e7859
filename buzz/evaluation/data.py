"""Reading data: local .jsonl and .txt files (plain or gzip), files inside packages, and data sets of the hub.

Whatever is wrong with a file or a row is a ConfigError of one line that names the file and the row.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from buzz.evaluation.errors import ConfigError

Row = dict[str, Any]

PACKAGE_PREFIX = "package:"
HUB_TIMEOUT = 10.0  # seconds
_WORDS = {str: "non-empty text", list: "a non-empty list", dict: "a non-empty mapping", int: "an integer"}


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub. `name`: its configuration; `revision`: a branch, tag, ref or commit."""

    path: str
    name: str | None = None
    revision: str | None = None


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
    path = _package_file(text, where) if text.startswith(PACKAGE_PREFIX) else Path(text).expanduser()
    wanted = f"a file or {PACKAGE_PREFIX}PKG/path/inside is wanted"
    if path.is_dir():
        raise ConfigError(where, f"{path} is a folder", wanted)
    if not path.exists():
        seen_from = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
        raise ConfigError(where, f"{path} does not exist{seen_from}", wanted)
    return path


def _package_file(spec: str, where: str) -> Path:
    package, _, inside = spec.removeprefix(PACKAGE_PREFIX).partition("/")
    # A dotted name would make find_spec import the parent package, so only top-level packages are taken.
    if not package.isidentifier() or not inside:
        raise ConfigError(where, f"{spec!r} names no file in a package", f"{PACKAGE_PREFIX}PKG/path/inside is wanted")
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    if not folders:
        raise ConfigError(where, f"package {package!r} is not installed", "install it or give the path of a file")
    files = [Path(folder) / inside for folder in folders]
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
    path: str | Path, fields: Mapping[str, type], limit: int | None = None, where: str = "task.data"
) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.gz file, streamed: at most `limit` rows are read. Blank lines are skipped.

    Every row has an `id`: its own as text, or `row-<n>`, n being the row's line in the file, counted from 1.

    Args:
        path: the file, one JSON object a line, UTF-8.
        fields: what every row must have, name -> type. A str, list or dict must not be empty.
        limit: rows to stop after; None: all.
        where: the config key that named the file, for errors.

    Raises:
        ConfigError: another ending, unreadable, no row at all, a broken file or row, a missing, empty or mistyped
            field, an id that an earlier row has. Raised when the row is reached.
    """
    numbered = ((n, raw) for n, raw in _lines(path, (".jsonl", ".jsonl.gz"), where) if raw.strip())
    parsed = ((n, _parse(raw, f"{path} row {n}", where)) for n, raw in islice(numbered, limit))
    yield from _checked(parsed, str(path), fields, where)


def _lines(path: str | Path, endings: tuple[str, ...], where: str) -> Iterator[tuple[int, bytes]]:
    """Numbered raw lines of a plain or gzip file, from 1."""
    name = str(path)
    if not name.endswith(endings):
        raise ConfigError(where, f"{name} is no file this task reads", f"{' or '.join(endings)} is wanted")
    number = 0
    try:
        with cast(IO[bytes], gzip.open(name, "rb") if name.endswith(".gz") else open(name, "rb")) as file:
            for number, raw in enumerate(file, 1):
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw  # a byte order mark is no text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"{name} row {number + 1}: the gzip data is cut off or broken ({error})"
        raise ConfigError(where, what, "a whole .gz file is wanted") from error
    except OSError as error:
        what = f"{name} cannot be read ({error.strerror or error})"
        raise ConfigError(where, what, "a readable file is wanted") from error


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


# --- rows ------------------------------------------------------------------------------------------------------------


def _checked(rows: Iterable[tuple[int, Any]], source: str, fields: Mapping[str, type], where: str) -> Iterator[Row]:
    """Numbered rows -> rows with a unique id and all fields; at least one."""
    seen: dict[str, int] = {}
    for number, row in rows:
        place = f"{source} row {number}"
        if not isinstance(row, dict):
            raise ConfigError(where, f"{place}: is a {type(row).__name__}", "one JSON object a line is wanted")
        for field, kind in fields.items():
            _check_field(row, field, kind, place, where)
        name = _row_id(row, number, place, where)
        if name in seen:
            raise ConfigError(where, f"{place}: id {name!r} is also the id of row {seen[name]}", "ids must be unique")
        seen[name] = number
        yield {**row, "id": name}
    if not seen:
        raise ConfigError(where, f"{source} is empty", "at least one row is wanted")


def _check_field(row: Row, field: str, kind: type, place: str, where: str) -> None:
    wanted = f"{_WORDS.get(kind, kind.__name__)} is wanted"
    if field not in row:
        has = ", ".join(map(str, row)) or "none"
        raise ConfigError(where, f"{place}: has no field {field!r}", f"{wanted} there (the row's fields: {has})")
    value = row[field]
    if type(value) is not kind:  # exact: a bool is no int
        raise ConfigError(where, f"{place}: field {field!r} is of type {type(value).__name__}", wanted)
    if kind in (str, list, dict) and not (value.strip() if isinstance(value, str) else value):
        raise ConfigError(where, f"{place}: field {field!r} is empty", wanted)
    if isinstance(value, str) and not _encodable(value):
        what = f"{place}: field {field!r} holds half a surrogate pair, which no tokenizer can read"
        raise ConfigError(where, what, "valid Unicode is wanted")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _row_id(row: Row, number: int, place: str, where: str) -> str:
    value = row.get("id")
    if value is None:
        return f"row-{number}"
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ConfigError(where, f"{place}: id {value!r} is no id", "non-empty text or an integer is wanted")
    _check_field({"id": str(value)}, "id", str, place, where)
    return str(value)


# --- the hub ---------------------------------------------------------------------------------------------------------


def read_hub_rows(
    source: HubSource, split: str, fields: Mapping[str, type], limit: int | None = None, where: str = "task.data"
) -> Iterator[Row]:
    """Rows of a hub data set, like `read_rows`; n counts the split's rows from 1.

    Rows are streamed, so that the first 200 of a split do not cost the download of all splits. In the hub's offline
    mode (HF_HUB_OFFLINE=1) the local cache of `datasets` is read instead.

    Raises:
        ConfigError: the hub, the data set or the split cannot be had (says that `where` takes a local file), or a
            row that `read_rows` would refuse.
    """
    label = f"{source.path} ({split})"
    allowed = f"{where} takes a local .jsonl or .jsonl.gz file"
    with _hub_errors(label, allowed, where):
        import datasets  # here, because it takes seconds and local files do without

        offline = bool(datasets.config.HF_HUB_OFFLINE)
        if not offline:
            _probe(source)
        rows = datasets.load_dataset(
            source.path, source.name, split=split, revision=source.revision, streaming=not offline
        )
    numbered = enumerate(islice(_guarded(rows, label, allowed, where), limit), 1)
    yield from _checked(numbered, label, fields, where)


def _probe(source: HubSource) -> None:
    """Fail at once where the hub cannot be reached: `load_dataset` would retry for the better part of a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(source.path, revision=source.revision, timeout=HUB_TIMEOUT)


@contextmanager
def _hub_errors(label: str, allowed: str, where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # httpx, huggingface_hub, datasets and pyarrow share no base class
        reason = str(error).strip().partition("\n")[0][:200]
        what = f"{label} cannot be loaded from the hub ({type(error).__name__}: {reason})"
        raise ConfigError(where, what, allowed) from error


def _guarded(rows: Iterable[Any], label: str, allowed: str, where: str) -> Iterator[Any]:
    with _hub_errors(label, allowed, where):
        iterator = iter(rows)
    while True:
        with _hub_errors(label, allowed, where):
            row = next(iterator, None)
        if row is None:
            return
        yield row
