"""What a run logs to Weights & Biases, and under which keys: docs/wandb.md lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from buzz.evaluation.measure.metric_info import metric_info
from buzz.evaluation.measure.resampling import Resampler
from buzz.evaluation.measure.summary import MIB, Scores

Record = Mapping[str, Any]

_ROWS = 10_000  # of a table; W&B shows no more
_LETTERS = 2_000  # of an output or a reference in a table
_CURVES = 8  # samples of a method whose cache lengths are averaged
_POINTS = 256  # of such a curve


class WandbLog:
    """Logs a run's records and summary to one W&B run.

    Methods go by their names with all but letters, digits and `_` replaced by `_`, since W&B cannot sort by other
    keys: `streaming-budget0.4` is `streaming_budget0_4`.

    Args:
        run: as `wandb.init` returned it.
        config: of the run, as plain data.
        known: by method and sample id, the records that an earlier start left.
        tables: by method, the rows of the tables that earlier starts logged.
    """

    def __init__(
        self, run: Any, config: Mapping[str, Any], known: Mapping[str, Mapping[str, Record]], tables: Mapping[str, int]
    ) -> None:
        self.run = run
        self.tables = dict(tables)
        self._keys = _unique_keys([method["name"] for method in config["methods"]])
        self._task = _key(config["task"]["name"])
        self._records = {name: dict(known.get(name, {})) for name in self._keys}
        run.define_metric("samples", hidden=True, summary="none")
        run.define_metric("running/*", step_metric="samples", summary="none")

    def samples(self, method: str, records: Iterable[Record], done: int, total: int) -> None:
        """The method's means so far, over the number of samples."""
        rows = self._records[method]
        rows.update((record["id"], record) for record in records)
        if not rows:
            return
        scores = Scores(list(rows.values()), Resampler())
        seconds = sum(row["seconds"] for row in rows.values())
        figures = {metric: scores.figure(metric, ids) for metric in _metrics(rows) if (ids := scores.ids(metric))}
        figures["mean_tokens"] = scores.mean_tokens
        figures["done"] = done / total if total else 1.0
        if seconds:
            figures["tokens_per_second"] = sum(row["new_tokens"] for row in rows.values()) / seconds
        self.run.log({"samples": done, **{f"running/{self._keys[method]}/{k}": v for k, v in figures.items()}})

    def method_done(self, method: str, records: Iterable[Record]) -> None:
        """The table of the method's samples, unless this W&B run has it."""
        rows = {record["id"]: record for record in records}
        self._records[method] = rows
        if not rows or self.tables.get(method) == len(rows):
            return
        self.run.log({f"tables/{self._keys[method]}": _sample_table(method, list(rows.values())[:_ROWS])})
        self.tables[method] = len(rows)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """The figures of every method, and the charts; also the tables that are missing."""
        methods, metrics = summary["methods"], summary["run"]["metrics"]
        for method, entry in methods.items():  # first, since they wait for no server
            prefix = f"{self._task}/{self._keys[method]}"
            self.run.summary.update({f"{prefix}/{key}": value for key, value in _figures(entry).items()})
        for method, rows in self._records.items():
            self.method_done(method, list(rows.values()))
        measured = {method: entry for method, entry in methods.items() if entry.get("metrics")}
        charts = {"tables/methods": _method_table(methods, metrics), **_length_charts(self._records)}
        for metric in metrics:
            charts |= _quality_charts(metric, measured)
        self.run.log(charts)

    def report(self, page: Path) -> None:
        """The run's page, as it is: one HTML file that needs nothing else."""
        import wandb

        self.run.log({"report": wandb.Html(str(page), inject=False)})


# --- keys ------------------------------------------------------------------------------------------------------------


def _key(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _unique_keys(names: Sequence[str]) -> dict[str, str]:
    """A key for every method: `a-b` and `a.b` become `a_b` and `a_b_2`."""
    keys: dict[str, str] = {}
    for name in names:
        key, number = _key(name), 2
        while key in keys.values():
            key, number = f"{_key(name)}_{number}", number + 1
        keys[name] = key
    return keys


def _figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One method of summary.json, flat; what is null is left out."""
    flat: dict[str, Any] = {"n": entry["n"], "failed": entry.get("failed")}
    for metric, figure in entry.get("metrics", {}).items():
        low, high = figure["ci95"]
        flat |= {metric: figure["mean"], f"{metric}_ci95_low": low, f"{metric}_ci95_high": high}
    for against, comparison in entry.get("paired", {}).items():  # full, rival, or `against NAME`
        other = against.replace(" ", "_")
        flat[other] = comparison["method"]
        for metric, figure in comparison["metrics"].items():
            low, high = figure["ci95"]
            flat |= {
                f"{metric}_minus_{other}": figure["difference"],
                f"{metric}_minus_{other}_ci95_low": low,
                f"{metric}_minus_{other}_ci95_high": high,
                f"{metric}_p_{other}": figure["p"],
            }
    flat |= {f"{metric}_retention": share for metric, share in entry.get("retention", {}).items()}
    flat |= entry.get("cache", {}) | {"answer_tokens": entry.get("answer_tokens")}
    seconds = entry.get("seconds", {})
    flat |= {"seconds": seconds.get("total"), "tokens_per_second": seconds.get("tokens_per_second")}
    return {key: value for key, value in flat.items() if value is not None}


# --- tables ----------------------------------------------------------------------------------------------------------


def _metrics(rows: Mapping[str, Record]) -> list[str]:
    """The metrics that the records have, in their order."""
    return list(dict.fromkeys(metric for row in rows.values() for metric in row["metrics"]))


def _sample_table(method: str, rows: Sequence[Record]) -> Any:
    metrics = _metrics({row["id"]: row for row in rows})
    columns = ["id", "method", "prompt_tokens", "new_tokens", "output", "reference"]
    columns += [*metrics, "mean_tokens", "peak_tokens", "mean_mib", "peak_mib", "seconds"]
    data = [
        [
            str(row["id"]),
            method,
            row["prompt_tokens"],
            row["new_tokens"],
            _text(row.get("output", "")),
            _text(row["reference"]),
            *(_of_sample(metric, row) for metric in metrics),
            float(row["cache"]["mean_tokens"]),
            row["cache"]["peak_tokens"],
            *(row["cache"][key] / MIB if key in row["cache"] else None for key in ("mean_bytes", "peak_bytes")),
            float(row["seconds"]),
        ]
        for row in rows
    ]
    return _table(columns, data)


def _of_sample(metric: str, row: Record) -> float | None:
    """A sample's metric; of a pooled one, which records keep in nats, its perplexity."""
    value = row["metrics"].get(metric)
    if value is None:
        return None
    return float(np.exp(value)) if metric_info(metric).pooled else float(value)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else " | ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _method_table(methods: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> Any:
    columns = ["method", "policy", "n", "mean_tokens", "peak_tokens", "reduction"]
    columns += ["mean_mib", "peak_mib", "reduction_bytes", "answer_tokens", "tokens_per_second", "failed"]
    columns += [column for metric in metrics for column in (metric, f"{metric}_ci95_low", f"{metric}_ci95_high")]
    data = []
    for method, entry in methods.items():
        figures = {"method": method, "policy": entry.get("policy"), **_figures(entry)}
        data.append([figures.get(column) for column in columns])
    return _table(columns, data)


def _table(columns: Sequence[str], data: Sequence[Sequence[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in data], allow_mixed_types=True)


# --- charts ----------------------------------------------------------------------------------------------------------


def _quality_charts(metric: str, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A metric against mean cache length: a point for every method, a line for every policy with several methods."""
    import wandb

    points = [
        (entry["cache"]["mean_tokens"], entry["metrics"][metric]["mean"], method, entry.get("policy") or method)
        for method, entry in methods.items()
        if metric in entry["metrics"]
    ]
    if not points:
        return {}
    title = f"{metric_info(metric).label} against mean cache length"
    table = _table(["mean_tokens", metric, "method", "policy"], points)
    charts = {f"charts/{metric}": wandb.plot.scatter(table, "mean_tokens", metric, title=title, split_table=True)}
    lines: dict[str, list[Any]] = {}
    for point in sorted(points):
        lines.setdefault(point[3], []).append(point)
    lines = {policy: line for policy, line in lines.items() if len(line) > 1}
    if lines:
        xs, ys = ([[point[i] for point in line] for line in lines.values()] for i in (0, 1))
        charts[f"charts/{metric}_lines"] = _lines(xs, ys, list(lines), title, "mean cached tokens")
    return charts


def _length_charts(records: Mapping[str, Mapping[str, Record]]) -> dict[str, Any]:
    """Cached tokens over the decode calls, a line for every method: of one sample, and the mean of several."""
    curves = {
        method: {name: row["cache"]["curve"] for name, row in rows.items() if row["cache"].get("curve")}
        for method, rows in records.items()
    }
    curves = {method: found for method, found in curves.items() if found}
    if not curves:
        return {}
    shared = [name for name in next(iter(curves.values())) if all(name in found for found in curves.values())]
    charts = {}
    if shared:
        first = [found[shared[0]] for found in curves.values()]
        title = f"Cached tokens, sample {shared[0]}"
        charts["charts/cache_length"] = _length_lines(first, list(curves), title)
    several = [mean_curve(list(found.values())[:_CURVES]) for found in curves.values()]
    charts["charts/cache_length_mean"] = _length_lines(
        several, list(curves), "Cached tokens, mean of the first samples"
    )
    return charts


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The mean of cache-length curves, at up to 256 calls; at each call, of those that go on so far.

    Args:
        curves: of (call, tokens) points each, calls ascending. Between its points a curve is taken as straight.
    """
    points = [np.asarray(curve, dtype=np.float64) for curve in curves]  # [points, 2] each
    calls = np.unique(np.concatenate([curve[:, 0] for curve in points]))
    if len(calls) > _POINTS:
        calls = calls[np.linspace(0, len(calls) - 1, _POINTS).round().astype(int)]
    tokens = np.stack([np.interp(calls, curve[:, 0], curve[:, 1], right=np.nan) for curve in points])
    return np.stack([calls, np.nanmean(tokens, axis=0)], axis=1).tolist()


def _length_lines(curves: Sequence[Sequence[Sequence[float]]], names: list[str], title: str) -> Any:
    xs, ys = ([[point[i] for point in curve] for curve in curves] for i in (0, 1))
    return _lines(xs, ys, names, title, "decode call")


def _lines(xs: list[list[Any]], ys: list[list[Any]], names: list[str], title: str, xname: str) -> Any:
    import wandb

    return wandb.plot.line_series(xs, ys, keys=names, title=title, xname=xname, split_table=True)
