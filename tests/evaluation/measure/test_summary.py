"""Figures, intervals, paired comparisons: known values, and p-values that keep their promise."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from buzz.evaluation.measure.resampling import Resampler, ci95, p_below
from tests.evaluation.synthetic import method, record, summary_of


def near(value: float, rel: float = 1e-9):
    return pytest.approx(value, rel=rel)


def text(sample: str, policy: str, blocks: list[list[float]], cached: float = 100.0) -> dict:
    """The record of a document that was read token by token."""
    weight = sum(tokens for tokens, _ in blocks)
    nll = sum(sum_nll for _, sum_nll in blocks) / weight
    return record(sample, policy, {"perplexity": nll}, cached, weight=weight, blocks=blocks)


# --- resampling ------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_the_normal_approximation():
    generator = np.random.default_rng(1)
    values = generator.normal([0.3, 5.0], [0.1, 2.0], size=(400, 2))
    low, high = ci95(Resampler().sums(values) / 400)
    half = 1.96 * values.std(axis=0) / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert (high + low) / 2 == pytest.approx(values.mean(axis=0), abs=0.2 * half.max())
    assert np.array_equal(ci95(Resampler().sums(values) / 400), [low, high])
    assert np.array_equal(ci95(Resampler().sums([[0.5]])), [[0.5], [0.5]])


def test_resamples_draw_as_many_rows_as_there_are():
    sums = Resampler(seed=3, resamples=2000).sums(np.eye(7))  # how often each row was drawn
    assert sums.shape == (2000, 7)
    assert (sums.sum(axis=1) == 7).all()
    assert sums.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)
    assert sums.var() == pytest.approx(6 / 7, rel=0.05)  # of a binomial with n = 7, p = 1 / 7


def test_resamples_of_equal_numbers_of_rows_are_paired():
    resampler = Resampler(resamples=500)
    values = np.arange(20.0)[:, None]
    assert np.array_equal(resampler.sums(values) + 20, resampler.sums(values + 1))
    other = Resampler(seed=1, resamples=500)
    assert not np.array_equal(resampler.sums(values), other.sums(values))


def test_blocks_of_draws_are_no_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 2))
    sums, p = Resampler(resamples=300).sums(values), Resampler(resamples=300).p_values(values)
    monkeypatch.setattr("buzz.evaluation.measure.resampling._BLOCK", 1000)
    assert Resampler(resamples=300).sums(values) == near(sums)
    assert np.array_equal(Resampler(resamples=300).p_values(values), p)


def test_p_values_of_few_rows_are_those_of_all_assignments():
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, -0.02])
    total = abs(differences.sum())
    signs = itertools.product((-1, 1), repeat=6)
    exact = np.mean([abs(np.dot(sign, differences)) >= total - 1e-12 for sign in signs])
    assert Resampler().p_values(differences[:, None])[0] == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.0, 0.0, 0.0], 1.0), ([0.7], 1.0), ([0.1, 0.1], 0.5), ([0.1] * 5, 2 / 32), ([0.1] * 60, 1 / 10_001)],
)
def test_p_values_of_known_cases(differences, p):
    assert Resampler().p_values(np.array(differences)[:, None])[0] == pytest.approx(p, abs=0.015 if p > 0.001 else 0)


def test_p_values_know_no_side_and_no_zero():
    values = np.random.default_rng(0).normal(1.0, 0.1, size=(80, 1))
    resampler = Resampler(resamples=999)
    assert resampler.p_values(values)[0] == resampler.p_values(-values)[0] == 1 / 1000
    assert np.isnan(resampler.p_values([[math.nan], [1.0]])[0])


@pytest.mark.parametrize("draw", ["normal", "skewed", "shares"])
def test_p_values_are_uniform_where_methods_do_not_differ(draw):
    generator = np.random.default_rng(7)
    shape = (25, 2, 2000)  # rows, methods, experiments
    values = {
        "normal": lambda: generator.normal(size=shape),
        "skewed": lambda: generator.exponential(size=shape),
        "shares": lambda: generator.binomial(8, 0.3, size=shape) / 8,  # with ties
    }[draw]()
    p = Resampler(seed=1, resamples=999).p_values(values[:, 0] - values[:, 1])  # [experiments]
    for level in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75):
        share = (p <= level).mean()
        deviation = math.sqrt(level * (1 - level) / 2000)
        assert share < level + 4 * deviation  # never too many; with ties it may be fewer
        if draw != "shares":
            assert share > level - 4 * deviation


def test_p_values_have_power():
    generator = np.random.default_rng(3)
    p = Resampler(resamples=999).p_values(generator.normal(0.5, 1.0, size=(60, 300)))
    assert (p < 0.05).mean() > 0.9  # a t-test has 97%


def test_intervals_of_differences_cover_the_truth():
    generator = np.random.default_rng(5)
    resampler = Resampler(resamples=500)
    values = generator.normal(0.2, 1.0, size=(60, 400))
    low, high = np.percentile(resampler.sums(values) / 60, [2.5, 97.5], axis=0)
    assert 0.91 < ((low <= 0.2) & (high >= 0.2)).mean() < 0.975


# --- means -----------------------------------------------------------------------------------------------------------


def test_means_caches_and_seconds():
    rows = [*method("buzz", rouge1=[0.1, 0.2, 0.6]), record("s3", "buzz", {"rouge1": 0.3}, 200.0)]
    entry = summary_of({"buzz": rows})["methods"]["buzz"]
    assert entry["n"] == 4
    assert entry["policy"] == "buzz"
    assert entry["metrics"]["rouge1"]["mean"] == near(0.3)
    assert entry["cache"] == {
        **{"mean_tokens": 125, "peak_tokens": 220, "reduction": near(400 / 125)},
        **{"mean_mib": near(125 * 12800 / 2**20), "peak_mib": near(200 * 16000 / 2**20)},
        "reduction_bytes": near(400 / 125),
    }
    assert entry["seconds"] == {"total": 2.0, "per_sample": 0.5, "tokens_per_second": 20.0}
    assert entry["answer_tokens"] == 10
    low, high = entry["metrics"]["rouge1"]["ci95"]
    assert 0.1 < low < 0.3 < high < 0.6
    assert [low, high] == near(ci95(Resampler().sums([[0.1], [0.2], [0.6], [0.3]]) / 4)[:, 0].tolist())


def test_answers_have_a_length_and_texts_that_are_read_have_none():
    rows = [record(f"s{i}", "buzz", {"rouge1": 0.5}, new_tokens=tokens) for i, tokens in enumerate((1, 4, 10))]
    assert summary_of({"buzz": rows})["methods"]["buzz"]["answer_tokens"] == 5
    read = [record("s0", "buzz", {"perplexity": 2.0}, weight=9)]
    assert "answer_tokens" not in summary_of({"buzz": read})["methods"]["buzz"]


def test_a_summary_is_plain_data():
    summary = summary_of({"full": method("full", rouge1=[0.5, 0.4]), "buzz": method("buzz", rouge1=[0.5, 0.3])})
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_perplexity_is_weighted_by_tokens():
    long, short = text("a", "full", [[256, 512.0], [44, 88.0]]), text("b", "full", [[100, 300.0]])
    entry = summary_of({"full": [long, short]})["methods"]["full"]["metrics"]["perplexity"]
    assert entry["mean"] == near(math.exp(900 / 400))
    assert entry["ci95"] == near([math.exp(2), math.exp(3)])  # both the one or the other document


def test_one_document_is_resampled_by_its_blocks():
    generator = np.random.default_rng(0)
    nll = 256 * generator.normal(3.0, 0.4, size=60)
    entry = summary_of({"full": [text("a", "full", [[256, float(x)] for x in nll])]})["methods"]["full"]
    found = entry["metrics"]["perplexity"]
    assert found["mean"] == near(math.exp(nll.mean() / 256))
    half = 1.96 * (nll / 256).std() / math.sqrt(60)
    assert np.log(found["ci95"]) == pytest.approx([nll.mean() / 256 - half, nll.mean() / 256 + half], abs=0.25 * half)


def test_one_sample_has_no_spread_and_no_significance():
    summary = summary_of({"full": method("full", rouge1=[0.5]), "buzz": method("buzz", rouge1=[0.2])})
    assert summary["methods"]["buzz"]["metrics"]["rouge1"]["ci95"] == [0.2, 0.2]
    pair = summary["methods"]["buzz"]["paired"]["full"]["metrics"]["rouge1"]
    assert pair == {"difference": near(-0.3), "ci95": near([-0.3, -0.3]), "p": 1.0}


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_differences_are_paired():
    generator = np.random.default_rng(2)
    hard = generator.uniform(0.1, 0.9, size=200)  # samples differ far more than methods do
    full, buzz = hard, hard - 0.01 + generator.normal(0, 0.02, size=200)
    summary = summary_of({"full": method("full", 400, rouge1=full), "buzz": method("buzz", rouge1=buzz)})
    pair = summary["methods"]["buzz"]["paired"]["full"]
    found = pair["metrics"]["rouge1"]
    assert pair["method"] == "full"
    assert found["difference"] == near((buzz - full).mean())
    half = 1.96 * (buzz - full).std() / math.sqrt(200)
    assert found["ci95"] == pytest.approx([found["difference"] - half, found["difference"] + half], abs=0.1 * half)
    assert found["p"] == near(1 / 10_001)
    # Apart, their intervals overlap by far.
    assert summary["methods"]["buzz"]["metrics"]["rouge1"]["ci95"][1] > full.mean()


def test_ratios_of_losses_are_paired():
    generator = np.random.default_rng(2)
    hard = generator.exponential(0.3, size=300) + 0.01  # samples differ far more than methods do
    h2o, comb = hard, 0.5 * hard + generator.uniform(0, 0.02, size=300)
    rows = {
        "h2o-reduction4": method("h2o", fidelity_kl=h2o, rouge1=h2o),
        "comb": method("comb", fidelity_kl=comb, rouge1=comb),
        "worse": method("random", fidelity_kl=1.1 * hard, rouge1=hard),
        "zero": method("tova", fidelity_kl=0 * hard, rouge1=hard),
    }
    others = {"comb": "h2o-reduction4", "worse": "h2o-reduction4"}
    methods = summary_of(rows, compare={"h2o": others, "zero": {"comb": "zero"}})["methods"]
    pair = methods["comb"]["paired"]["against h2o"]
    assert pair["method"] == "h2o-reduction4"
    found = pair["metrics"]["fidelity_kl"]
    assert found["difference"] == near((comb - h2o).mean())
    ratio = comb.mean() / h2o.mean()
    half = 1.96 * (comb - ratio * h2o).std() / math.sqrt(300) / h2o.mean()  # the delta method
    assert found["ratio"] == near(ratio)
    assert found["ratio_ci95"] == pytest.approx([ratio - half, ratio + half], abs=0.1 * half)
    assert found["ratio_p"] == near(1 / 10_001)
    assert "ratio" not in pair["metrics"]["rouge1"]  # more is better there
    assert methods["worse"]["paired"]["against h2o"]["metrics"]["fidelity_kl"]["ratio_p"] == 1.0
    assert "ratio" not in methods["comb"]["paired"]["against zero"]["metrics"]["fidelity_kl"]
    assert "ratio" not in methods["comb"]["paired"]["rival"]["metrics"]["fidelity_kl"]
    assert "against h2o" not in methods["h2o-reduction4"]["paired"]


def test_p_of_being_below_a_bound():
    assert p_below(np.array([0.2, 0.6, 0.9]), 0.6) == 3 / 4
    assert p_below(np.array([0.2, 0.3]), 0.6) == 1 / 3


def test_the_full_cache_is_compared_with_nobody():
    methods = summary_of({"full": method("full", rouge1=[0.5]), "buzz": method("buzz", rouge1=[0.2])})["methods"]
    assert "paired" not in methods["full"]
    assert "retention" not in methods["full"]
    assert list(methods["buzz"]["paired"]) == ["full"]  # it has no rival


def test_ties_have_no_significance():
    same = [0.1, 0.5, 0.3]
    methods = summary_of({"full": method("full", rouge1=same), "buzz": method("buzz", rouge1=same)})["methods"]
    assert methods["buzz"]["paired"]["full"]["metrics"]["rouge1"] == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    assert methods["buzz"]["retention"] == {"rouge1": 1.0}
    assert methods["buzz"]["retention_ci95"] == {"rouge1": [1.0, 1.0]}


def test_perplexities_are_paired_by_document_and_by_block():
    generator = np.random.default_rng(4)
    hard = generator.uniform(2.0, 4.0, size=80)
    worse = hard + generator.uniform(0.0, 0.1, size=80)
    expected = math.exp(worse.mean()) - math.exp(hard.mean())

    def documents(policy, nll):
        return [text(f"d{i}", policy, [[256, 256 * x]]) for i, x in enumerate(nll.tolist())]

    def stream(policy, nll):
        return [text("d", policy, [[256, 256 * x] for x in nll.tolist()])]

    found = []
    for rows in (documents, stream):
        methods = summary_of({"full": rows("full", hard), "buzz": rows("buzz", worse)})["methods"]
        found.append(methods["buzz"]["paired"]["full"]["metrics"]["perplexity"])
        assert found[-1]["difference"] == near(expected)
        assert 0 < found[-1]["ci95"][0] < expected < found[-1]["ci95"][1]
        assert found[-1]["p"] == near(1 / 10_001)
        assert "perplexity" not in methods["buzz"]["retention"]
    assert found[0]["ci95"] == near(found[1]["ci95"])


def test_pairs_are_of_the_samples_both_have():
    full = method("full", rouge1=[0.9, 0.1, 0.5])[1:]  # it ran out of memory at the longest sample
    methods = summary_of(
        {"full": full, "buzz": method("buzz", rouge1=[0.8, 0.1, 0.4])}, failures={"full": "out of memory"}
    )["methods"]
    assert methods["full"]["failed"] == "out of memory"
    assert methods["buzz"]["metrics"]["rouge1"]["mean"] == near(1.3 / 3)
    assert methods["buzz"]["paired"]["full"]["metrics"]["rouge1"]["difference"] == near(-0.05)
    assert methods["buzz"]["retention"]["rouge1"] == near(0.5 / 0.6)


def test_a_method_without_samples():
    methods = summary_of(
        {"full": [], "buzz": method("buzz", rouge1=[0.8, 0.1])}, failures={"full": "out of memory"}, full="full"
    )["methods"]
    assert methods["full"] == {"n": 0, "failed": "out of memory"}
    assert methods["buzz"]["paired"] == {}
    assert methods["buzz"]["retention"] == {}


def test_a_metric_that_some_records_lack():
    rows = method("buzz", rouge1=[0.2, 0.4], fidelity_kl=[0.5, None])
    full = method("full", rouge1=[0.3, 0.4], fidelity_kl=[0.0, 0.0])
    late = [record("s0", "h2o", {"rouge1": 0.1}), record("s1", "h2o", {"rouge1": 0.2})]
    methods = summary_of({"full": full, "buzz": rows, "h2o": late})["methods"]
    assert methods["buzz"]["metrics"]["fidelity_kl"]["mean"] == 0.5
    assert methods["buzz"]["paired"]["full"]["metrics"]["fidelity_kl"]["difference"] == 0.5
    assert list(methods["h2o"]["metrics"]) == ["rouge1"]
    assert list(methods["h2o"]["paired"]["rival"]["metrics"]) == ["rouge1"]


# --- rivals and retention --------------------------------------------------------------------------------------------


def rivals(methods: dict, headline: str) -> dict[str, str]:
    entries = summary_of(methods, headline=headline)["methods"]
    return {name: entry["paired"]["rival"]["method"] for name, entry in entries.items() if "paired" in entry}


def test_the_rival_is_the_best_of_the_others():
    def scored(policy, rouge, nll):
        return method(policy, rouge1=[rouge, rouge], answer_nll=[nll, nll])

    methods = {
        "full": scored("full", 0.9, 0.1), "a": scored("buzz", 0.5, 3.0), "b": scored("h2o", 0.6, 4.0),
        "c": scored("streaming", 0.4, 2.0),
    }  # fmt: skip
    assert rivals(methods, "rouge1") == {"a": "b", "b": "a", "c": "b"}
    assert rivals(methods, "answer_nll") == {"a": "c", "b": "c", "c": "a"}  # lower is better


def test_the_rival_holds_about_as_much_if_one_does():
    methods = {
        "small": method("buzz", 100, rouge1=[0.3]), "near": method("h2o", 109, rouge1=[0.2]),
        "large": method("tova", 300, rouge1=[0.5]), "wide": method("streaming", 290, rouge1=[0.4]),
        "huge": method("snapkv", 900, rouge1=[0.45]),
    }  # fmt: skip
    expected = {"small": "near", "near": "small", "large": "wide", "wide": "large", "huge": "large"}
    assert rivals(methods, "rouge1") == expected


def test_a_variant_is_a_rival_only_where_there_is_no_other():
    methods = {
        "buzz": method("buzz", rouge1=[0.3]), "buzz-stride7": method("buzz", rouge1=[0.5]),
        "fast": method("buzz_fast", rouge1=[0.6]),
    }  # fmt: skip
    assert rivals(methods, "rouge1") == {"buzz": "fast", "buzz-stride7": "fast", "fast": "buzz-stride7"}
    methods |= {"h2o": method("h2o", 500, rouge1=[0.1]), "full": method("full", rouge1=[0.9])}
    assert rivals(methods, "rouge1") == {"buzz": "h2o", "buzz-stride7": "h2o", "fast": "h2o", "h2o": "fast"}


def test_retention_is_the_share_of_the_full_cache():
    generator = np.random.default_rng(6)
    whole = generator.uniform(0.2, 0.8, size=100)
    methods = summary_of(
        {
            "full": method("full", rouge1=whole, self_bleu=whole, answer_nll=whole, fidelity_top1=whole),
            "buzz": method("buzz", rouge1=0.9 * whole, self_bleu=whole, answer_nll=whole, fidelity_top1=whole),
        }
    )["methods"]
    assert methods["buzz"]["retention"] == {"rouge1": near(0.9)}  # neither losses nor what is a share already
    assert methods["buzz"]["retention_ci95"]["rouge1"] == near([0.9, 0.9])  # of the ratio, so paired


def test_there_is_no_share_of_nothing():
    zero, rare = [0.0] * 3, [1.0, 0.0, 0.0]
    methods = summary_of(
        {"full": method("full", exact_match=zero, recall=rare), "buzz": method("buzz", exact_match=zero, recall=rare)}
    )["methods"]
    assert methods["buzz"]["retention"] == {"recall": 1.0}
    assert methods["buzz"]["retention_ci95"] == {}  # some resamples have no hit
