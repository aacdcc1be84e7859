"""Tables: what their cells say, and that they fit."""

from __future__ import annotations

import math

import pytest

from buzz.evaluation.measure.metric_info import METRIC_INFO
from buzz.evaluation.show.table import (
    WIDTH,
    comparison_tables,
    fitting,
    headline_rows,
    markdown_report,
    markdown_rows,
    paired_rows,
    ratio_rows,
    reading,
    results_rows,
    retention_rows,
    shown,
    shown_interval,
    shown_mib,
    shown_p,
    text_rows,
    text_table,
)
from tests.evaluation.synthetic import method, record, summary_of

WIDE = [
    "rouge1", "rouge2", "rougeL", "self_bleu", "answer_nll", "fidelity_kl", "fidelity_top1", "fidelity_rougeL",
]  # fmt: skip


def summary(**facts):
    return summary_of(
        {
            "full": method("full", 400, rouge1=[0.30, 0.50], answer_nll=[2.0, 3.0]),
            "buzz": method("buzz", 100, rouge1=[0.25, 0.41], answer_nll=[2.5, 3.25]),
            "h2o": method("h2o", 105, rouge1=[0.20, 0.42], answer_nll=[2.5, 3.5]),
        },
        **facts,
    )


def cells(table, row: str) -> dict[str, str]:
    """One row by its columns; of columns of the same name the first."""
    header, rows = table
    found = next(cells for cells in rows if cells[0] == row)
    return dict(reversed(list(zip(header, found, strict=True))))


# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("rouge1", 0.12345, "12.35"),
        ("rouge1", 1.0, "100.00"),
        ("recall", 0.0, "0.00"),
        ("perplexity", 15.268, "15.3"),
        ("perplexity", 1234.5, "1234"),
        ("perplexity", 4.0, "4.00"),
        ("answer_nll", 0.012345, "0.0123"),
        ("answer_nll", 0.0, "0"),
        ("fidelity_kl", 1.2345e-9, "1.23e-09"),
        ("perplexity", math.inf, "inf"),
        ("a metric of tomorrow", 2.0, "2.00"),
    ],
)
def test_values(metric, value, text):
    assert shown(metric, value) == text


def test_differences_intervals_and_p_values():
    assert shown("rouge1", 0.012, sign=True) == "+1.20"
    assert shown("perplexity", -2.349, sign=True) == "-2.35"
    assert shown("answer_nll", 0.0, sign=True) == "+0"
    assert shown_interval("rouge1", [0.1, 0.25]) == "[10.00, 25.00]"
    assert shown_interval("perplexity", [-0.5, 12.0], sign=True) == "[-0.500, +12.0]"
    assert [shown_p(p) for p in (1.0, 0.0321, 0.001, 0.0009)] == ["1.000", "0.032", "0.001", "<0.001"]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_results_state_quality_and_memory():
    row = cells(results_rows(summary()), "buzz")
    assert row == {
        "method": "buzz", "n": "2", "ROUGE-1": "33.00", "answer NLL": "2.88", "answer tokens": "10.0",
        "mean cache": "100.0", "peak cache": "120", "reduction": "4.00x", "MiB": "1.22",
        "in bytes": "4.00x", "tokens/s": "20.0", "seconds": "1.0",
    }  # fmt: skip
    with_intervals = cells(results_rows(summary(), intervals=True), "buzz")
    assert with_intervals["ROUGE-1"] == "33.00 [25.00, 41.00]"
    assert with_intervals["answer NLL"] == "2.88 [2.50, 3.25]"


def test_answers_lengths_in_every_table_of_results():
    rows = [record(f"s{i}", "buzz", {"rouge1": 0.5}, new_tokens=tokens) for i, tokens in enumerate((3, 8))]
    made = summary_of({"full": [], "buzz": rows})
    assert cells(results_rows(made), "buzz")["answer tokens"] == "5.5"
    assert cells(headline_rows(made), "buzz")["answer tokens"] == "5.5"
    assert cells(headline_rows(made), "full")["answer tokens"] == "-"
    read = summary_of({"buzz": [record("s0", "buzz", {"perplexity": 2.0}, weight=9)]})
    old = summary_of({"buzz": rows})
    del old["methods"]["buzz"]["answer_tokens"]  # a run of an older version
    for without in (read, old):
        assert "answer tokens" not in results_rows(without)[0] + headline_rows(without)[0]
        assert len(results_rows(without)[0]) == len(results_rows(without)[1][0])


def test_every_known_metric_has_its_label():
    metrics = list(METRIC_INFO)
    rows = [record("s0", "buzz", dict.fromkeys(metrics, 0.5), weight=10)]
    header, _ = results_rows(summary_of({"buzz": rows}))
    assert header[2:-7] == [info.label for info in METRIC_INFO.values()]
    assert len(set(header)) == len(header)


def test_pairs():
    full, rival = paired_rows(summary(), "full"), paired_rows(summary(), "rival")
    assert [row[:2] for row in full[1]] == [["buzz", "full"], ["h2o", "full"]]
    assert [row[:2] for row in rival[1]] == [["buzz", "h2o"], ["h2o", "buzz"]]
    row = cells(full, "buzz")
    assert row["ROUGE-1"].startswith("-7.00 [-9.00, -5.00] p=0.")
    assert row["answer NLL"].startswith("+0.375 [+0.250, +0.500] p=0.")
    assert (row["mean cache"], row["peak cache"], row["reduction"]) == ("100.0", "120", "4.00x")
    assert cells(rival, "buzz")["ROUGE-1"].startswith("+2.00 [-1.00, +5.00] p=")
    alone = summary_of({"buzz": method("buzz", rouge1=[0.5])})
    assert paired_rows(alone, "full")[1] == paired_rows(alone, "rival")[1] == []


def test_ratios():
    rows = {
        "h2o": method("h2o", rouge1=[0.5, 0.4], fidelity_kl=[0.2, 0.4]),
        "buzz": method("buzz", rouge1=[0.5, 0.3], fidelity_kl=[0.1, 0.1]),
    }
    made = summary_of(rows, compare={"h2o": {"buzz": "h2o"}})
    header, ((name, over, cell, *_),) = ratio_rows(made, "against h2o")
    assert header[:3] == ["method", "over", "KL to full"]
    assert (name, over) == ("buzz", "h2o")
    assert cell == "0.333 [0.25, 0.5] p<0.001"
    assert ratio_rows(made, "rival")[1] == []
    titles = [title for title, *_ in comparison_tables(made)]
    assert titles == ["Against the best rival", "Against h2o", "Ratio to h2o"]


def test_retention():
    header, rows = retention_rows(summary())
    assert header == ["method", "ROUGE-1", "mean cache", "peak cache", "reduction", "MiB", "in bytes"]
    assert rows[0][:2] == ["buzz", "82.5% [82.0, 83.3]"]
    assert retention_rows(summary_of({"buzz": method("buzz", rouge1=[0.5])}))[1] == []


def test_the_headline_alone():
    row = cells(headline_rows(summary(headline="answer_nll")), "h2o")
    assert row["answer NLL"] == "3.00"
    assert row["- full"] == "+0.500"
    assert row["- rival"] == "+0.125"
    assert row["tokens/s"] == "20.0"
    full = cells(headline_rows(summary()), "full")
    assert full["- full"] == full["- rival"] == full["p"] == "-"


def test_out_of_memory_is_told_in_the_cells():
    made = summary_of(
        {"full": [], "buzz": method("buzz", rouge1=[0.5], recall=[0.1]), "h2o": []},
        failures={"full": "out of memory", "h2o": "full, which it is matched with, did not finish"},
    )
    assert results_rows(made, intervals=True)[1][0] == ["full", "0", *["out of memory"] * 2, *["-"] * 8]
    assert results_rows(made)[1][2] == ["h2o", "0", *["-"] * 10]
    table = text_table(made)
    assert "full did not finish: out of memory" in table.splitlines()
    assert "h2o did not finish: full, which it is matched with, did not finish" in table.splitlines()
    assert "| full | 0 | out of memory | out of memory | - |" in markdown_report(made, None)
    assert headline_rows(made)[1][0][1] == "out of memory"


def test_a_metric_that_a_method_lacks():
    rows = {"full": method("full", rouge1=[0.5], fidelity_kl=[0.1]), "h2o": method("h2o", rouge1=[0.5])}
    made = summary_of(rows, headline="fidelity_kl")
    assert cells(results_rows(made), "h2o")["KL to full"] == "-"
    assert cells(paired_rows(made, "full"), "h2o")["KL to full"] == "-"
    assert cells(headline_rows(made), "h2o")["KL to full"] == "-"


# --- text ------------------------------------------------------------------------------------------------------------


def test_text_is_aligned():
    lines = text_table(summary()).splitlines()
    assert lines[0].split()[:3] == ["method", "n", "ROUGE-1"]
    assert set(lines[1]) == {"-", " "}
    assert len({len(line) for line in lines}) == 1
    assert text_rows(["a", "b"], [["long", "1"], ["x", "22"]]) == ["a      b", "----  --", "long   1", "x     22"]


