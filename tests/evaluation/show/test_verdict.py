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


def test_many_samples_decide():
    told = verdict(summary_of(run(40)))
    assert told.startswith("Nearest to the full cache: comb with 4x less cache (")
    assert "nearer than h2o, in 40 of 40). All of it is decided by a paired test of 40 samples (p<0.001)." in told
    factor = float(told.split("(")[1].split("x")[0])
    assert factor == pytest.approx(4, rel=0.1)
    assert "comb has 1.22 MiB allocated a sample, for a full cache's 4.88." in told


@pytest.mark.parametrize("n", [2, 4, 5])
def test_few_samples_are_a_look(n):
    told = verdict(summary_of(run(n)))
    assert f"in {n} of {n}). That is a look and no result: a paired test of {n} samples has no p below" in told
    assert "decided" not in told


def test_one_sample_is_a_look():
    assert "That is a look and no result: 1 sample." in verdict(summary_of(run(1)))


def test_what_a_test_can_decide_depends_on_the_comparisons():
    assert least_p(6) < 0.05 < least_p(5)
    assert "decided by a paired test of 6 samples" in verdict(summary_of(run(6)))
    others = {f"{name}-reduction4": kl(name, [0.9] * 6) for name in ("buzz", "streaming", "tova")}
    assert "no result: a paired test of 6 samples" in verdict(summary_of(run(6, **others)))  # picked from five


def test_the_next_is_of_another_policy():
    told = verdict(summary_of(run(20, **{"comb-echo-reduction4": kl("comb", [0.01] * 20)})))
    assert "comb-echo with 4x less cache (" in told
    assert "nearer than h2o" in told


def test_methods_that_do_not_differ_are_alike():
    told = verdict(summary_of({"comb": kl("comb", [0.1] * 9), "h2o": kl("h2o", [0.1] * 9)}))
    assert "with 4x less cache comb and h2o alike" in told
    assert "None of it is decided" in told
    assert "nearer" not in told


def test_what_is_near_is_not_called_decided():
    values = [0.1, 0.3, 0.2, 0.4, 0.1, 0.3, 0.2, 0.4]
    told = verdict(summary_of({"comb": kl("comb", values), "h2o": kl("h2o", [*values[::-1][:7], 0.11])}))
    assert "None of it is decided by a paired test of 8 samples" in told


def test_every_memory_has_its_best():
    more = {
        "comb-reduction2": kl("comb", [0.30] * 30, 200.0),
        "h2o-reduction2": kl("h2o", [0.11] * 30, 205.0),
        "buzz-reduction2": kl("buzz", [0.9] * 30, 195.0),
    }
    told = verdict(summary_of(run(30, **more)))
    first = told.index("h2o with 1.95x less cache (2.73x [2.73, 2.73] nearer than comb")
    assert first < told.index("comb with 4x less")


def test_methods_of_unlike_memory_are_not_compared():
    told = verdict(summary_of({"comb": kl("comb", [0.1] * 9), "h2o": kl("h2o", [0.2] * 9, 150.0)}))
    assert "there is no winner" in told
    assert "nearer" not in told


def test_nothing_let_go():
    assert "nothing is compared" in verdict(summary_of({"full": kl("full", [0.0] * 4, 400.0)}))
    assert "nothing is compared" in verdict(summary_of({"comb": kl("comb", [0.0] * 4, 400.0)}))


def test_a_method_that_failed_is_passed_over():
    told = verdict(summary_of({**run(20), "buzz": []}, {"buzz": "out of memory"}))
    assert "comb with 4x" in told
    assert "buzz" not in told


def test_scores_without_fidelity():
    methods = {"a": method("comb", rougeL=[0.3] * 10), "b": method("h2o", rougeL=[0.2] * 10)}
    told = verdict(summary_of(methods))
    assert told.startswith("Best ROUGE-L among about equal memory: a with 4x less cache (+10.00 [+10.00, +10.00] to b")
    assert "full cache:" not in told


def test_perplexities():
    def texts(policy, nats):
        return [record(f"t{i}", policy, {"perplexity": nats + i / 10}, weight=100.0) for i in range(8)]

    told = verdict(summary_of({"a": texts("comb", 2.0), "b": texts("h2o", 2.5)}))
    assert told.startswith("Best perplexity among about equal memory: a with 4x less cache (-")
    assert "in 8 of 8). All of it is decided by a paired test of 8 samples" in told


def test_blocks_of_a_single_text():
    def text(policy, nats):
        blocks = [[10, 10 * nats * (1 + i / 50)] for i in range(12)]
        mean = sum(nll for _, nll in blocks) / 120
        return [record("t", policy, {"perplexity": mean}, weight=120.0, blocks=blocks)]

    told = verdict(summary_of({"a": text("comb", 2.0), "b": text("h2o", 2.5)}))
    assert "decided by a paired test of 12 blocks of a text" in told


def test_a_summary_of_an_older_version_has_none():
    summary = {key: value for key, value in summary_of(run(4)).items() if key != "nearest"}
    assert verdict(summary) == ""
    assert verdicts({"old": summary, "new": summary_of(run(4))})[0].startswith("new: Nearest")
    assert verdicts({"old": summary}) == []


def test_speed_is_told_as_it_is():
    def row(name, prompt, rate, mib):
        more = {"prompt_seconds": prompt, "tokens_per_second": rate, "mib": mib}
        return {"method": name, "prompt_tokens": 3500, **more}

    slow, fast = row("DynamicCache", 4.0, 10.0, 154.0), row("comb", 8.0, 25.0, 40.0)
    told = verdict({**summary_of(run(4)), "speed": [slow, fast]})
    assert told.endswith(
        "After 3500 tokens of prompt: 10 tokens/s with transformers' own cache (154 MiB); 25 tokens/s with comb "
        "(40.0 MiB), 2.5 times as many, after a prompt that takes 2 times as long."
    )
    told = verdict({**summary_of(run(4)), "speed": [slow, row("comb", 4.0, 8.0, 40.0)]})
    assert "0.8 times as many" in told  # slower is said like faster
