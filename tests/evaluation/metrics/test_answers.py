"""Metrics of answers and Self-BLEU against plain references, and all of them as modules of `evaluate`."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buzz.evaluation import metrics
from buzz.evaluation.metrics import (
    best_subspan_em,
    class_named,
    exact_match,
    normalise,
    numbers_right,
    qa_f1,
    recall,
    rouge_scores,
    self_bleu,
    string_match_all,
    string_match_part,
)

MODULES = Path(metrics.__file__).parent / "evaluate_modules"
WORDS = st.lists(st.sampled_from(["bee", "hive", "a", "The", "wax,", "B.", "2"]), max_size=8).map(" ".join)


# --- answers


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("  The  Bees' Hive!\n", "bees hive"),
        ("an A-team", "ateam"),  # punctuation goes first, so A is no article here
        ("theory of a an the", "theory of"),
        ("U.S.", "us"),
        ("Röntgen – X", "röntgen – x"),  # ASCII punctuation alone
        ("The", ""),
    ],
)
def test_normalise(text: str, bare: str) -> None:
    assert normalise(text) == bare


def test_exact_match_is_the_first_answer_alone() -> None:
    assert exact_match(" Bees\n", ["bees ", "wasps"]) == 1.0
    assert exact_match("wasps", ["bees", "wasps"]) == 0.0
    assert exact_match("bees.", ["bees"]) == 0.0
    assert exact_match("the bees", ["bees"]) == 0.0


def test_best_subspan_em() -> None:
    assert best_subspan_em("Surely THE honey-bee did.", ["wasp", "a honeybee"]) == 1.0
    assert best_subspan_em("1920", ["2"]) == 1.0  # a substring, as in the original
    assert best_subspan_em("wasps", ["bees"]) == 0.0
    assert best_subspan_em("anything", ["The"]) == 0.0  # nothing is left to find
    assert best_subspan_em("", ["bees"]) == 0.0


@given(prediction=WORDS, answers=st.lists(WORDS, min_size=1, max_size=3))
def test_f1_equals_precision_and_recall(prediction: str, answers: list[str]) -> None:
    def f1(said: list[str], right: list[str]) -> float:
        common = sum(min(said.count(word), right.count(word)) for word in set(said))
        if not common:
            return 0.0
        precision, share = common / len(said), common / len(right)
        return 2 * precision * share / (precision + share)

    expected = max(f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)
    assert qa_f1(prediction, answers) == pytest.approx(expected)


def test_f1_known_value() -> None:
    assert qa_f1("the yellow bees danced", ["Yellow bees.", "x"]) == pytest.approx(0.8)
    assert qa_f1("", ["bees"]) == 0.0


def test_recall_of_whole_numbers() -> None:
    assert recall("12345, then 6789.", ["12345", "678"]) == 0.5
    assert recall("x12345y", ["12345"]) == 1.0
    assert recall("", ["1"]) == 0.0


def test_string_matches() -> None:
    said = "The numbers are 1234567, and 89; also a Category."
    assert string_match_all(said, ["1234567"]) == 1
    assert string_match_all(said, ["1234567", "7654321"]) == 0.5
    assert string_match_all(said, ["cat", "GORY", "dog", "x.x"]) == 0.5  # as substrings, case aside
    assert string_match_part(said, ["dog", "234"]) == 1
    assert string_match_part(said, ["dog"]) == string_match_all(said, ["dog"]) == string_match_all("", ["dog"]) == 0


def test_class_named() -> None:
    classes = ["Sport", "Individual", "Individual sport", "Date"]
    assert class_named("Individual sport", "Individual sport", classes) == 1.0
    assert class_named("Individual sport", "Individual", classes) == 0.5  # more than the right one was named
    assert class_named("Date, Sport", "Date", classes) == 0.5
    assert class_named("date", "Date", classes) == 0.0


def test_numbers_right() -> None:
    assert numbers_right("Paragraph 19", "Paragraph 19") == 1.0
    assert numbers_right("19 or 20, no, 19", "Paragraph 19") == pytest.approx(2 / 3)
    assert numbers_right("nineteen", "Paragraph 19") == 0.0


# --- Self-BLEU


def naive_bleu(sentence: list[str], others: list[list[str]]) -> float:
    """BLEU-3 by its definition (Papineni et al.), zero counts replaced by 0.1 (Chen and Cherry, method 1)."""

    def grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    if not grams(sentence, 1).keys() & set().union(*(grams(other, 1) for other in others)):
        return 0.0
    logs = 0.0
    for n in (1, 2, 3):
        own = grams(sentence, n)
        hits = sum(min(count, max(grams(other, n)[gram] for other in others)) for gram, count in own.items())
        logs += math.log((hits or 0.1) / max(1, sum(own.values()))) / 3
    near = min((abs(len(other) - len(sentence)), len(other)) for other in others)[1]
    brevity = 1.0 if len(sentence) > near else math.exp(1 - near / len(sentence))
    return brevity * math.exp(logs)


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=7), min_size=2, max_size=5))
def test_self_bleu_equals_its_definition(sentences: list[list[str]]) -> None:
    text = ". ".join(" ".join(words) for words in sentences) + "."
    expected = [naive_bleu(words, sentences[:i] + sentences[i + 1 :]) for i, words in enumerate(sentences)]
    assert self_bleu(text) == pytest.approx(sum(expected) / len(expected), abs=1e-9)


def test_self_bleu_of_texts_that_cannot_repeat() -> None:
    assert self_bleu("One long sentence with nothing after it.") == 0.0
    assert self_bleu("") == self_bleu(" . .. \n") == 0.0
    assert self_bleu("a b c d. a b c d.") == pytest.approx(1.0)


# --- modules of evaluate

TEXTS = ["The cat sat. The cat sat on it.", "a dog", ""]
ANSWERS = [["cat", "x"], ["A dog", "y"], ["z"]]
CASES: dict[str, tuple[Any, Any]] = {
    "authors_rouge": (["The cat.", "dog", "z"], rouge_scores),
    "self_bleu": (None, lambda text: {"self_bleu": self_bleu(text)}),
    "first_answer_em": (ANSWERS, lambda text, answers: {"exact_match": exact_match(text, answers)}),
    "best_subspan_em": (ANSWERS, lambda text, answers: {"best_subspan_em": best_subspan_em(text, answers)}),
    "qa_f1": (ANSWERS, lambda text, answers: {"qa_f1": qa_f1(text, answers)}),
}


def test_every_module_is_tested() -> None:
    assert {path.stem for path in MODULES.glob("*/*.py")} == set(CASES)


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The library, which copies a module to its cache before it imports it; here a cache of its own."""
    import evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path_factory.getbasetemp())  # so that sys.path is put back
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield evaluate
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", CASES)
def test_modules_give_the_mean_of_the_samples(name: str, tmp_path: Path, evaluate: Any) -> None:
    references, function = CASES[name]
    module = evaluate.load(str(MODULES / name), cache_dir=str(tmp_path))
    given = {"predictions": TEXTS} | ({"references": references} if references else {})
    rows = [function(*row) for row in zip(*given.values(), strict=True)]
    expected = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    assert module.compute(**given) == pytest.approx(expected)
    assert re.search(r"\w", module.description)
