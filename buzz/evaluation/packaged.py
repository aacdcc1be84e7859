"""The configs that come with buzz, and how a command line names one: `quickstart`, `comb/headline`."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

import buzz
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import short


def configs_folder() -> Path:
    """Where they are: inside an installed package, at the top of a checkout."""
    package = Path(buzz.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def packaged_configs() -> dict[str, Path]:
    """name -> file; a name is the file's path in the folder, without its ending. Sorted, those of subfolders last."""
    folder = configs_folder()
    files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("*.yaml")}
    return dict(sorted(files.items(), key=lambda item: (item[0].count("/"), item[0])))


def packaged_config(word: str) -> Path | None:
    """The packaged config of a name, which may have its ending and the folder before it: `configs/quickstart.yaml`."""
    return packaged_configs().get(_name(word))


def find_config(word: str) -> str:
    """The path of the config that a command line names: a file if there is one, else a packaged config.

    A folder, and a path that cannot be looked at, are given back: reading them says what is wrong.

    Raises:
        ConfigError: neither; the nearest names are told.
    """
    there = _is_there(word)
    if there and not os.path.isdir(word):
        return word
    found = packaged_config(word)
    if found is not None or there:
        return word if found is None else str(found)
    near = _nearest(_name(word))
    meant = f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else ""
    what = f"is neither a file nor the name of a packaged config{meant}"
    raise ConfigError(short(word), what, "a YAML file or a name that `buzz configs` lists is wanted")


def first_sentence(file: Path) -> str:
    """What a config says of itself: the first sentence of its first comment, "" if it has none."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not re.match(r"# ?\S", line):  # the comment ends, or shows a command, further in
            break
        lines.append(line.lstrip("# "))
    return re.split(r"(?<=[.?!])\s", " ".join(lines))[0]


def _name(word: str) -> str:
    return re.sub(r"\.ya?ml$", "", word).removeprefix("./").removeprefix("configs/")


def _nearest(name: str) -> list[str]:
    """The names whose last part is most like that of this one."""
    lasts: dict[str, list[str]] = {}
    for known in packaged_configs():
        lasts.setdefault(known.rpartition("/")[2], []).append(known)
    return [known for last in difflib.get_close_matches(name.rpartition("/")[2], lasts, 1) for known in lasts[last]]


def _is_there(word: str) -> bool:
    """Whether the file system has something of this name, or will not say."""
    try:
        os.stat(word)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL
        return False
    except OSError:
        return True
    return True
