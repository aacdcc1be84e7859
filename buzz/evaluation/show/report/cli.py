"""The command line of reports. A mistake of the user is one line on stderr and exit status 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from buzz.evaluation.command_line import Parser, say, status_of

_DESCRIPTION = """\
Report runs of buzz eval: report.md, and report.html, a single file that needs no network, with tables,
figures, the answers side by side, and the hive view: which heads hold which tokens of a sample, call by call.
A run need not be finished.
"""
_EPILOG = """\
examples:
  buzz report runs/quickstart
  buzz report runs/sweep              all runs below, together, into runs/sweep
  buzz report runs/xsum runs/cnn_dm   together, into report/
  buzz report runs/xsum --against streaming --against h2o

exit status: 0 done, 1 a file cannot be written, 2 a folder is no run, or a file in it is damaged
"""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: those after the program's name; None: the process's own.
        prog: the program's name in its usage; None: that of the process.
    """
    return status_of(lambda: _main(arguments, prog))


def _main(arguments: Sequence[str] | None, prog: str | None) -> int:
    parser = Parser(_DESCRIPTION, _EPILOG, prog)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or one that holds several")
    parser.add_argument(
        "--output", metavar="DIR", help="where to write; default: the folder itself, or ./report if several are named"
    )
    parser.add_argument(
        "--against", metavar="METHOD", action="append", default=[], help="compare all methods with this one, too"
    )
    options = parser.parse_args(arguments)

    from buzz.evaluation.show.report.write import write_report  # here, so that --help needs none of it

    output = options.output
    if output is None:
        output = options.runs[0] if len(options.runs) == 1 else "report"
    paths = write_report(options.runs, output, options.against)
    say(f"{Path(output)}: {', '.join(path.name for path in paths)}")
    return 0
