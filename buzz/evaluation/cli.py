"""The command line of an evaluation run. A mistake of the user is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from buzz.evaluation.errors import ConfigError

_DESCRIPTION = """\
Run an evaluation: a model summarises or answers under several KV-cache policies. Prints a table and fills the run
folder (`output` in the config) with samples, summary.json, report.md and quality.png. Started again with the same
config, a run goes on where it stopped.
"""
_EPILOG = """\
examples:
  python scripts/run_eval.py --config configs/quickstart.yaml
  python scripts/run_eval.py --config configs/xsum.yaml task.data=xsum.jsonl.gz task.limit=8 output=runs/try
  python scripts/run_eval.py --config configs/xsum.yaml model.id=/models/llama methods='[full, buzz, streaming]'

exit status: 0 done, 1 a method ran out of memory, 2 bad config or usage, 130 / 143 interrupted (resumes when run again)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError("usage", message, "see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: those after the program's name; None: the process's own.
    """
    try:
        with _short_warnings():
            return _main(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the run holds signals back, or the second one
        print("interrupted; the same command starts again where the run folder stops", file=sys.stderr)
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    parser = _Parser(description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file that describes the run")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="replaces one value of the config")
    options = parser.parse_intermixed_args(arguments)

    # Here, so that --help and usage errors need none of it.
    from buzz.evaluation.config import load_config

    config = load_config(options.config, options.overrides)

    from buzz.evaluation.runner import Interrupted, run
    from buzz.evaluation.table import text_table

    try:
        summary = run(config)
    except Interrupted as stop:
        print(f"interrupted; the same command resumes the run in {stop.output}", file=sys.stderr)
        return 128 + stop.number
    print(text_table(summary))
    print(f"\n{config.output}: summary.json, report.md, quality.png, samples/")
    return 1 if any("failed" in entry for entry in summary["methods"].values()) else 0


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Inside the block a warning is one line, and what libraries say about their own future is left out."""

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
