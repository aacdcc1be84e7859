"""The sections `one_row` and `many_rows` as a page has them: a table a question, a row a method, a column a context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from buzz.benchmark.clocks import OUT_OF_MEMORY
from buzz.benchmark.tables import facts_lines
from buzz.evaluation.show.table import NONE, markdown_rows

Row = Mapping[str, Any]
_FAILED, _PEAK = "failed", "Peak memory above the weights, GiB"
_ONE_ROW: dict[str, Callable[[Row], str]] = {
    "Time to the first token, ms": lambda row: f"{row['first_ms']:.0f}",
    "One token after it, ms: median [10%, 90%]": lambda row: (
        f"{row['ms_median']:.2f} [{row['ms_low']:.2f}, {row['ms_high']:.2f}]"
    ),
    "Tokens a second after the first, evictions included": lambda row: f"{row['tokens_per_s']:.1f}",
    _PEAK: lambda row: _number(row["peak_gib"], 2),
}
_MANY_ROWS: dict[str, Callable[[Row], str]] = {
    "rows": lambda row: str(row["rows"]),
    "tokens/s, prompts included": lambda row: f"{row['tokens_per_s']:.0f}",
    "tokens/s, decoding alone": lambda row: f"{row['decoding_tokens_per_s']:.0f}",
    "first token of all rows, s": lambda row: f"{row['prefill_s']:.2f}",
    "ms a step: median [10%, 90%]": lambda row: f"{row['ms_median']:.2f} [{row['ms_low']:.2f}, {row['ms_high']:.2f}]",
    "peak GiB": lambda row: _number(row["peak_gib"], 2),
}


def caches_lines(data: Mapping[str, Any]) -> list[str]:
    """The results of one model (results.json) in Markdown: the machine, both sections, and why what failed did."""
    lines = [*facts_lines(data), ""]
    one, many = (_rows(data, name) for name in ("one_row", "many_rows"))
    if one:
        contexts = sorted({row["context"] for row in one})
        for title, shown in _ONE_ROW.items():
            if title == _PEAK and not any(row.get("peak_gib") for row in one):
                continue  # of a CPU's memory nothing is known
            lines += [f"**{title}**", "", *_by_context(one, contexts, shown), ""]
    for context in sorted({row["context"] for row in many}):
        settings = data["sections"]["many_rows"]["facts"]["settings"]
        title = f"Prompts of {_tokens(context)} and answers of {settings['new_tokens']} tokens"
        lines += [f"**{title}, as many rows as fit into {settings['memory_gib']:g} GiB above the weights**", ""]
        cells = [[row["method"], *_many_cells(row)] for row in many if row["context"] == context]
        lines += [*markdown_rows(["method", *_MANY_ROWS], cells, left=1), ""]
    return lines + _reasons([*one, *many])


def _rows(data: Mapping[str, Any], section: str) -> list[Row]:
    """The points of a section, in the order of its methods: a run that goes on measures what is missing at the end."""
    if section not in data["sections"]:
        return []
    there = data["sections"][section]
    order = {method["name"]: number for number, method in enumerate(there["facts"]["methods"])}
    return sorted(there["rows"], key=lambda row: order.get(row["method"], len(order)))


def _by_context(rows: Sequence[Row], contexts: Sequence[int], shown: Callable[[Row], str]) -> list[str]:
    found = {(row["method"], row["context"]): row for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    cells = [[method, *(_cell(found.get((method, context)), shown) for context in contexts)] for method in methods]
    return markdown_rows(["method", *map(_tokens, contexts)], cells, left=1)


def _many_cells(row: Row) -> list[str]:
    cells = [_cell(row, shown) for shown in _MANY_ROWS.values()]
    return [cells[0], *[NONE] * (len(cells) - 1)] if "failed" in row else cells


def _cell(row: Row | None, shown: Callable[[Row], str]) -> str:
    if row is None:
        return NONE
    if "failed" in row:
        return OUT_OF_MEMORY if row["failed"].startswith(OUT_OF_MEMORY) else _FAILED
    return shown(row)


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _tokens(context: int) -> str:
    return f"{context / 1024:g}k" if context >= 1024 else str(context)


def _reasons(rows: Sequence[Row]) -> list[str]:
    """A line for every method and reason, but where memory is all there is to say."""
    told = [(row["method"], row["failed"]) for row in rows if row.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY]
    lines = [f"- {method}: {reason}" for method, reason in dict.fromkeys(told)]
    return [*lines, ""] if lines else []
