"""The command line that lists the packaged configs."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from buzz.evaluation.command_line import Parser, say, status_of
from buzz.evaluation.packaged import configs_folder, first_sentence, packaged_configs

_DESCRIPTION = """\
List the configs that come with buzz: `buzz eval NAME` runs one, `buzz bench NAME` one of those under bench/. A file of
your own is named by its path; a copy of one of these is a good beginning.
"""
_EPILOG = """\
exit status: 0 done, 2 bad usage
"""
_WIDTH = 120  # where there is no terminal


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: those after the program's name; None: the process's own.
        prog: the program's name in its usage; None: that of the process.
    """
    return status_of(lambda: _main(arguments, prog))


def _main(arguments: Sequence[str] | None, prog: str | None) -> int:
    Parser(_DESCRIPTION, _EPILOG, prog).parse_args(arguments)
    configs = packaged_configs()
    column = max(map(len, configs)) + 2
    width = max(shutil.get_terminal_size((_WIDTH, 0)).columns - column, 20)
    lines = [
        f"{name:<{column}}{textwrap.shorten(first_sentence(file), width, placeholder=' ...')}"
        for name, file in configs.items()
    ]
    say("\n".join([*lines, "", f"in {configs_folder()}"]))
    return 0
