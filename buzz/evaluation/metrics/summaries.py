"""Metrics of summaries: ROUGE against a reference, Self-BLEU among the sentences of one text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

ROUGE_METRICS = ("rouge1", "rouge2", "rougeL")


def rouge_scores(hypothesis: str, reference: str) -> dict[str, float]:
    """ROUGE-1/2/L F of one summary, as the BUZZ authors measure it: PyPI package `rouge`, case-sensitive, unstemmed.

    The package raises on a hypothesis (or reference) without a sentence, such as "" or "...", and gives a
    whitespace-only one a pseudo-word that can match. We score 0.0 whenever either side holds nothing but dots and
    whitespace: a model that says nothing has summarised nothing, and its row still counts in the mean.

    Returns:
        {"rouge1", "rouge2", "rougeL"}: floats from 0 to 1.
    """
    from rouge import Rouge

    if not _has_words(hypothesis) or not _has_words(reference):
        return dict.fromkeys(ROUGE_METRICS, 0.0)
    with _recursion_limit(_longest_sentence(hypothesis) + _longest_sentence(reference)):
        scores = Rouge().get_scores(hypothesis, reference)[0]
    return {name: float(scores[key]["f"]) for name, key in zip(ROUGE_METRICS, Rouge.DEFAULT_METRICS, strict=True)}


def self_bleu(text: str) -> float:
    """How much the sentences of one text repeat each other (Zhu et al., arXiv 1802.01886), as the BUZZ authors do it.

    The text is cut at dots, a sentence at whitespace. Each sentence is scored by BLEU against all others: 1- to 3-grams
    with equal weights, `nltk` with its smoothing method 1. Lower is better.

    Ours: parts without a word are no sentences, and a text of fewer than two sentences, which has nothing to repeat,
    scores 0.0. An empty text therefore looks perfect: read this figure beside ROUGE.

    Returns:
        The mean over sentences, from 0 to 1.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    sentences = [words for part in text.split(".") if (words := part.split())]
    if len(sentences) < 2:
        return 0.0
    smooth = SmoothingFunction().method1
    scores = [
        sentence_bleu(
            sentences[:index] + sentences[index + 1 :], sentence, weights=(1 / 3,) * 3, smoothing_function=smooth
        )
        for index, sentence in enumerate(sentences)
    ]
    return float(sum(scores) / len(scores))


def _has_words(text: str) -> bool:
    return any(sentence.strip() for sentence in text.split("."))


def _longest_sentence(text: str) -> int:
    """Words of the longest sentence, cut at dots as the package does."""
    return max(len(sentence.split()) for sentence in text.split("."))


@contextmanager
def _recursion_limit(words: int) -> Iterator[None]:
    """Room for ROUGE-L, which walks back through a pair of sentences with one recursion per word of both.

    Trimming the text instead would change its score. The higher limit is put back afterwards.
    """
    before = sys.getrecursionlimit()
    depth = words + _stack_depth() + 100
    if depth <= before:
        yield
        return
    sys.setrecursionlimit(depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _stack_depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth
