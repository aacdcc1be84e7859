"""The command `buzz`: a table of sub-commands, each the command line of a room. To add one, add a line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

import buzz
from buzz.evaluation.command_line import Parser, spin_briefly, status_of
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.distributed import leave
from buzz.words import hint


class Command(NamedTuple):
    """module: its `main(arguments, prog)` returns the exit status; imported when the command is called, and not before,
    so that nothing here waits for torch. about: a line of `buzz --help`."""

    module: str
    about: str


COMMANDS = {
    "eval": Command("buzz.evaluation.run.cli", "run an evaluation: a model under several KV-cache policies"),
    "report": Command("buzz.evaluation.show.report.cli", "report runs, also several together and unfinished ones"),
    "bench": Command("buzz.benchmark.cli", "measure speed"),
    "lm-eval": Command("buzz.harness.cli", "lm-evaluation-harness, its models read through evicting caches"),
    "configs": Command("buzz.evaluation.config.cli", "list the packaged configs, which eval and bench take by name"),
}

_DESCRIPTION = "KV-cache eviction for Hugging Face models: what it costs in quality, memory and time."
_EPILOG = "\n".join(
    [
        "commands:",
        *(f"  {name:<9} {command.about}" for name, command in COMMANDS.items()),
        "",
        "buzz COMMAND --help tells more of each.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        arguments: those after the program's name; None: the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        name, *rest = words
        return import_module(COMMANDS[name].module).main(rest, prog=f"buzz {name}")
    return status_of(lambda: _without_command(words))


def _without_command(words: Sequence[str]) -> int:
    parser = Parser(_DESCRIPTION, _EPILOG, prog="buzz")
    parser.usage = "buzz [-h] [--version] COMMAND ..."
    parser.add_argument("--version", action="version", version=f"buzz {buzz.__version__}")
    named = parser.parse_known_args(words)[1]  # the two options above end the process
    wanted = f"one of {', '.join(COMMANDS)} is wanted; see --help"
    if not named:
        raise ConfigError("usage", "no command is given", wanted)
    raise ConfigError("usage", f"unknown command {named[0]!r}{hint(named[0], COMMANDS)}", wanted)


def run() -> NoReturn:
    """The process of the command: what the installed script calls."""
    spin_briefly()
    leave(main())
