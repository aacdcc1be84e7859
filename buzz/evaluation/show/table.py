"""A run's results as tables: on the terminal, in report.md, and as rows for other reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from buzz.evaluation.measure.metric_info import FIDELITY_METRICS, metric_info

Table = tuple[list[str], list[list[str]]]  # header and cells
WIDTH = 120  # columns of a terminal
NONE = "-"
CACHE = ["mean cache", "peak cache", "reduction", "MiB", "in bytes"]


# --- cells -----------------------------------------------------------------------------------------------------------


def metric_label(name: str) -> str:
    """How a metric is called in tables and plots."""
    return metric_info(name).label


def shown(metric: str, value: float, sign: bool = False) -> str:
    """A metric's value, or a difference with its sign: percent with two decimals, anything else to three digits."""
    plus = "+" if sign else ""
    if metric_info(metric).percent:
        return f"{100 * value:{plus}.2f}"
    if value == 0 or not math.isfinite(value):
        return f"{value:{plus}g}"
    if abs(value) < 1e-4:
        return f"{value:{plus}.3g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:{plus}.{decimals}f}"


def shown_interval(metric: str, ends: Sequence[float], sign: bool = False) -> str:
    """`[low, high]`."""
    return f"[{', '.join(shown(metric, end, sign) for end in ends)}]"


def shown_p(p: float) -> str:
    """A p-value with three decimals, `<0.001` below that."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def failed_cell(entry: Mapping[str, Any]) -> str:
    """What stands in the cells of a method without a sample."""
    return "out of memory" if entry.get("failed") == "out of memory" else NONE


def metric_cells(entry: Mapping[str, Any], metrics: Sequence[str], intervals: bool) -> list[str]:
    """A method's metrics, with their 95% intervals if asked for."""
    if not entry["n"]:
        return [failed_cell(entry)] * len(metrics)
    cells = []
    for metric in metrics:
        found = entry["metrics"].get(metric)
        interval = f" {shown_interval(metric, found['ci95'])}" if found and intervals else ""
        cells.append(shown(metric, found["mean"]) + interval if found else NONE)
    return cells


def cache_cells(entry: Mapping[str, Any]) -> list[str]:
    """Mean and peak cache length in tokens and the reduction, the mean in MiB and the reduction in bytes."""
    if not entry["n"]:
        return [NONE] * len(CACHE)
    cache = entry["cache"]
    tokens = [f"{cache['mean_tokens']:.1f}", f"{cache['peak_tokens']:.0f}", f"{cache['reduction']:.2f}x"]
    if "mean_mib" not in cache:  # a run of an older version
        return [*tokens, NONE, NONE]
    return [*tokens, shown_mib(cache["mean_mib"]), f"{cache['reduction_bytes']:.2f}x"]


def answer_column(summary: Mapping[str, Any]) -> list[str]:
    """The head of the column of answers' mean lengths; none where texts are read, or in a run of an older version."""
    return ["answer tokens"] if any("answer_tokens" in entry for entry in summary["methods"].values()) else []


def answer_cell(entry: Mapping[str, Any]) -> str:
    """The mean length of a method's answers, in tokens."""
    return f"{entry['answer_tokens']:.1f}" if "answer_tokens" in entry else NONE


def shown_mib(mib: float) -> str:
    """MiB to three digits."""
    return _three_digits(mib)


def _three_digits(value: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{decimals}f}"


def speed_cell(entry: Mapping[str, Any]) -> str:
    """New tokens a second of a method, to three digits."""
    speed = entry["seconds"].get("tokens_per_second") if entry["n"] else None
    return _three_digits(speed) if speed else NONE


def pair_cell(metric: str, pair: Mapping[str, Any] | None) -> str:
    """A paired difference, its interval and its p-value: `-1.20 [-2.31, -0.10] p=0.032`."""
    if pair is None:
        return NONE
    interval = shown_interval(metric, pair["ci95"], sign=True)
    p = shown_p(pair["p"])
    return f"{shown(metric, pair['difference'], sign=True)} {interval} p{'' if p.startswith('<') else '='}{p}"


# --- rows ------------------------------------------------------------------------------------------------------------


