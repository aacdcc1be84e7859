"""ROUGE as the authors measure it, and where we part from their package."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge import Rouge

from buzz.evaluation.metrics import ROUGE_METRICS, likeness, rouge_scores, self_bleu

WORDS = st.lists(st.sampled_from(["bees", "Bees", "honey", "a", "hive.", "."]), min_size=1, max_size=12).map(" ".join)


def test_known_values() -> None:
    # 3 of 4 words and 1 of 3 pairs in common; the package's epsilon of 1e-8 makes F a little less.
    scores = rouge_scores("the cat sat here", "the cat is here")
    assert scores == pytest.approx({"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75}, abs=1e-6)
    assert tuple(scores) == ROUGE_METRICS


def test_case_counts_and_words_are_not_stemmed() -> None:
    assert rouge_scores("The cats", "the cat")["rouge1"] == 0.0


@pytest.mark.parametrize("nothing", ["", ".", "...", " ", "\n", ". .", " .\n. "])
def test_nothing_said_scores_zero(nothing: str) -> None:
    zeros = dict.fromkeys(ROUGE_METRICS, 0.0)
    assert rouge_scores(nothing, "Bees dance. They do. ") == zeros
    assert rouge_scores("Bees dance", nothing) == zeros


@given(hypothesis=WORDS, reference=WORDS)
def test_equals_the_package_wherever_there_are_words(hypothesis: str, reference: str) -> None:
    if not hypothesis.replace(".", "").strip() or not reference.replace(".", "").strip():
        return
    expected = Rouge().get_scores(hypothesis, reference)[0]
    got = rouge_scores(hypothesis, reference)
    assert list(got.values()) == [expected[key]["f"] for key in ("rouge-1", "rouge-2", "rouge-l")]


def test_likeness_is_rouge_l_but_for_what_it_cannot_count() -> None:
    assert (
        likeness("the cat sat here", "the cat is here") == rouge_scores("the cat sat here", "the cat is here")["rougeL"]
    )
    assert [likeness(*pair) for pair in (("", " "), ("...", "..."), ("a b", "a b\n"))] == [1.0] * 3
    assert likeness("", "a b") == likeness("a b", "...") == 0.0


def test_sentences_longer_than_the_recursion_limit() -> None:
    # Only the first word is common, so the package walks back over all words of both.
    text = " ".join(["same", *(f"w{i}" for i in range(700))])
    other = " ".join(["same", *(f"v{i}" for i in range(700))])
    with pytest.raises(RecursionError):
        Rouge().get_scores(other, text)
    assert rouge_scores(other, text)["rougeL"] == pytest.approx(1 / 701, abs=1e-6)
    assert rouge_scores(text, text)["rougeL"] == pytest.approx(1.0, abs=1e-6)


def test_two_threads_at_once() -> None:
    words = [f"w{i % 97}" for i in range(600)]
    pairs = [(" ".join(words[i:]), " ".join(reversed(words[: 600 - i]))) for i in range(4)]
    wanted = [(rouge_scores(*pair), self_bleu(f"{pair[0]}. {pair[1]}.")) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: (rouge_scores(*pair), self_bleu(f"{pair[0]}. {pair[1]}.")), pairs * 2))
    assert found == wanted * 2
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(5000)
        score = Rouge().get_scores(*pairs[0])[0]["rouge-l"]["f"]
    finally:
        sys.setrecursionlimit(before)
    assert wanted[0][0]["rougeL"] == score
