"""The command line of a benchmark. A mistake of the user is one line on stderr and exit status 2."""

from __future__ import annotations

from collections.abc import Sequence

from buzz.evaluation.command_line import Parser, add_config, config_of, say, status_of, tell

_DESCRIPTION = """\
Measure speed: ceilings of the machine, kernels, prefill, decoding, streaming, evictions and throughput, of policies and
of transformers' own caches side by side. Prints Markdown tables and fills the output folder with results.json,
report.md and pictures. Every point is written as soon as it is measured; started again, a benchmark goes on where it
stopped.
"""
_EPILOG = """\
examples:
  buzz bench bench/cpu model.dtype=bfloat16 output=runs/bench/cpu-bfloat16
  buzz bench bench/h100
  buzz bench bench/h100 only='[ceilings, prefill]'
  buzz bench bench/h100 decode=null throughput=null output=runs/bench/short

exit status: 0 done, 1 the config's seconds were over or a file cannot be written (the same command goes on), 2 bad
config or usage, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: those after the program's name; None: the process's own.
        prog: the program's name in its usage; None: that of the process.
    """
    try:
        return status_of(lambda: _main(arguments, prog))
    except KeyboardInterrupt:
        tell("interrupted; the same command goes on where the output folder stops")
        return 130


def _main(arguments: Sequence[str] | None, prog: str | None) -> int:
    parser = Parser(_DESCRIPTION, _EPILOG, prog)
    add_config(parser, "benchmark")
    path, overrides = config_of(parser.parse_intermixed_args(arguments))

    # Here, so that --help needs no torch, and the sections only once a config is right: they need transformers.
    from buzz.benchmark.config import load_bench

    config = load_bench(path, overrides)

    from buzz.benchmark.sections import run

    finished = run(config)
    say(f"\n{config.output}: results.json, report.md and pictures")
    if not finished:
        tell("out of time; the same command goes on where the output folder stops")
    return 0 if finished else 1
