"""Who is best of a run, and who cannot be told from it."""

from __future__ import annotations

import numpy as np
import pytest

from buzz.evaluation.measure.best import memory_groups, standing
from tests.evaluation.synthetic import method, record, summary_of

NOISE = np.random.default_rng(0).normal(0, 0.02, 20)


def ranked(rows, **facts):
    return standing(summary_of(rows, **facts), rows)


def test_ties_with_the_best_are_marked_and_what_is_behind_is_not():
    base = np.linspace(0.3, 0.6, 20)
    rows = {
        "full": method("full", 400, rouge1=base + 0.5),
        "comb": method("comb", 100, rouge1=base),
        "buzz": method("buzz", 101, rouge1=base + NOISE - NOISE.mean() - 0.001),  # up and down on the same samples
        "h2o": method("h2o", 102, rouge1=base - 0.01),  # a little, but on every sample
    }
    found = ranked(rows)
    assert found.reference == "full"
    assert found.groups == [["comb", "buzz", "h2o"]]
    assert found.best["rouge1"] == {"comb", "buzz"}


def test_lower_is_better_of_losses():
    rows = {name: method(name, 100, fidelity_kl=np.full(8, kl)) for name, kl in (("comb", 0.1), ("h2o", 0.2))}
    assert ranked(rows).best["fidelity_kl"] == {"comb"}


@pytest.mark.parametrize(("samples", "best"), [(1, set()), (5, set()), (6, {"comb"})])
def test_a_handful_of_samples_tells_nothing_apart(samples, best):
    rows = {name: method(name, 100, rouge1=[value] * samples) for name, value in (("comb", 0.9), ("h2o", 0.1))}
    assert ranked(rows).best["rouge1"] == best


def test_perplexities_of_one_text_are_told_apart_by_its_blocks():
    rows = {
        name: [record("a", name, {"perplexity": nats}, weight=2560, blocks=[[256, 256 * nats]] * 10)]
        for name, nats in (("comb", 2.0), ("h2o", 2.1))
    }
    assert ranked(rows).best["perplexity"] == {"comb"}


def test_methods_compete_with_those_that_hold_about_as_much():
    rows = {
        "full": method("full", 400, rouge1=[0.9] * 8),
        "comb-large": method("comb", 200, rouge1=[0.7] * 8),
        "comb-small": method("comb", 100, rouge1=[0.4] * 8),
        "h2o-large": method("h2o", 190, rouge1=[0.6] * 8),
        "h2o-small": method("h2o", 105, rouge1=[0.5] * 8),
        "alone": method("tova", 50, rouge1=[0.1] * 8),
    }
    found = ranked(rows)
    assert found.groups == [["comb-large", "h2o-large"], ["comb-small", "h2o-small"], ["alone"]]
    assert found.best["rouge1"] == {"comb-large", "h2o-small"}  # the best of one is no best
    assert found.best["mean_tokens"] == set()
    assert memory_groups({"a": 100, "b": 50}) == [["a", "b"]]  # where no two hold as much, all are compared
    assert memory_groups({}) == []


def test_figures_without_an_interval_count_as_equal_within_a_tenth():
    rows = {name: method(name, 100, rouge1=[0.5] * 3) for name in ("full", "comb", "buzz", "h2o")}
    for name, held in (("full", 0.1), ("comb", 1.0), ("buzz", 1.05), ("h2o", 2.0)):
        for row in rows[name]:
            row["cache"] |= {"mean_bytes": held * 1e6}
    found = ranked(rows)  # the full cache is no competitor
    assert found.best["mean_mib"] == {"comb", "buzz"}
    assert found.best["mean_tokens"] == found.best["rouge1"] == set()  # nobody is behind


def test_what_is_missing_competes_with_nobody():
    rows = {"comb": method("comb", rouge1=[0.5] * 6), "h2o": []}
    found = ranked(rows)
    assert (found.reference, found.groups) == (None, [["comb"]])
    assert not any(found.best.values())
    rows = {
        "full": method("full", 400, rouge1=[0.5] * 6, fidelity_kl=[0.0] * 6),
        "comb": method("comb", rouge1=[0.5] * 6, fidelity_kl=[0.1] * 6),
        "h2o": method("h2o", rouge1=[0.4] * 6),
    }
    found = ranked(rows)
    assert found.best["rouge1"] == {"comb"}
    assert found.best["fidelity_kl"] == set()