def results_rows(summary: Mapping[str, Any], intervals: bool = False) -> Table:
    """Header and cells of the results table, a row a method: metrics, answers and cache in tokens, MiB, speed and time.

    The metrics are the columns from the third on.
    """
    metrics = summary["run"]["metrics"]
    heads = ["heads"] if any(_unequal(entry) for entry in summary["methods"].values()) else []
    answer = answer_column(summary)
    header = ["method", "n", *map(metric_label, metrics), *answer, *CACHE, *heads, "tokens/s", "seconds"]
    rows = []
    for name, entry in summary["methods"].items():
        seconds = f"{entry['seconds']['total']:.1f}" if entry["n"] else NONE
        cells = [*metric_cells(entry, metrics, intervals), *(answer_cell(entry) for _ in answer), *cache_cells(entry)]
        cells += [*(head_cell(entry) for _ in heads), speed_cell(entry)]
        rows.append([name, str(entry["n"]), *cells, seconds])
    return header, rows


def head_cell(entry: Mapping[str, Any]) -> str:
    """The fewest and the most slots of a head, where heads are unequal: `12 to 310`."""
    return f"{entry['cache']['shortest_head']:.0f} to {entry['cache']['longest_head']:.0f}" if _unequal(entry) else NONE


def _unequal(entry: Mapping[str, Any]) -> bool:
    return "longest_head" in entry.get("cache", {})


def paired_rows(summary: Mapping[str, Any], against: str) -> Table:
    """Header and cells of the paired differences, a row a method; no rows if there are none.

    Args:
        against: `full`: to the full cache; `rival`: each to its best rival; or another key of `compared_with`.
    """
    metrics = summary["run"]["metrics"]
    header = ["method", "minus", *map(metric_label, metrics), *CACHE]
    rows = []
    for name, entry in summary["methods"].items():
        pair = entry.get("paired", {}).get(against)
        if pair:
            cells = [pair_cell(metric, pair["metrics"].get(metric)) for metric in metrics]
            rows.append([name, pair["method"], *cells, *cache_cells(entry)])
    return header, rows


def ratio_cell(metric: str, pair: Mapping[str, Any] | None) -> str:
    """A ratio of two means, its interval and its p-value: `0.58 [0.51, 0.66] p<0.001`."""
    if pair is None or "ratio" not in pair:
        return NONE
    low, high = pair["ratio_ci95"]
    p = shown_p(pair["ratio_p"])
    return f"{pair['ratio']:.3g} [{low:.3g}, {high:.3g}] p{'' if p.startswith('<') else '='}{p}"


def ratio_rows(summary: Mapping[str, Any], against: str) -> Table:
    """Header and cells of the ratios to what `paired_rows` shows the differences to, for the metrics that have some."""
    entries = summary["methods"].items()
    pairs = {name: entry["paired"][against] for name, entry in entries if against in entry.get("paired", {})}
    metrics = [m for m in summary["run"]["metrics"] if any("ratio" in p["metrics"].get(m, {}) for p in pairs.values())]
    rows = []
    for name, pair in pairs.items() if metrics else ():
        cells = [ratio_cell(metric, pair["metrics"].get(metric)) for metric in metrics]
        rows.append([name, pair["method"], *cells, *cache_cells(summary["methods"][name])])
    return ["method", "over", *map(metric_label, metrics), *CACHE], rows


def retention_rows(summary: Mapping[str, Any]) -> Table:
    """Header and cells of the shares of the full cache's scores that the methods keep, in percent; may have no rows."""
    entries = {name: entry["retention"] for name, entry in summary["methods"].items() if entry.get("retention")}
    metrics = [m for m in summary["run"]["metrics"] if any(m in shares for shares in entries.values())]
    rows = []
    for name, shares in entries.items():
        entry = summary["methods"][name]
        cells = []
        for metric in metrics:
            ends = entry.get("retention_ci95", {}).get(metric)
            interval = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""
            cells.append(f"{100 * shares[metric]:.1f}%{interval}" if metric in shares else NONE)
        rows.append([name, *cells, *cache_cells(entry)])
    return ["method", *map(metric_label, metrics), *CACHE], rows


