"""Several runs at a glance: every run is there, and the table fits a terminal."""

from __future__ import annotations

from buzz.evaluation.show.overview import markdown_overview, text_overview
from tests.evaluation.synthetic import method, summary_of


def made(*values: float):
    full, buzz = method("full", 400, rouge1=[0.3, 0.5]), method("buzz", 100, rouge1=list(values))
    return summary_of({"full": full, "buzz": buzz, "h2o": []}, {"h2o": "out of memory"})


def test_the_table_has_every_run():
    table = text_overview({"name": "grid", "runs": {"xsum-a": made(0.2, 0.4), "xsum-b": made(0.1, 0.3)}})
    first, second = table.split("\n\nxsum-b ")
    assert first.startswith("xsum-a (n = 2)")
    assert "30.00" in first
    assert "20.00" in second
    assert max(map(len, table.splitlines())) <= 120
    assert table.count("h2o did not finish: out of memory") == 2


def test_the_report_has_every_run():
    report = markdown_overview({"name": "grid", "runs": {"xsum-a": made(0.2, 0.4), "xsum-b": made(0.1, 0.3)}}, "f.png")
    assert "![quality against mean cache length](f.png)" in report
    assert "[All metrics](xsum-b/report.md)" in report
    assert "| buzz | 20.00 | [10.00, 30.00] | 10.0 | 100.0 | 120 | 4.00x | 1.22 | 4.00x | 20.0 | -20.00 |" in report
    assert report.count("Scores are means") == 1
    assert "![" not in markdown_overview({"name": "grid", "runs": {"a": made(0.2, 0.4)}}, None)
