"""Metrics of short answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation, without the articles a, an and the, words parted by single spaces.

    In this order, as the evaluation of SQuAD does it (Rajpurkar et al., arXiv 1606.05250).
    """
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the whole output is the first answer, both stripped of outer whitespace and lower-cased; else 0.0.

    The BUZZ authors' rule: nothing else is normalised, so a final dot or an article decides, and of several accepted
    answers the first alone counts.
    """
    return float(prediction.strip().lower() == answers[0].strip().lower())


def best_subspan_em(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if any answer, normalised, occurs in the normalised output; else 0.0.

    The protocol of "Lost in the Middle" (Liu et al., arXiv 2307.03172). Occurs means as a substring: the answer "2"
    is found in "1920". An answer of which normalisation leaves nothing is never found.
    """
    said = normalise(prediction)
    return float(any(answer in said for answer in map(normalise, answers) if answer))


def qa_f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of the output's normalised words with those of any answer, counted as bags (SQuAD, LongBench)."""
    return max(_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right)) if common else 0.0


def recall(prediction: str, keys: Sequence[str]) -> float:
    """Share of the keys (runs of digits) that stand in the output as whole numbers: 123 is not found in 91234."""
    said = set(re.findall(r"\d+", prediction))
    return sum(key in said for key in keys) / len(keys)


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """RULER's score: the share of the references that occur in the output, case aside (Hsieh et al., arXiv 2404.06654).

    Occurs means as a substring: "cat" is found in "category".
    """
    said = prediction.lower()
    return sum(reference.lower() in said for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """RULER's score of questions: 1.0 if any reference occurs in the output as `string_match_all` has it, else 0.0."""
    return float(string_match_all(prediction, references) > 0)


def class_named(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """LongBench's score of a classification: 1/n if the right class is among the n that the output names, else 0.0.

    A class is named if it occurs in the output, case counting; one that is only a part of the right class's name
    (Individual in "Individual sport") does not count.
    """
    named = [name for name in classes if name in prediction and (name == answer or name not in answer)]
    return 1 / len(named) if answer in named else 0.0


def numbers_right(prediction: str, answer: str) -> float:
    """LongBench's score where a number is asked for: the share of the output's numbers that equal the answer's.

    Args:
        answer: holds the right number, as "Paragraph 19" or "7".
    """
    said = re.findall(r"\d+", prediction)
    right = re.findall(r"\d+", answer)[0]
    return sum(number == right for number in said) / len(said) if said else 0.0
