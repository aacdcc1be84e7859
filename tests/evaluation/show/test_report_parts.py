"""Parts of a report: its first table, which answers it holds, and lines and names in its pictures."""

from __future__ import annotations

import re

import numpy as np
import pytest

from buzz.evaluation.measure.best import standing
from buzz.evaluation.show.plot import draw_panels
from buzz.evaluation.show.report.answers import MOST_SAMPLES, answers_of
from buzz.evaluation.show.report.folders import load_run
from buzz.evaluation.show.report.lines import apart, covering
from buzz.evaluation.show.report.page import render_page
from buzz.evaluation.show.report.pictures import _together, is_sweep, look_of, run_figures
from buzz.evaluation.show.report.tables import all_figures, first_table, table
from tests.evaluation.report_runs import answers, near, near_run, write_run
from tests.evaluation.synthetic import method, summary_of

# --- tables ----------------------------------------------------------------------------------------------------------


def text_of(html: str) -> list[str]:
    """The rows of a table, cells separated by bars."""
    rows = re.findall(r"<tr.*?</tr>", html)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in rows]
    return [" | ".join(re.sub(r"<.*?>", "", cell) for cell in row) for row in cells]


def made():
    rows = {
        "full": method("full", 400, rouge1=[0.6] * 8, fidelity_kl=[1e-8] * 8),
        "buzz": method("buzz", 100, rouge1=[0.3] * 8, fidelity_kl=[0.4] * 8),
        "comb": method("comb", 102, rouge1=[0.5] * 8, fidelity_kl=[0.1] * 8),
        "h2o": [],
    }
    summary = summary_of(rows, failures={"h2o": "out of memory"})
    return summary, standing(summary, rows)


def test_the_first_table_has_what_a_method_is_judged_by():
    *rows, comb, last = text_of(first_table(*made(), "x"))
    assert rows == [
        "method | ROUGE-1 | minus full | KL to full | answer tokens | cached tokens | MiB | tokens/s",
        "full reference | 60.00 [60.00, 60.00] | - | 1e-08 rounding | 10.0 | 400.0 1.00x | 4.88 1.00x | 20.0",
        "buzz | 30.00 [30.00, 30.00] | -30.00 p=0.009 | 0.400 [0.400, 0.400] | 10.0 | 100.0 4.00x | 1.22 4.00x | 20.0",
    ]
    assert comb.startswith(
        "comb | 50.00 [50.00, 50.00] best | -10.00 p=0.009 | 0.100 [0.100, 0.100] best | 10.0 | 102.0 3.92x"
    )
    assert last == "h2o | out of memory | - | out of memory | - | - | - | -"


def test_every_figure_is_in_the_other_one_and_the_best_are_marked_there_too():
    rows = text_of(all_figures(*made(), "x"))
    assert rows[0].startswith("method | n | ROUGE-1 | KL to full | answer tokens | mean cache | peak cache | ")
    assert rows[3].startswith(
        "comb | 8 | 50.00 [50.00, 50.00] best | 0.100 [0.100, 0.100] best | 10.0 | 102.0 | 122 | "
    )
    assert rows[2].startswith("buzz | 8 | 30.00 [30.00, 30.00] | 0.400 [0.400, 0.400] | 10.0 | 100.0 | ")


def test_methods_stand_with_those_that_hold_about_as_much():
    rows = {"full": method("full", 400, rouge1=[0.6] * 8)}
    for policy in ("comb", "h2o"):
        for reduction in (2, 4):
            rows[f"{policy}-reduction{reduction}"] = method(policy, 400 / reduction, rouge1=[0.5] * 8)
    summary = summary_of(rows)
    names = [row.split(" | ")[0] for row in text_of(first_table(summary, standing(summary, rows), "x"))]
    assert names == [
        *("method", "full reference"),
        *("about 200 cached tokens, 2x less", "comb-reduction2", "h2o-reduction2"),
        *("about 100 cached tokens, 4x less", "comb-reduction4", "h2o-reduction4"),
    ]


def test_columns_can_be_left_out_and_texts_are_escaped():
    rows = (["method", "minus", "a & b", "MiB"], [["<x>", "full", "+1.0 [+0.5, +1.5] p<0.001", "3"]])
    html = table(rows, "'quoted'", 2, without=["MiB"])
    assert "<th scope='row'>&lt;x&gt;</th><th scope='row'>full</th>" in html
    assert "<td>+1.0 <small>[+0.5, +1.5]\np&lt;0.001</small></td></tr>" in html
    assert "MiB" not in html
    assert "aria-label='&#x27;quoted&#x27;'" in html


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_furthest_of_many_samples_are_shown(tmp_path):
    many = MOST_SAMPLES + 60
    far = [2.0 if i in (110, 159) else 1.0 - i / 1000 if i >= 100 else 0.001 * i for i in range(many)]
    methods = {"full": near("full", [0.0] * many, 400.0), "buzz": near("buzz", far), "h2o": near("h2o", far)}
    found = answers_of(load_run(write_run(tmp_path / "run", methods)))
    names = [int(sample["id"][1:]) for sample in found["samples"]]
    furthest = sorted(range(many), key=lambda i: -far[i])[:50]
    assert set(furthest) <= set(names)
    assert names == sorted({*furthest, *range(50)})
    assert (found["total"], found["measure"]) == (many, "KL to full")
    assert [answer["distance"] for answer in found["samples"][5]["answers"]] == [None, 0.005, 0.005]


