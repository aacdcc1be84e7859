"""The command line of an evaluation run. A mistake of the user is one line on stderr and exit status 2."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from buzz.evaluation.command_line import Parser, add_config, config_of, need_extra, say, status_of
from buzz.evaluation.run.distributed import PeerLostError, adopt_mpi, join, speaks

if TYPE_CHECKING:
    from buzz.evaluation.run.config import RunConfig
    from buzz.evaluation.run.grid import Sweep
    from buzz.evaluation.show.verdict import Verdict

_DESCRIPTION = """\
Run an evaluation: a model summarises or answers under several KV-cache policies. Prints a table and fills the run
folder (`output` in the config) with samples, summary.json and a report. Started again with the same config, a run goes
on where it stopped, with any number of processes. A config with a section `sweep` describes a grid of runs.
"""
_WIDTH = 100  # of running text on a terminal
_EPILOG = """\
examples:
  buzz eval quickstart
  buzz eval xsum task.data=xsum.jsonl.gz task.limit=8 output=runs/try
  buzz eval my/config.yaml model.id=/models/llama methods='[full, buzz, streaming]'
  accelerate launch --multi_gpu --num_processes 8 --main_process_port 0 -m buzz eval xsum

exit status: 0 done, 1 a method ran out of memory or a file cannot be written, 2 bad config or usage, 130 / 143
interrupted. The same command goes on where a run stopped.
"""
_NEEDED = ("nltk", "rouge")  # imported once an answer is scored, which would be late to find them missing


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: those after the program's name; None: the process's own.
        prog: the program's name in its usage; None: that of the process.
    """
    adopt_mpi()
    try:
        return status_of(lambda: _main(arguments, prog), _tell)
    except PeerLostError:
        _tell("error: another process of the run has stopped; the same command resumes the run")
        return 1
    except KeyboardInterrupt:  # before the run holds signals back, or the second one
        _tell("interrupted; the same command starts again where the run folder stops")
        return 130


def _main(arguments: Sequence[str] | None, prog: str | None) -> int:
    parser = Parser(_DESCRIPTION, _EPILOG, prog)
    add_config(parser, "run")
    path, overrides = config_of(parser.parse_intermixed_args(arguments))
    need_extra("eval", _NEEDED)

    # Here, so that --help and usage errors need no torch, which policies do; and below, so that a wrong config needs no
    # transformers.
    from buzz.evaluation.run.config import load_config
    from buzz.evaluation.run.grid import is_sweep, load_sweep
    from buzz.evaluation.run.signals import Interrupted

    try:
        if is_sweep(path, overrides):
            return _sweep(load_sweep(path, overrides))
        return _run(load_config(path, overrides))
    except Interrupted as stop:
        _tell(f"interrupted; the same command resumes the run in {stop.output}")
        return 128 + stop.number


def _run(config: RunConfig) -> int:
    from buzz.evaluation.run.runner import run
    from buzz.evaluation.show.table import text_table
    from buzz.evaluation.show.verdict import verdicts

    summary = run(config)
    told = verdicts({config.name: summary})
    _print(text_table(summary), told, f"{config.output}: report.html, report.md, summary.json, samples/", config.output)
    return _status([summary])


def _sweep(sweep: Sweep) -> int:
    from buzz.evaluation.run.sweep import run_sweep
    from buzz.evaluation.show.overview import text_overview
    from buzz.evaluation.show.verdict import verdicts

    summary = run_sweep(sweep)
    where = f"{sweep.output}: summary.json, report.md, report.html, and a folder a run"
    _print(text_overview(summary), verdicts(summary["runs"]), where, sweep.output)
    return _status(summary["runs"].values())


def _print(table: str, told: Sequence[Verdict], where: str, folder: str) -> None:
    """The results, what they show, and what to look at, by the main process; the others wait for it."""
    group = join()
    if group.main:
        texts = (text for one in told for text in one if text)
        lines = (textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False) for text in texts)
        say("\n\n".join([table, *lines, where, f"open {folder.rstrip('/')}/report.html"]))
    group.gather(None)


def _status(summaries: Iterable[Mapping[str, Any]]) -> int:
    return 1 if any("failed" in entry for summary in summaries for entry in summary["methods"].values()) else 0


def _tell(line: str) -> None:
    """One line on stderr; of several processes, one of each host says it."""
    if speaks():
        print(line, file=sys.stderr)