def comparison_tables(summary: Mapping[str, Any]) -> list[tuple[str, Table, int]]:
    """Titles and rows of the tables of paired differences, ratios and shares, and how many columns are words.

    Those without rows are left out.
    """
    titles = {"full": "Against the full cache", "rival": "Against the best rival"}
    found = dict.fromkeys(titles)  # these two first
    found |= dict.fromkeys(key for entry in summary["methods"].values() for key in entry.get("paired", {}))
    tables = []
    for key in found:
        tables.append((titles.get(key, key[:1].upper() + key[1:]), paired_rows(summary, key), 2))
        tables.append((f"Ratio to {key.removeprefix('against ')}", ratio_rows(summary, key), 2))
    tables.append(("Share of the full cache's score", retention_rows(summary), 1))
    return [table for table in tables if table[1][1]]


def speed_rows(summary: Mapping[str, Any]) -> Table:
    """Header and cells of what decoding after a long prompt took, a row a cache; no rows if it was not timed."""
    header = ["cache", "prompt tokens", "prompt s", "ms a step", "tokens/s", "tokens a head", "MiB"]
    rows = [
        [
            row["method"],
            f"{row['prompt_tokens']}",
            f"{row['prompt_seconds']:.1f}",
            f"{row['ms']:.1f}",
            f"{row['tokens_per_second']:.2f}",
            f"{row['tokens']:.0f}",
            shown_mib(row["mib"]),
        ]
        for row in summary.get("speed") or ()
    ]
    return header, rows


SPEED = "Decoding after a long prompt, one row, by turns; a step is the median."


def headline_rows(summary: Mapping[str, Any]) -> Table:
    """Header and cells of a narrow table, a row a method: the headline metric alone, and its paired differences."""
    metric = summary["run"]["headline"]
    answer = answer_column(summary)
    header = ["method", metric_label(metric), "95% interval", *answer, *CACHE, "tokens/s"]
    header += ["- full", "p", "- rival", "p"]
    rows = []
    for name, entry in summary["methods"].items():
        found = entry["metrics"].get(metric) if entry["n"] else None
        cells = metric_cells(entry, [metric], intervals=False)
        cells += [shown_interval(metric, found["ci95"]) if found else NONE, *(answer_cell(entry) for _ in answer)]
        cells += [*cache_cells(entry), speed_cell(entry)]
        for against in ("full", "rival"):
            pair = entry.get("paired", {}).get(against, {"metrics": {}})["metrics"].get(metric)
            cells += [shown(metric, pair["difference"], sign=True), shown_p(pair["p"])] if pair else [NONE, NONE]
        rows.append([name, *cells])
    return header, rows


def notes(summary: Mapping[str, Any]) -> list[str]:
    """One line for each method that did not finish, what was cut of prompts, and the run's own notes."""
    entries = summary["methods"].items()
    failed = [f"{name} did not finish: {entry['failed']}" for name, entry in entries if "failed" in entry]
    cut = summary["run"].get("truncated")
    long = [f"prompts longer than the model's positions: {cut}; their middle was cut out"] if cut else []
    return [*failed, *long, *summary["run"].get("notes", [])]


# --- text ------------------------------------------------------------------------------------------------------------


def text_table(summary: Mapping[str, Any]) -> str:
    """The results for a terminal. Metrics for which 120 columns are too narrow follow in a second table."""
    header, rows = results_rows(summary)
    first, last = 2, 2 + len(summary["run"]["metrics"])  # the metrics' columns
    cut = last
    while cut > first + 1 and _width(header, rows, [*range(cut), *range(last, len(header))]) > WIDTH:
        cut -= 1
    if cut < last:  # what compares with the full cache stays together
        cut -= sum(metric in FIDELITY_METRICS for metric in summary["run"]["metrics"][: cut - first])
    lines = text_rows(header, rows, [*range(cut), *range(last, len(header))])
    if cut < last:
        lines += ["", *text_rows(header, rows, [0, *range(cut, last)])]
    lines += [*notes(summary), *_room(summary)]
    if (timed := speed_rows(summary))[1]:
        lines += ["", *text_rows(*timed), SPEED]
    return "\n".join(lines)


