"""A GGUF file that comes in pieces: they are joined once, and the whole file stays in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models.gguf import MAGIC, read_alignment, read_tensors
from buzz.evaluation.paths import short, user_path

_WANTED = "the pieces of one GGUF file in their order are wanted"
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)  # up to the last number, that number, what follows
_BLOCK = 1 << 20
_LOOKED_AT = 256  # values of a tensor
_LARGEST = 1e9  # of any weight that is stored in float32


def join_pieces(pieces: Sequence[Path], name: str) -> tuple[Path, str]:
    """The one file that pieces make, put one after the other.

    It is `buzz/gguf/HASH/NAME.gguf` in `$XDG_CACHE_HOME` (default `~/.cache`). A file there is whole: it appears
    under its name when it is finished and was looked through, whoever else does the same at that time.

    Args:
        name: of the model.

    Returns:
        The file, and the SHA-256 of its bytes, as hex: the same as if it had never been cut.

    Raises:
        ConfigError: a piece that cannot be read, stands in the wrong place or is of another file, as far as names and
            contents tell; or the file cannot be written.
    """
    _check_names(pieces)
    sizes, digest = _read(pieces)
    folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME", "a folder is wanted")
    path = folder.absolute() / "buzz" / "gguf" / digest[:32] / f"{name}.gguf"
    if not (path.is_file() and path.stat().st_size == sum(sizes)):
        _write(path, pieces, sizes, digest)
    return path, digest


def _check_names(pieces: Sequence[Path]) -> None:
    """Names that differ in a number alone have to count up."""
    for index in range(1, len(pieces)):
        here, before = (_NUMBERED.fullmatch(pieces[i].name) for i in (index, index - 1))
        if here is None or before is None or here.group(1, 3) != before.group(1, 3):
            continue
        if int(here[2]) != int(before[2]) + 1:
            raise _misplaced(pieces, index, f"follows {short(pieces[index - 1].name)}")


def _read(pieces: Sequence[Path]) -> tuple[list[int], str]:
    """Sizes of the pieces, and the SHA-256 of all; only the first of them may begin a GGUF file."""
    digest, sizes = hashlib.sha256(), []
    for index, piece in enumerate(pieces):
        size = 0
        for block in _blocks(piece, index):
            if size == 0 and block.startswith(MAGIC) != (index == 0):
                raise _misplaced(pieces, index, "does not begin a GGUF file" if index == 0 else "begins a GGUF file")
            digest.update(block)
            size += len(block)
        if size == 0:
            raise _misplaced(pieces, index, "is empty")
        sizes.append(size)
    return sizes, digest.hexdigest()


def _blocks(piece: Path, index: int) -> Iterator[bytes]:
    try:
        with open(piece, "rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        what = f"{short(piece)} cannot be read ({error.strerror or error})"
        raise ConfigError(f"model.gguf[{index}]", what, "a readable file is wanted") from error


def _write(path: Path, pieces: Sequence[Path], sizes: Sequence[int], digest: str) -> None:
    """Join the pieces under another name, look through the result, and rename it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            written = hashlib.sha256()
            with open(descriptor, "wb") as file:
                for index, piece in enumerate(pieces):
                    for block in _blocks(piece, index):
                        file.write(block)
                        written.update(block)
                file.flush()
                os.fsync(file.fileno())
            if written.hexdigest() != digest:
                raise ConfigError("model.gguf", "its pieces changed while they were read", "files at rest are wanted")
            _look_through(Path(name), pieces, sizes)
            os.chmod(name, 0o644)  # mkstemp lets nobody else read
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        size = f"{sum(sizes) / 1e6:.0f} MB"
        what = f"its pieces make {short(path)}, which cannot be written ({error.strerror or error})"
        raise ConfigError("model.gguf", what, f"a folder with room for {size} is wanted as XDG_CACHE_HOME") from error


def _look_through(path: Path, pieces: Sequence[Path], sizes: Sequence[int]) -> None:
    """Whether the tensors of a joined file fill it, and hold numbers that weights can be."""
    ends = list(accumulate(sizes))
    try:
        tensors, alignment = read_tensors(path), read_alignment(path)
    except ValueError as error:
        raise _misplaced(pieces, 0, f"begins {error}") from error
    if not tensors:
        return
    end = max(tensor.end for tensor in tensors)
    if end > ends[-1]:
        raise _misplaced(pieces, len(pieces) - 1, f"ends {end - ends[-1]} bytes before the last tensor does")
    if end + alignment <= ends[-1]:
        raise _misplaced(pieces, bisect_right(ends, end), f"goes on for {ends[-1] - end} bytes after the last tensor")
    for tensor in tensors:
        if tensor.kind == "F32":
            count = min(_LOOKED_AT, (tensor.end - tensor.start) // 4)
            values = np.fromfile(path, "<f4", count, offset=tensor.start)
            if not (np.abs(values) < _LARGEST).all():
                index = min(bisect_right(ends, tensor.start), len(pieces) - 1)
                raise _misplaced(pieces, index, f"has no weights where {short(tensor.name)} should be")


def _misplaced(pieces: Sequence[Path], index: int, what: str) -> ConfigError:
    return ConfigError(f"model.gguf[{index}]", f"{short(pieces[index])} {what}", _WANTED)
