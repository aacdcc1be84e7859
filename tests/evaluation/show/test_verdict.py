"""The verdict: true of its run, whatever the run is, and no bolder than its samples."""

from __future__ import annotations

import numpy as np
import pytest

from buzz.evaluation.show.verdict import least_p, verdict, verdicts
from tests.evaluation.synthetic import method, record, summary_of


def kl(policy: str, values, cached: float = 100.0):
    return method(policy, cached, rougeL=[0.2] * len(values), fidelity_kl=list(values))


def run(n: int, comb: float = 0.1, h2o: float = 0.4, **more):
    """n samples whose KL is about that much, in pairs: each sample is as hard for all methods."""
    hard = np.random.default_rng(0).uniform(0.8, 1.2, n)
    noise = np.random.default_rng(1).uniform(0.9, 1.1, (2, n))
    methods = {"full": kl("full", [0.0] * n, 400.0), "comb-reduction4": kl("comb", comb * hard * noise[0])}
    return {**methods, "h2o-reduction4": kl("h2o", h2o * hard * noise[1]), **more}


def told_by(summary):
    """All of a verdict as one text."""
    return " ".join(filter(None, verdict(summary)))


def test_many_samples_decide():
    sentence, figures = verdict(summary_of(run(40)))
    assert sentence == (
        "Nearest to the full cache at about equal memory: comb with 4x less cache; all of it decided by a paired test "
        "of 40 samples (p<0.001)."
    )
    assert figures.startswith("comb is ")
    assert "nearer than h2o with 4x less cache, in 40 of 40. " in figures
    factor = float(figures.removeprefix("comb is ").split("x")[0])
    assert factor == pytest.approx(4, rel=0.1)
    assert figures.endswith("comb has 1.22 MiB allocated a sample, for a full cache's 4.88.")


@pytest.mark.parametrize("n", [2, 4, 5])
def test_few_samples_are_a_look(n):
    sentence, figures = verdict(summary_of(run(n)))
    assert sentence.endswith(f"comb with 4x less cache; {n} samples are a look and no result.")
    assert f"in {n} of {n}. A paired test of {n} samples has no p below " in figures
    assert "decided" not in sentence + figures


def test_one_sample_is_a_look():
    sentence, figures = verdict(summary_of(run(1)))
    assert sentence.endswith("; 1 sample is a look and no result.")
    assert "[" not in figures  # no interval is one
    assert "paired" not in figures


def test_what_a_test_can_decide_depends_on_the_comparisons():
    assert least_p(6) < 0.05 < least_p(5)
    assert "decided by a paired test of 6 samples" in told_by(summary_of(run(6)))
    others = {f"{name}-reduction4": kl(name, [0.9] * 6) for name in ("buzz", "streaming", "tova")}
    assert "6 samples are a look" in told_by(summary_of(run(6, **others)))  # picked from five


def test_the_next_is_of_another_policy():
    told = told_by(summary_of(run(20, **{"comb-echo-reduction4": kl("comb", [0.01] * 20)})))
    assert "comb-echo with 4x less cache;" in told
    assert "nearer than h2o" in told


def test_methods_that_do_not_differ_are_alike():
    told = told_by(summary_of({"comb": kl("comb", [0.1] * 9), "h2o": kl("h2o", [0.1] * 9)}))
    assert "comb and h2o alike with 4x less cache; none of it decided" in told
    assert "nearer" not in told


def test_what_is_near_is_not_called_decided():
    values = [0.1, 0.3, 0.2, 0.4, 0.1, 0.3, 0.2, 0.4]
    told = told_by(summary_of({"comb": kl("comb", values), "h2o": kl("h2o", [*values[::-1][:7], 0.11])}))
    assert "none of it decided by a paired test of 8 samples" in told


def test_every_memory_has_its_best():
    more = {
        "comb-reduction2": kl("comb", [0.30] * 30, 200.0),
        "h2o-reduction2": kl("h2o", [0.11] * 30, 205.0),
        "buzz-reduction2": kl("buzz", [0.9] * 30, 195.0),
    }
    sentence, figures = verdict(summary_of(run(30, **more)))
    assert "memory: h2o with 1.95x less cache, comb with 4x less cache; all of it decided" in sentence
    assert figures.startswith("h2o is 2.73x [2.73, 2.73] nearer than comb with 1.95x less cache, in 30 of 30; comb is")


