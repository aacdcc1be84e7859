"""What is logged: an offline run is read back from its file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import ANY

import pytest

from buzz.evaluation.measure.summary import summarise
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.runner import run
from buzz.evaluation.show.tracking import track
from buzz.evaluation.show.wandb_log import mean_curve
from tests.evaluation.tracking_toys import (
    FULL,
    NARROW,
    WIDE,
    isolated,
    make_config,
    needs_wandb,
    only_run,
    record,
    summary_of,
    whole_run,
)
from tests.evaluation.wandb_reader import read_runs


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Iterator[Path]:
    yield from isolated(monkeypatch, tmp_path)


@needs_wandb
def test_a_run_is_read_back(folder, tmp_path, capfd):
    summary = whole_run(folder, facts={"git": "abc123", "versions": {"torch": "2"}})
    found = only_run(folder)

    config = {key: value for key, value in found.config.items() if key != "_wandb"}
    assert config == {**make_config(), "environment": {"git": "abc123", "versions": {"torch": "2"}}}
    assert (found.run.project, found.run.run_group, found.run.job_type) == ("trial", "tiny", "xsum")
    assert (found.run.display_name, set(found.run.tags)) == ("tiny", {"tiny-llama", "xsum"})
    assert found.exit_code == 0

    running = [row for row in found.history if "samples" in row]
    assert [row["samples"] for row in running] == [2, 4] * 3
    assert running[0]["running/full/rouge1"] == pytest.approx(0.05)
    assert running[1]["running/full/rouge1"] == pytest.approx(0.15)
    assert running[1]["running/full/mean_tokens"] == pytest.approx(21.5)
    assert running[1]["running/full/tokens_per_second"] == pytest.approx(10)
    assert running[5]["running/streaming_budget0_4/rouge1"] == pytest.approx(0.075)
    assert found.metrics["running/*"].step_metric == "samples"

    table = found.tables["tables/streaming_window20"]
    assert table["id"] == ["s0", "s1", "s2", "s3"]
    assert set(table["method"]) == {WIDE}
    assert table["prompt_tokens"] == [40, 41, 42, 43]
    assert table["new_tokens"] == [5] * 4
    assert table["output"][3] == "output 3"
    assert table["reference"][3] == "reference 3"
    assert table["rougeL"] == pytest.approx([0, 0.05, 0.1, 0.15])
    assert table["mean_tokens"] == [20, 21, 22, 23]
    assert table["peak_tokens"] == [30] * 4
    assert table["seconds"] == [0.5] * 4

    entry = summary["methods"][WIDE]
    prefix = "xsum/streaming_window20/"
    assert found.summary[prefix + "rougeL"] == entry["metrics"]["rougeL"]["mean"]
    assert [found.summary[prefix + f"rougeL_ci95_{end}"] for end in ("low", "high")] == entry["metrics"]["rougeL"][
        "ci95"
    ]
    assert {key: found.summary[prefix + key] for key in entry["cache"]} == entry["cache"]
    assert found.summary[prefix + "rougeL_p_full"] == entry["paired"]["full"]["metrics"]["rougeL"]["p"]
    assert found.summary[prefix + "rival"] == entry["paired"]["rival"]["method"] == NARROW
    difference = entry["paired"]["rival"]["metrics"]["rouge1"]["difference"]
    assert found.summary[prefix + "rouge1_minus_rival"] == difference
    assert found.summary[prefix + "rougeL_retention"] == pytest.approx(1)
    assert found.summary[prefix + "n"] == 4
    assert not any(key.startswith("running/") for key in found.summary)

    methods = found.tables["tables/methods"]
    assert methods["method"] == [FULL, WIDE, NARROW]
    assert methods["policy"] == ["full", "streaming", "streaming"]
    assert methods["rougeL"] == [entry["metrics"]["rougeL"]["mean"] for entry in summary["methods"].values()]
    assert methods["failed"] == [None] * 3
    assert capfd.readouterr().err.splitlines() == [
        f"tracking: offline; upload it with: wandb sync {next(folder.glob('wandb/offline-run-*'))}"
    ]


@needs_wandb
def test_a_run_of_the_runner_is_read_back(write_config):
    config = load_config(write_config(wandb={"mode": "offline"}, output="real"))
    summary = run(config)
    assert run(config) == {**summary, "run": {**summary["run"], "finished": ANY}}  # done already: the summary anew
    first, second = read_runs(Path("real"))
    assert second.run.run_id == first.run.run_id
    assert [row["samples"] for row in first.history if "samples" in row] == [4, 6] * len(config.methods)
    assert not any("samples" in row for row in second.history)
    assert first.config["environment"]["versions"]["torch"]
    for method in config.methods:
        kept = [json.loads(line) for line in Path(f"real/samples/{method.name}.jsonl").read_text().splitlines()]
        key = re.sub(r"[^\w]", "_", method.name)
        table = first.tables[f"tables/{key}"]
        assert f"tables/{key}" not in second.tables
        assert sorted(table["id"]) == sorted(row["id"] for row in kept)
        by_id = {row["id"]: row for row in kept}
        for metric, figure in summary["methods"][method.name]["metrics"].items():
            values = [by_id[name]["metrics"][metric] for name in table["id"]]
            assert table[metric] == values
            for found in (first, second):
                assert found.summary[f"xsum/{key}/{metric}"] == figure["mean"]
    page = Path("real/report.html").read_bytes()
    assert second.pages == {"report": page}  # as it is, for a browser that has no network
    assert set(first.pages) == {"report"}
    assert {"charts/cache_length", "charts/rougeL"} <= set(second.config["_wandb"]["visualize"])


@needs_wandb
def test_a_report_is_logged_if_there_is_one(folder, capfd):
    page = folder / "report.html"
    with track(make_config(), folder) as tracker:
        tracker.report(page)
        page.write_text("<!doctype html><title>\u2b22</title>", encoding="utf-8")
        tracker.report(page)
    found = only_run(folder)
    assert found.pages == {"report": page.read_bytes()}
    assert len([row for row in found.history if "report" in row]) == 1
    assert "warning" not in capfd.readouterr().err


@needs_wandb
def test_charts_are_read_back(folder):
    whole_run(folder)
    found = only_run(folder)
    charts = found.config["_wandb"]["visualize"]
    assert set(charts) == {
        *("charts/rouge1", "charts/rouge1_lines", "charts/rougeL", "charts/rougeL_lines"),
        *("charts/cache_length", "charts/cache_length_mean"),
    }
    for key, chart in charts.items():  # each draws a table that is there
        (query,) = chart["panel_config"]["userQuery"]["queryFields"]
        (named,) = [part["args"][0]["value"] for part in query["fields"] if part["name"] == "summaryTable"]
        assert named == f"Custom Chart Tables/{key}_table"
        assert set(chart["panel_config"]["fieldSettings"].values()) <= set(found.tables[named])

    points = found.tables["Custom Chart Tables/charts/rougeL_table"]
    assert points["method"] == [FULL, WIDE, NARROW]
    assert points["mean_tokens"] == [21.5, 21.5, 10.0]
    assert points["rougeL"] == pytest.approx([0.075, 0.075, 0.0375])
    lines = found.tables["Custom Chart Tables/charts/rougeL_lines_table"]  # streaming alone has two methods
    assert lines["lineKey"] == ["streaming", "streaming"]
    assert lines["step"] == [10.0, 21.5]
    assert lines["lineVal"] == pytest.approx([0.0375, 0.075])

    lengths = found.tables["Custom Chart Tables/charts/cache_length_table"]
    assert lengths["lineKey"] == [FULL, FULL, WIDE, WIDE, NARROW, NARROW]
    assert lengths["step"] == [1, 4] * 3
    assert lengths["lineVal"] == [20, 26, 20, 26, 8, 12]


@needs_wandb
def test_everything_is_in_the_run_folder_and_no_code(folder, tmp_path):
    whole_run(folder)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".py", ".patch"))}
    assert "output.log" not in names
    assert list((tmp_path / "elsewhere").iterdir()) == []
    staged = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and "logs" not in path.parts]
    assert staged == []  # so that a run folder can be copied elsewhere and uploaded from there


@needs_wandb
def test_the_group_is_the_one_of_the_config(folder):
    with track(make_config(wandb={"mode": "offline", "group": "a sweep"}), folder):
        pass
    assert only_run(folder).run.run_group == "a sweep"


@needs_wandb
def test_perplexities_are_pooled(folder):
    config = make_config(methods=["full"])
    rows = [
        record(i, reference=None, output="", new_tokens=n, metrics={"perplexity": nll}, weight=n, blocks=[[n, n * nll]])
        for i, (n, nll) in enumerate([(10, 1.0), (30, 2.0)])
    ]
    with track(config, folder) as tracker:
        tracker.samples("full", rows, 2, 2)
        tracker.method_done("full", rows)
        tracker.summary(summary_of({"full": rows}, ["perplexity"]))
    found = only_run(folder)
    assert found.history[0]["running/full/perplexity"] == pytest.approx(math.exp(1.75))
    assert found.summary["xsum/full/perplexity"] == pytest.approx(math.exp(1.75))
    assert found.tables["tables/full"]["perplexity"] == pytest.approx([math.exp(1), math.exp(2)])


@needs_wandb
def test_failed_methods_and_odd_names(folder):
    config = make_config(methods=["full", {"policy": "h2o", "name": "a-b"}, {"policy": "h2o", "name": "a.b"}])
    records = {"full": [record(0, policy={"name": "full"}, output="x" * 5000)], "a-b": [], "a.b": [record(0)]}
    run = {"metrics": ["rougeL"], "headline": "rougeL", "full": FULL}
    with track(config, folder) as tracker:
        for name, rows in records.items():
            tracker.method_done(name, rows)
        tracker.summary(summarise(records, ["rougeL"], {"a-b": "out of memory"}, run))
    found = only_run(folder)
    assert found.summary["xsum/a_b/failed"] == "out of memory"
    assert found.summary["xsum/a_b/n"] == 0
    assert found.summary["xsum/a_b_2/rougeL"] == 0
    assert found.tables["tables/methods"]["failed"] == [None, "out of memory", None]
    assert found.tables["tables/a_b_2"]["method"] == ["a.b"]
    assert "tables/a_b" not in found.tables
    (output,) = found.tables["tables/full"]["output"]
    assert len(output) == 2000
    assert output.endswith("x…")


def test_mean_curve_is_over_the_samples_that_go_on():
    curve = mean_curve([[[1, 10], [3, 20]], [[1, 20], [2, 30], [5, 60]]])
    assert curve == [[1, 15], [2, 22.5], [3, 30], [5, 60]]
    long = mean_curve([[[call, 2 * call] for call in range(1, 1001)]])
    assert len(long) == 256
    assert long[0] == [1, 2]
    assert long[-1] == [1000, 2000]