def test_without_distances_answers_are_compared_as_texts(tmp_path):
    methods = {"full": answers("full", ["one two", ""]), "buzz": answers("buzz", ["one three", ""])}
    found = answers_of(load_run(write_run(tmp_path / "run", methods)))
    assert found["measure"] == "ROUGE-L to full"
    assert [sample["answers"][1]["distance"] for sample in found["samples"]] == [pytest.approx(0.5), 0.0]
    alone = answers_of(load_run(write_run(tmp_path / "alone", {"buzz": answers("buzz", ["a"])})))
    assert alone["measure"] is None
    assert alone["samples"][0]["answers"][0]["distance"] is None


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_distance_that_is_no_number_counts_as_none(tmp_path):
    methods = {"full": near("full", [0.0] * 2), "buzz": near("buzz", [float("inf"), 0.5])}
    found = answers_of(load_run(write_run(tmp_path / "run", methods)))
    assert [sample["answers"][1]["distance"] for sample in found["samples"]] == [None, 0.5]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_lines_that_run_over_each_other_take_turns():
    x = np.arange(50.0)
    curves = {
        "full": np.stack([x, 400 + x], 1),
        "h2o": np.stack([x, 0 * x + 100], 1),
        "buzz": np.stack([x, 100 + 2 * (x % 10)], 1),  # touches the line below it once a round
        "tova": np.stack([x[:30], 0 * x[:30] + 101], 1),
        "late": np.stack([x + 60, 0 * x + 100], 1),
    }
    assert sorted(map(sorted, covering(curves, zero=True))) == [["buzz"], ["full"], ["h2o", "tova"], ["late"]]
    lines = {name: np.stack([x, np.full(50, value)], 1) for name, value in (("a", 20.0), ("b", 20.1), ("c", 22.0))}
    assert covering(lines, zero=True) == [["a", "b"], ["c"]]
    assert covering(lines, zero=False) == [["a"], ["b"], ["c"]]  # seen from near, they are apart


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        ([0.1, 0.5, 0.9], 0.1, [0.1, 0.5, 0.9]),
        ([0.5, 0.5, 0.5], 0.1, [0.4, 0.5, 0.6]),
        ([0.0, 0.0], 0.2, [0.0, 0.2]),
        ([0.2, 0.95, 1.0], 0.1, [0.2, 0.9, 1.0]),
        ([0.4, 0.5, 0.52], 0.1, [0.373, 0.473, 0.573]),
    ],
)
def test_names_are_moved_as_little_as_it_takes(places, gap, expected):
    assert apart(places, gap) == pytest.approx(expected, abs=1e-3)


def test_more_names_than_fit_still_keep_their_distance():
    found = apart([0.5] * 20, 0.1)
    assert np.diff(found) == pytest.approx([0.1] * 19)


def test_every_picture_has_a_second_layout_for_a_phone(tmp_path):
    run = load_run(near_run(tmp_path / "run"))
    figures = run_figures(run, tmp_path, look_of([run.summary]))
    assert [(figure.title, figure.quality) for figure in figures] == [
        ("Quality at equal memory", True),
        ("Cache length over time", False),
    ]
    for figure in figures:
        wide, narrow = figure.paths[1].read_text(), figure.narrow
        size = [float(re.search(r'viewBox="0 0 ([\d.]+)', svg).group(1)) for svg in (wide, narrow)]
        assert size[1] < 300 < size[0]
        assert all(f">{name}<" in svg for svg in (wide, narrow) for name in ("buzz", "h2o", "streaming"))
    quality = figures[0].narrow
    assert "ROUGE-1 (%), higher is better" in quality
    assert "KL to full, lower is better" in quality


def test_runs_that_differ_in_their_methods_alone_are_drawn_together(tmp_path):
    runs = []
    for name, cached in (("a", 200.0), ("b", 100.0), ("c", 50.0)):
        methods = {"full": answers("full", ["x"] * 3, 400.0), "comb": answers("comb", ["x"] * 3, cached)}
        if name == "b":
            methods = {"h2o": answers("h2o", ["x"] * 3, cached), **methods}
        runs.append(load_run(write_run(tmp_path / name, methods, "xsum" if name != "c" else "cnn_dm", name=name)))
    assert [[run.name for run in group] for group in _together(runs)] == [["a", "b"], ["c"]]
    runs[1].records["comb"].append({**runs[1].records["comb"][0], "id": "another"})
    assert len(_together(runs)) == 3
    look = look_of([run.summary for run in runs])
    assert look.names == ["full", "comb", "h2o"]  # the same in every picture, whatever a run's own order
    summaries = [run.summary for run in runs[:2]]
    (axes,) = draw_panels([(summaries, "rougeL")], order=look.names).axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert {name: list(line.get_xdata()) for name, line in lines.items()} == {
        "full": [400],
        "comb": [100, 200],
        "h2o": [100],
    }
    assert [line.get_color() for line in lines.values()] == ["C0", "C1", "C2"]


def test_a_sweep_begins_with_its_frontier(tmp_path):
    methods = {"full": answers("full", ["a"] * 3, 400.0)}
    plain = load_run(write_run(tmp_path / "plain", {**methods, "h2o": answers("h2o", ["a"] * 3)}))
    for reduction in (2, 4):
        methods[f"h2o-reduction{reduction}"] = answers("h2o", ["a"] * 3, 400.0 / reduction)
    sweep = load_run(write_run(tmp_path / "sweep", methods))
    assert [is_sweep(run) for run in (plain, sweep)] == [False, True]
    figures = run_figures(sweep, tmp_path, look_of([sweep.summary]))
    for run, first in ((plain, ["results", "figure0"]), (sweep, ["figure0", "results"])):
        page = render_page("x", [run], [figures], None)
        assert re.findall(r'<section id="(\w+)"', page)[:2] == first