def test_one_winner_of_several_sizes_is_named_once():
    more = {"comb-reduction2": kl("comb", [0.01] * 30, 200.0), "h2o-reduction2": kl("h2o", [0.11] * 30, 205.0)}
    assert ": comb with 2x and 4x less cache; all of it" in verdict(summary_of(run(30, **more))).sentence


def test_what_is_decided_in_part_is_told_apart():
    values = [0.1, 0.3, 0.2, 0.4, 0.1, 0.3, 0.2, 0.4] * 4
    more = {"comb-reduction2": kl("comb", values, 200.0), "h2o-reduction2": kl("h2o", [*values[1:], 0.1], 205.0)}
    sentence = verdict(summary_of(run(32, **more))).sentence
    assert sentence.endswith("; with 4x less cache decided by a paired test of 32 samples, the rest is not.")


def test_methods_of_unlike_memory_are_not_compared():
    told = told_by(summary_of({"comb": kl("comb", [0.1] * 9), "h2o": kl("h2o", [0.2] * 9, 150.0)}))
    assert "there is no winner" in told
    assert "nearer" not in told


def test_nothing_let_go():
    assert "nothing is compared" in told_by(summary_of({"full": kl("full", [0.0] * 4, 400.0)}))
    assert "nothing is compared" in told_by(summary_of({"comb": kl("comb", [0.0] * 4, 400.0)}))


def test_a_method_that_failed_is_passed_over():
    told = told_by(summary_of({**run(20), "buzz": []}, {"buzz": "out of memory"}))
    assert "comb with 4x" in told
    assert "buzz" not in told


def test_scores_without_fidelity():
    methods = {"a": method("comb", rougeL=[0.3] * 10), "b": method("h2o", rougeL=[0.2] * 10)}
    told = told_by(summary_of(methods))
    assert told.startswith("Best ROUGE-L at about equal memory: a with 4x less cache; ")
    assert "a +10.00 [+10.00, +10.00] against b with 4x less cache, in 10 of 10." in told
    assert "full cache:" not in told


def test_perplexities():
    def texts(policy, nats):
        return [record(f"t{i}", policy, {"perplexity": nats + i / 10}, weight=100.0) for i in range(8)]

    told = told_by(summary_of({"a": texts("comb", 2.0), "b": texts("h2o", 2.5)}))
    assert told.startswith(
        "Best perplexity at about equal memory: a with 4x less cache; all of it decided by a paired test of 8"
    )
    assert "a -" in told


def test_blocks_of_a_single_text():
    def text(policy, nats):
        blocks = [[10, 10 * nats * (1 + i / 50)] for i in range(12)]
        mean = sum(nll for _, nll in blocks) / 120
        return [record("t", policy, {"perplexity": mean}, weight=120.0, blocks=blocks)]

    told = told_by(summary_of({"a": text("comb", 2.0), "b": text("h2o", 2.5)}))
    assert "decided by a paired test of 12 blocks of a text" in told


def test_a_summary_of_an_older_version_has_none():
    summary = {key: value for key, value in summary_of(run(4)).items() if key != "nearest"}
    assert verdict(summary) is None
    assert verdicts({"old": summary, "new": summary_of(run(4))})[0].sentence.startswith("new: Nearest")
    assert verdicts({"old": summary}) == []


def test_speed_is_told_as_it_is():
    def row(name, prompt, rate, mib):
        more = {"prompt_seconds": prompt, "tokens_per_second": rate, "mib": mib}
        return {"method": name, "prompt_tokens": 3500, **more}

    slow, fast = row("DynamicCache", 4.0, 10.0, 154.0), row("comb", 8.0, 25.0, 40.0)
    told = told_by({**summary_of(run(4)), "speed": [slow, fast]})
    assert told.endswith(
        "After 3500 tokens of prompt: 10 tokens/s with transformers' own cache (154 MiB); 25 tokens/s with comb "
        "(40.0 MiB), 2.5 times as many, after a prompt that takes 2 times as long."
    )
    told = told_by({**summary_of(run(4)), "speed": [slow, row("comb", 4.0, 8.0, 40.0)]})
    assert "0.8 times as many" in told  # slower is said like faster
