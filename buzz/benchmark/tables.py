"""The results as Markdown tables; ratios are against the first row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from buzz.evaluation.show.table import NONE, markdown_rows

_REASON = 60  # characters of why a point failed; results.json has more


@dataclass(frozen=True)
class Column:
    """One figure. digits: after the point. ratio: a column beside it with the value over that of the first row."""

    title: str
    key: str
    digits: int = 2
    ratio: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Layout:
    """A section's tables: one for every different value of `group`, a row for every point."""

    group: Sequence[str]
    names: Sequence[Column]  # what a row is called
    columns: Sequence[Column]


_METHOD = Column("method", "method", 0)
_STEP = (
    Column("ms a token, median", "ms_median", 2, ratio=True),
    Column("mean", "ms_mean", 2, ratio=True),
    Column("evictions", "evictions", 0),
    Column("steps", "steps", 0),
    Column("mean length", "mean_length", 0),
    Column("cache MiB", "cache_mib", 0),
    Column("GB/s", "gb_per_s", 1),
    Column("of copy", "of_copy", 0, percent=True),
    Column("tokens/s", "tokens_per_s", 1, ratio=True),
)
LAYOUTS: dict[str, Layout] = {
    "ceilings": Layout(
        (),
        (Column("what", "what"),),
        (Column("ms", "ms"), Column("GB/s", "gb_per_s", 1), Column("TFLOP/s", "tflop_per_s", 1)),
    ),
    "kernels": Layout(
        ("kind", "batch", "length"),
        (Column("kernel", "what"),),
        (
            Column("ms", "ms", 4, ratio=True),
            Column("TFLOP/s", "tflop_per_s", 1),
            Column("GB/s", "gb_per_s", 1),
            Column("of copy", "of_copy", 0, percent=True),
            Column("error of output", "output_error", 6),
            Column("of scores", "score_error", 6),
        ),
    ),
    "prefill": Layout(
        ("length",),
        (_METHOD,),
        (
            Column("ms", "ms", 1, ratio=True),
            Column("fastest", "ms_fastest", 1),
            Column("slowest", "ms_slowest", 1),
            Column("a new length", "ms_new", 1),
            Column("slowest", "ms_new_slowest", 1),
            Column("peak GiB", "peak_gib", 2, ratio=True),
            Column("cache MiB", "cache_mib", 1),
        ),
    ),
    "decode": Layout(("batch", "context"), (_METHOD,), _STEP),
    "stream": Layout(("method",), (Column("streamed tokens", "tokens", 0),), _STEP),
    "evictions": Layout(
        ("batch", "context"),
        (_METHOD,),
        (
            Column("ms a token, median", "ms_median", 2),
            Column("mean", "ms_mean", 2),
            Column("steps", "steps", 0),
            Column("evictions", "evictions", 0),
            Column("ms an eviction", "eviction_ms", 2),
            Column("share", "eviction_share", 2, percent=True),
            Column("drains a step", "drains_per_step", 2),
            Column("event waits", "event_waits_per_step", 2),
            Column("drains, fixed length", "fixed_drains_per_step", 2),
            Column("event waits", "fixed_event_waits_per_step", 2),
        ),
    ),
    "throughput": Layout(
        ("batch",),
        (_METHOD,),
        (
            Column("rows", "rows", 0),
            Column("tokens/s", "tokens_per_s", 0, ratio=True),
            Column("prefill s", "prefill_s", 2),
            Column("ms a step", "ms_mean", 2),
            Column("steps", "steps", 0),
            Column("peak GiB", "peak_gib", 1),
            Column("cache MiB", "cache_mib", 0),
        ),
    ),
    "one_row": Layout(
        ("context",),
        (_METHOD,),
        (
            Column("first token, ms", "first_ms", 1, ratio=True),
            Column("fastest", "first_ms_fastest", 1),
            Column("slowest", "first_ms_slowest", 1),
            Column("ms a token, median", "ms_median", 2, ratio=True),
            Column("10%", "ms_low", 2),
            Column("90%", "ms_high", 2),
            Column("tokens/s", "tokens_per_s", 1, ratio=True),
            Column("steps", "steps", 0),
            Column("evictions", "evictions", 0),
            Column("peak GiB", "peak_gib", 2),
            Column("cache MiB", "cache_mib", 0),
        ),
    ),
    "many_rows": Layout(
        ("context",),
        (_METHOD,),
        (
            Column("rows", "rows", 0),
            Column("tokens/s", "tokens_per_s", 0, ratio=True),
            Column("decoding alone", "decoding_tokens_per_s", 0, ratio=True),
            Column("prefill s", "prefill_s", 2),
            Column("ms a step, median", "ms_median", 2),
            Column("10%", "ms_low", 2),
            Column("90%", "ms_high", 2),
            Column("steps", "steps", 0),
            Column("peak GiB", "peak_gib", 2),
            Column("cache MiB", "cache_mib", 0),
        ),
    ),
    "agreement": Layout(
        (),
        (_METHOD,),
        (
            Column("prompts", "prompts", 0),
            Column("equal", "equal", 0),
            Column("first difference at token", "first", 0),
            Column("largest gap of logits there", "gap", 4),
        ),
    ),
    "steps": Layout(
        ("group",),
        (_METHOD,),
        (
            Column("mean length", "mean_length", 0),
            Column("MiB", "cache_mib", 1),
            Column("prefill s", "prefill_s", 2),
            Column("ms a step", "ms_median", 2, ratio=True),
            Column("tokens/s", "tokens_per_s", 2, ratio=True),
        ),
    ),
}


def section_lines(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All tables of a section, each with the point that it is about as its title."""
    layout, lines = LAYOUTS[name], list[str]()
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in layout.group), []).append(row)
    first: dict[Any, int] = {}
    for at, group in enumerate(groups):
        for value in group:
            first.setdefault(value, at)
    for group, members in sorted(groups.items(), key=lambda item: [_order(value, first) for value in item[0]]):
        named = ", ".join(_named(k, v) for k, v in zip(layout.group, group, strict=True) if v is not None)
        lines += [*([f"**{named}**", ""] if named else []), *_table(layout, members), ""]
    return lines


def _named(key: str, value: Any) -> str:
    return str(value) if key in ("group", "method", "kind") else f"{key} {value}"


def _order(value: Any, first: Mapping[Any, int]) -> tuple[int, float]:
    """Numbers by size, then anything else as it comes."""
    return (0, value) if isinstance(value, int | float) else (1, first[value])


def _table(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [c for c in layout.columns if any(row.get(c.key) is not None for row in rows)] or list(layout.columns[:1])
    header = [column.title for column in layout.names]
    for column in shown:
        header += [column.title, "ratio"] if column.ratio else [column.title]
    cells = [[*(str(row.get(c.key, NONE)) for c in layout.names), *_cells(shown, row, rows[0])] for row in rows]
    return markdown_rows(header, cells, left=len(layout.names))


def _cells(columns: Sequence[Column], row: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    cells: list[str] = []
    for column in columns:
        value, base = row.get(column.key), first.get(column.key)
        cells.append(_shown(column, value))
        if column.ratio:
            cells.append(f"{value / base:.3f}" if value is not None and base else NONE)
    if "failed" in row:
        cells[0] = row["failed"] if len(row["failed"]) <= _REASON else row["failed"][:_REASON] + "..."
    return cells


def _shown(column: Column, value: Any) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.{column.digits}f}%" if column.percent else f"{value:.{column.digits}f}"


def report(data: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """report.md: machine and model, then the tables of every section that has rows, and the pictures."""
    lines = [f"# {data['name']}", "", *facts_lines(data), ""]
    for name, section in data["sections"].items():
        if section["rows"]:
            lines += [f"## {name}", "", *section_lines(name, section["rows"])]
            if not section["complete"]:
                lines += ["Not complete yet.", ""]
    for picture in pictures:
        lines += [f"![{picture.removesuffix('.png')}]({picture})", ""]
    return "\n".join(lines)


def facts_lines(data: Mapping[str, Any]) -> list[str]:
    """The machine and the model, in a line."""
    model, run = data["model"], data["runs"][-1]
    versions = run["versions"]
    name = model.get("shape") or model.get("gguf") or model.get("root")
    return [
        f"{name} ({model['parameters'] / 1e6:.0f}M parameters, {model['dtype']}) on {run['device_name']}, "
        f"{run['threads']} threads, torch {versions['torch']}, transformers {versions['transformers']}."
    ]
