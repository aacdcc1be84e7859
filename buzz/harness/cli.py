"""lm-eval's own command line, with the model `buzz` in it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from buzz.evaluation.command_line import Parser, status_of, tell
from buzz.evaluation.errors import ConfigError
from buzz.harness import MODEL, register
from buzz.words import one_line

_TASKS = Path(__file__).parent / "tasks"
_OTHERS = ("ls", "validate")  # commands of lm-eval that load no model
_DESCRIPTION = "lm-evaluation-harness, its models read through caches that evict."
_EPILOG = """Arguments are lm-eval's own; `%(prog)s run --help` has them all. --model is `buzz` if nothing else
is said, and --model_args name the policy and the budget beside the model (docs/lm_eval.md):

  %(prog)s --model_args pretrained=MODEL,policy=comb,budget=0.4 --tasks arc_easy --batch_size 8 --output_path results
  %(prog)s ls tasks"""


def main(arguments: Sequence[str] | None = None, prog: str = "buzz lm-eval") -> int:
    """Run lm-eval with these arguments; returns the exit status.

    The model is `buzz` if no other one is named, and the tasks of this package are known beside lm-eval's own if no
    other folder is included. Where results are written (`--output_path`), a file beside them gets a line for each
    request, unless `cache_log` names another.

    Args:
        arguments: those after the program's name, as lm-eval takes them; None: the process's own.
        prog: what was called; in the help of its own commands lm-eval names itself.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("-h", "--help"):  # without lm-eval, which takes seconds to import
        parser = Parser(_DESCRIPTION, _EPILOG, prog=prog)
        parser.usage = "%(prog)s [-h] [run | ls | validate] ..."
        parser.parse_args(words[:1])
    try:
        return status_of(lambda: _main(words, prog))
    except KeyboardInterrupt:
        tell("interrupted")
        return 130


def _main(words: list[str], prog: str) -> int:
    register()
    from lm_eval.__main__ import cli_evaluate

    with _as_its_own([prog, *_completed(words)]):
        try:
            cli_evaluate()
        except (OSError, ValueError) as error:
            # What lm-eval itself refuses is a mistake of the user's: a task that there is not, say.
            if not _came_from(error, Path(sys.modules["lm_eval"].__file__ or "").parent):
                raise
            raise ConfigError("lm-eval", one_line(error) or type(error).__name__) from error
    return 0


def _completed(words: list[str]) -> list[str]:
    """The arguments with the model, its tasks and the file of its caches, unless they name others."""
    if not words or words[0] in _OTHERS:
        return words
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", "-M")
    parser.add_argument("--model_args", "-a", nargs="+", action="extend", default=[])
    parser.add_argument("--output_path", "-o")
    parser.add_argument("--config", "-C")
    parser.add_argument("--include_path")
    given, _ = parser.parse_known_args(words)
    if given.config is None:
        words = [*words, *(["--model", MODEL] if given.model is None else [])]
        words = [*words, *(["--include_path", str(_TASKS)] if given.include_path is None else [])]
    mine = given.model in (None, MODEL)
    # Arguments on the command line replace those of lm-eval's config file, so there must be some already.
    if mine and given.output_path and given.model_args and not any("cache_log" in word for word in given.model_args):
        path = Path(given.output_path)
        folder = path.parent if path.suffix == ".json" else path
        stamp = datetime.now().isoformat().replace(":", "-")  # as in the names of lm-eval's files
        words = [*words, "--model_args", json.dumps({"cache_log": str(folder / f"cache_{stamp}.jsonl")})]
    return words


@contextlib.contextmanager
def _as_its_own(words: Sequence[str]) -> Iterator[None]:
    """Inside the block the process was called with these words: lm-eval reads no others."""
    before = sys.argv
    sys.argv = list(words)
    try:
        yield
    finally:
        sys.argv = before


def _came_from(error: BaseException, folder: Path) -> bool:
    """Whether an error was raised by a file in a folder."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and folder in Path(frames[-1].filename).parents


__all__ = ["main"]