def _room(summary: Mapping[str, Any]) -> list[str]:
    """A line about a full cache that allocates more than its tokens, which puzzles those who have not read of it."""
    full = summary["run"].get("full")
    cache = summary["methods"].get(full, {}).get("cache", {})
    if round(cache.get("reduction_bytes", 1.0), 2) >= 1:
        return []
    return [
        "in bytes is against a cache that allocates exactly its tokens: full caches have room to grow and are below 1x"
    ]


def text_rows(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int] | None = None) -> list[str]:
    """The lines of an aligned table: names at the left, numbers at the right.

    Args:
        columns: those to show; None: all.
    """
    shown_columns = range(len(header)) if columns is None else columns
    table = [[row[column] for column in shown_columns] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [_aligned(row, widths) for row in table]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def fitting(header: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> list[int]:
    """The columns of a table that is no wider than a terminal: those called `spare` go one by one, if they must."""
    columns = list(range(len(header)))
    for name in spare:
        if _width(header, rows, columns) > WIDTH:
            columns = [column for column in columns if header[column] != name]
    return columns


def _width(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    return len(text_rows(header, rows, columns)[0])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])


# --- markdown --------------------------------------------------------------------------------------------------------


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a markdown table, the first `left` columns at the left and the others at the right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, rule, *rows]]
    return [f"| {' | '.join(row)} |" for row in cells]


def markdown_report(summary: Mapping[str, Any], plot: str | None) -> str:
    """report.md: what was run, the results, what they are against the full cache and rivals, and the plot if any."""
    run = summary["run"]
    how = "" if all(metric_info(metric).pooled for metric in run["metrics"]) else ", greedy decoding"
    lines = [f"# {run['name']}", "", f"{run['task']} with {run['model']}{how}.", ""]
    lines += [*markdown_rows(*results_rows(summary, intervals=True)), ""]
    lines += [*(f"- {note}" for note in notes(summary)), *([""] if notes(summary) else []), *reading(run["metrics"])]
    if plot:
        lines += ["", f"![quality against mean cache length]({plot})"]
    if (timed := speed_rows(summary))[1]:
        lines += ["", "## After a long prompt", "", *markdown_rows(*timed), "", SPEED]
    for title, rows, left in comparison_tables(summary):
        lines += ["", f"## {title}", "", *markdown_rows(*rows, left=left)]
    if any(entry.get("paired") for entry in summary["methods"].values()):
        lines += ["", *PAIRED]
    return "\n".join(lines) + "\n"


PAIRED = [
    "A difference is the row's method minus the other one, on the samples that both have, with its 95% interval",
    "(paired bootstrap) and a two-sided p-value (paired randomisation test), not corrected for the number of",
    "comparisons. The rival is the best method with another policy but the full cache; if some of these hold about as",
    "much (mean cache within 10%), the best of those. Variants of a policy are rivals only where there are no others.",
    "A ratio of two losses has its paired bootstrap interval and a one-sided p-value: the share of resamples in which",
    "it is not below 1, not corrected either. With a handful of samples it is too small: look at the difference's.",
]


def reading(metrics: Sequence[str]) -> list[str]:
    """How to read results in these metrics: lines of prose."""
    infos = [metric_info(metric) for metric in metrics]
    losses = ", ".join(info.label for info in infos if not info.higher_is_better)
    others = ", ".join(info.label for info in infos if not info.percent)
    percent = f" in percent{f' (not {others})' if others else ''}" if any(info.percent for info in infos) else ""
    pooled = " (perplexity: over all tokens)" if any(info.pooled for info in infos) else ""
    return [
        f"Scores are means over the samples{pooled}{percent}, with 95% bootstrap intervals.",
        *([f"Lower is better for {losses}."] if losses else []),
        *(["Answer tokens are the mean length of an answer, with the token that ends it."] if not pooled else []),
        "Cache lengths are tokens per head over the decode calls, as measured: the mean over all samples and the",
        "highest of any. MiB are what was allocated for it: keys and values of all layers, and scores where a policy",
        "sums them up. Both reductions are against a cache that never evicts and allocates exactly its tokens. Buffers",
        "have room to grow, so in bytes the full cache itself is below 1x. Tokens/s are the new tokens (answered, or",
        "predicted in a text) over the time of their batches, which includes reading the prompts and warming up, but",
        "not loading the model and measuring fidelity.",
    ]
