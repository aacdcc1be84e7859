"""Metrics of summaries: ROUGE against a reference, Self-BLEU among the sentences of one text."""

from __future__ import annotations

from collections.abc import Sequence

ROUGE_METRICS = ("rouge1", "rouge2", "rougeL")


def rouge_scores(hypothesis: str, reference: str) -> dict[str, float]:
    """ROUGE-1/2/L F of one summary, as the BUZZ authors measure it: PyPI package `rouge`, case-sensitive, unstemmed.

    The package raises on a hypothesis (or reference) without a sentence, such as "" or "...", and gives a
    whitespace-only one a pseudo-word that can match. We score 0.0 whenever either side holds nothing but dots and
    whitespace: a model that says nothing has summarised nothing, and its row still counts in the mean.

    ROUGE-L is computed here, and equals the package's. The package walks back through a pair of sentences with one
    recursion per word: long ones would need another recursion limit, which all threads of a process share.

    Returns:
        {"rouge1", "rouge2", "rougeL"}: floats from 0 to 1.
    """
    from rouge import Rouge

    if not _has_words(hypothesis) or not _has_words(reference):
        return dict.fromkeys(ROUGE_METRICS, 0.0)
    scores = Rouge(metrics=["rouge-1", "rouge-2"]).get_scores(hypothesis, reference)[0]
    rouge_l = _rouge_l(_sentences(hypothesis), _sentences(reference))
    return {"rouge1": float(scores["rouge-1"]["f"]), "rouge2": float(scores["rouge-2"]["f"]), "rougeL": rouge_l}


def likeness(answer: str, other: str) -> float:
    """ROUGE-L F of two answers, from 0 to 1; 1.0 if they are equal or both empty, where ROUGE has nothing to count."""
    if answer.strip() == other.strip():
        return 1.0
    if not _has_words(answer) or not _has_words(other):
        return 0.0
    return _rouge_l(_sentences(answer), _sentences(other))


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


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence, cut at dots and blanks as the package does."""
    sentences = [" ".join(part.split()) for part in text.split(".") if part]
    return [sentence.split(" ") for sentence in sentences]


def _rouge_l(said: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """ROUGE-L F of a summary: different words in the union of all longest common subsequences, as the package counts.

    Args:
        said, wanted: words of each sentence of the summary and of the reference.
    """
    common = {word for reference in wanted for sentence in said for word in _common(reference, sentence)}
    precision = len(common) / len({word for sentence in said for word in sentence})
    recall = len(common) / len({word for sentence in wanted for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _common(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """A longest common subsequence, and of several the one that the package takes; last word first."""
    table: list[list[int]] = [[0] * (len(y) + 1)]
    for word in x:
        above, row = table[-1], [0]
        for j, other in enumerate(y):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    found, i, j = [], len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.append(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
