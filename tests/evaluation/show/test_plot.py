"""Pictures: what is drawn, and that equal figures give equal files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from buzz.evaluation.show.plot import plot_frontier, plot_quality, series
from tests.evaluation.synthetic import method, record, summary_of


def one(**facts):
    return summary_of(
        {
            "full": method("full", 400, rouge1=[0.30, 0.50], answer_nll=[2.0, 3.0]),
            "buzz": method("buzz", 100, rouge1=[0.25, 0.41], answer_nll=[2.5, 3.25]),
            "h2o": method("h2o", 101, rouge1=[0.20, 0.42], answer_nll=[2.5, 3.5]),
            "tova": method("tova", 200, rouge1=[0.25, 0.43], answer_nll=[2.5, 3.5]),
        },
        **facts,
    )


def grid():
    methods = {"full": method("full", 400, rouge1=[0.3, 0.5])}
    for policy in ("buzz", "h2o"):
        for share in (0.8, 0.2, 0.4):
            methods[f"{policy}-budget{share}"] = method(policy, 400 * share, rouge1=[0.2 + share / 10, 0.4])
    return summary_of(methods)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved while a test runs."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig

    def keeping(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keeping)
    return figures


def test_points_stand_where_the_summary_says(tmp_path, drawn):
    assert plot_quality(one(), "rouge1", tmp_path / "q.png")
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    points = [(c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in axes.containers]
    assert [y for _, y in points] == pytest.approx([40, 33, 31, 34])
    assert [x for x, _ in points] == [400, 100, 101, 200]
    bars = [c[2][0].get_segments()[0][0][0] for c in axes.containers]
    assert bars == pytest.approx([400, 100, 101, 200], abs=4)  # those in the middle are moved apart
    assert bars[0] == 400
    assert bars[2] - bars[1] > 4
    assert sorted(text.get_text() for text in axes.texts) == ["buzz", "full", "h2o", "tova"]
    assert len({c[0].get_marker() for c in axes.containers}) == 4  # none is told by its color alone
    assert axes.get_ylabel() == "ROUGE-1 (%), higher is better, 95% interval"
    assert axes.get_title(loc="left") == "model on task (n = 2)"
    assert [line.get_ydata() for line in axes.lines if line.get_linestyle() == "--"] == [[pytest.approx(40)] * 2]


def test_methods_that_hold_about_as_much_have_rows(tmp_path, drawn):
    rows = {
        "full": method("full", 400, rouge1=[0.30, 0.50], fidelity_kl=[1e-8, 2e-8]),
        "buzz": method("buzz", 100, rouge1=[0.25, 0.41], fidelity_kl=[0.5, 0.7]),
        "h2o": method("h2o", 109, rouge1=[0.20, 0.42], fidelity_kl=[0.01, 0.02]),
    }
    assert plot_quality(summary_of(rows), "rouge1", tmp_path / "q.png")
    (axes,) = drawn[0].axes
    points = [(c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in axes.containers]
    assert points == [(pytest.approx(33), 0), (pytest.approx(31), 1)]
    assert [bars.get_segments()[0][:, 0].tolist() for c in axes.containers for bars in c[2]] == [
        pytest.approx([25, 41]),
        pytest.approx([20, 42]),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["buzz", "h2o"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # from the top
    assert axes.get_xlabel() == "ROUGE-1 (%), higher is better, 95% interval"
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert line.get_xdata()[0] == pytest.approx(40)
    assert [text.get_text() for text in axes.texts] == ["full"]
    assert plot_quality(summary_of(rows), "fidelity_kl", tmp_path / "k.png")
    (axes,) = drawn[1].axes
    assert axes.get_xscale() == "log"  # the full cache's own is rounding, and no score to reach
    assert not axes.texts
    assert len(axes.containers) == 2


@pytest.mark.parametrize(
    ("headline", "label"),
    [("answer_nll", "answer NLL, lower is better, 95% interval"), ("rouge1", "ROUGE-1 (%), higher is better")],
)
def test_any_metric_can_be_drawn(tmp_path, drawn, headline, label):
    assert plot_quality(one(), headline, tmp_path / "q.png")
    assert drawn[0].axes[0].get_ylabel().startswith(label)


def test_a_perplexity_is_no_percentage(tmp_path, drawn):
    rows = {name: [record("a", name, {"perplexity": nll}, weight=9)] for name, nll in (("full", 2.0), ("buzz", 2.5))}
    assert plot_quality(summary_of(rows), "perplexity", tmp_path / "q.png")
    (axes,) = drawn[0].axes
    assert [c[0].get_ydata()[0] for c in axes.containers] == [pytest.approx(7.389, 1e-3), pytest.approx(12.182, 1e-3)]
    assert axes.get_ylabel() == "perplexity, lower is better, 95% interval"


def test_svg_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        assert plot_quality(one(), "rouge1", tmp_path / f"{name}.svg")
        assert plot_quality(one(), "rouge1", tmp_path / f"{name}.png")
    first = (tmp_path / "a.svg").read_text()
    assert first == (tmp_path / "b.svg").read_text()
    assert "<svg" in first
    assert not re.search(r"<dc:date>|20\d\d-\d\d-\d\d", first)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_budgets_of_a_family_are_joined(tmp_path, drawn):
    assert plot_quality(grid(), "rouge1", tmp_path / "q.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["full", "buzz", "h2o"]
    assert list(lines["buzz"].get_xdata()) == pytest.approx([80, 160, 320])  # by memory, whatever the order of methods
    assert lines["buzz"].get_color() != lines["h2o"].get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["full", "buzz", "h2o"]
    assert not axes.texts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("buzz-budget0.4", "buzz"), ("buzz-budget0.4-stride5", "buzz-stride5"), ("h2o-reduction2.5", "h2o"),
        ("tova-budget128", "tova"), ("h2o-reduction1e09", "h2o"), ("h2o-budget1e-05", "h2o"),
        ("buzz-stride5", "buzz-stride5"), ("my-budget", "my-budget"),
    ],
)  # fmt: skip
def test_families(name, expected):
    assert series(name) == expected


def test_several_runs_are_panels(tmp_path, drawn):
    assert plot_frontier([grid(), one(headline="answer_nll"), one(model="other")], tmp_path / "f.png")
    axes = drawn[0].axes
    assert [panel.get_ylabel().split(",")[0] for panel in axes[:3]] == ["ROUGE-1 (%)", "answer NLL", "ROUGE-1 (%)"]
    assert [bool(panel.texts) for panel in axes[:3]] == [False, True, True]
    assert axes[2].get_title(loc="left") == "other on task (n = 2)"
    assert not axes[3].axison


def test_nothing_to_draw(tmp_path):
    made = summary_of({"full": [], "buzz": method("buzz", rouge1=[0.5])})
    made["methods"]["buzz"] = {"n": 0}
    assert not plot_quality(made, "rouge1", tmp_path / "q.png")
    assert not plot_frontier([], tmp_path / "q.png")
    assert list(Path(tmp_path).iterdir()) == []


def test_a_run_does_not_fail_for_want_of_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match="matplotlib is not installed"):
        assert not plot_quality(one(), "rouge1", tmp_path / "q.png")