def test_a_wide_table_is_cut_in_two():
    columns = {metric: [0.3, 0.4] for metric in WIDE}
    made = summary_of({"full": method("full", **columns), "buzz-budget0.4-stride5": method("buzz", **columns)})
    first, second = text_table(made).split("\n\n")
    assert max(map(len, first.splitlines() + second.splitlines())) <= WIDTH
    assert first.split("\n")[0].endswith("mean cache  peak cache  reduction   MiB  in bytes  tokens/s  seconds")
    assert second.split("\n")[0].split("  ")[-3:] == [
        "KL to full",
        "top-1 agreement",
        "ROUGE-L to full",
    ]  # in one piece
    assert [line.split()[0] for line in second.split("\n")[2:]] == ["full", "buzz-budget0.4-stride5"]


def test_spare_columns_go_where_a_table_is_too_wide():
    header, rows = ["method", "a", "b", "c"], [["x" * 101, "1", "2", "3" * 12]]
    assert fitting(header, rows, ["b", "a"]) == [0, 1, 3]
    assert fitting(header, [["x", "1", "2", "3"]], ["b", "a"]) == [0, 1, 2, 3]
    assert fitting(header, [["x" * 200, "1", "2", "3"]], ["b", "a"]) == [0, 3]


# --- markdown --------------------------------------------------------------------------------------------------------


def test_the_report_has_all_tables():
    report = markdown_report(summary(notes=["something to know"]), "quality.png")
    for part in ("# made", "task with model, greedy decoding.", "- something to know", "](quality.png)"):
        assert part in report
    row = (
        "| buzz | 2 | 33.00 [25.00, 41.00] | 2.88 [2.50, 3.25] | 10.0 | 100.0 | 120 | 4.00x | 1.22 | 4.00x | 20.0 | 1.0"
    )
    assert f"{row} |" in report
    titles = [line for line in report.splitlines() if line.startswith("## ")]
    assert titles == ["## Against the full cache", "## Against the best rival", "## Share of the full cache's score"]
    assert "not corrected for the number of\ncomparisons" in report
    tables = [line for line in report.splitlines() if line.startswith("| method")]
    assert all("mean cache | peak cache | reduction | MiB | in bytes" in line for line in tables)


def test_a_run_of_an_older_version_has_no_bytes():
    rows = method("buzz", rouge1=[0.5, 0.25])
    for row in rows[:1]:
        row["cache"] = {key: value for key, value in row["cache"].items() if "bytes" not in key}
    row = cells(results_rows(summary_of({"buzz": rows})), "buzz")
    assert (row["mean cache"], row["reduction"], row["MiB"], row["in bytes"]) == ("100.0", "4.00x", "-", "-")


@pytest.mark.parametrize(
    ("mib", "text"), [(0, "0"), (0.01234, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (12.34, "12.3"), (2048.4, "2048")]
)
def test_mib_have_shown_mib(mib, text):
    assert shown_mib(mib) == text


def test_a_report_without_pairs_or_answers():
    report = markdown_report(summary_of({"full": [record("a", "full", {"perplexity": 2.0}, weight=9)]}), None)
    assert "## " not in report
    assert "greedy" not in report
    assert "p-value" not in report
    assert "![" not in report


def test_how_to_read_it():
    assert reading(["rouge1"])[0] == "Scores are means over the samples in percent, with 95% bootstrap intervals."
    assert reading(["rouge1", "self_bleu", "answer_nll"])[:2] == [
        "Scores are means over the samples in percent (not answer NLL), with 95% bootstrap intervals.",
        "Lower is better for Self-BLEU, answer NLL.",
    ]
    assert "(perplexity: over all tokens), with" in reading(["perplexity"])[0]


def test_bars_in_names_are_escaped():
    assert markdown_rows(["a"], [["x|y"]]) == ["| a |", "| --- |", "| x\\|y |"]


@pytest.mark.parametrize(("full_bytes", "told"), [(400 * 16000.0, True), (400 * 12800.0, False)])
def test_a_full_cache_below_1x_is_explained(full_bytes, told):
    rows = [record("s0", "full", {"rouge1": 0.5}, 400.0)]
    rows[0]["cache"]["mean_bytes"] = full_bytes
    made = summary_of({"full": rows})
    assert ("0.80x" in text_table(made)) == told
    assert ("full caches have room to grow and are below 1x" in text_table(made)) == told
    assert max(map(len, text_table(made).splitlines())) <= WIDTH
