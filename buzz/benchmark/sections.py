"""Runs a benchmark: section after section into one folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from buzz.benchmark.agreement import agreement
from buzz.benchmark.bench import Bench
from buzz.benchmark.book import RESULTS, Book, OutOfTimeError
from buzz.benchmark.caches import many_rows, one_row
from buzz.benchmark.ceilings import ceilings
from buzz.benchmark.config import BenchConfig
from buzz.benchmark.decoding import decode, evictions, stream
from buzz.benchmark.kernels import kernels
from buzz.benchmark.model import load
from buzz.benchmark.plots import draw
from buzz.benchmark.prompts import prefill, throughput
from buzz.benchmark.steps import steps
from buzz.benchmark.tables import facts_lines, report, section_lines
from buzz.evaluation.command_line import say
from buzz.evaluation.environment import environment
from buzz.evaluation.files import write_atomically
from buzz.evaluation.models.load import quiet_transformers

_ALONE: dict[str, Callable[[Bench, Any], None]] = {"ceilings": ceilings, "kernels": kernels, "steps": steps}
_CONTENDED: dict[str, Callable[..., None]] = {
    "prefill": prefill,
    "decode": decode,
    "stream": stream,
    "evictions": evictions,
    "throughput": throughput,
    "one_row": one_row,
    "many_rows": many_rows,
    "agreement": agreement,
}


def run(config: BenchConfig) -> bool:
    """Measure what the folder lacks, print the tables as they come, and write results.json, report.md and pictures.

    A contender that cannot do a point has the reason in its place. A run that was killed loses no point that was
    measured; the same command goes on.

    Returns:
        Whether everything is measured; False if the time was over before.

    Raises:
        ConfigError: the model cannot be used, or the folder holds other results. RuntimeError: the device is lost.
    """
    book = Book(config)
    finished = True
    if not all(book.is_complete(name) for name in config.sections):
        with quiet_transformers():
            finished = _measure(config, book)
    else:
        for name in config.sections:
            _print(book, name)
    write_atomically(book.folder / "report.md", report(book.data, draw(book.data, book.folder)))
    return finished


def _measure(config: BenchConfig, book: Book) -> bool:
    model, tokenizer, info = load(config.model, config.seed)
    book.begin(environment(), info)
    say("\n".join(facts_lines(book.data)))
    bench = Bench(model, tokenizer, book, config.seed)
    try:
        for name, section in config.sections.items():
            if not book.is_complete(name):
                try:
                    if name in _ALONE:
                        _ALONE[name](bench, section)
                    else:
                        _CONTENDED[name](bench, section, config.contenders(section))
                    book.complete(name)
                finally:
                    bench.stage.clear()
                    _print(book, name)
            else:
                _print(book, name)
    except OutOfTimeError:
        return False
    return True


def _print(book: Book, name: str) -> None:
    if rows := book.rows(name):
        say("\n".join([f"\n## {name}\n", *section_lines(name, rows)]))


__all__ = ["RESULTS", "run"]
