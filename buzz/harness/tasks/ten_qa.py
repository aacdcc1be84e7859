"""10-QA for lm-eval, cut to the five documents around the one with the answer: what the YAML files beside it name.

lm-eval loads this file by its path.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from buzz.evaluation.metrics.answers import best_subspan_em
from buzz.evaluation.tasks.question_answering import TenDocumentQA

_AROUND = slice(2, 7)  # the gold document is the fifth of ten
_OTHERS = 3  # wrong choices: the answers of the next questions


def rows(data: str = TenDocumentQA.hub.file, **_: Any) -> DatasetDict:
    """The data set of "Lost in the Middle", or a local file like it (`--metadata data=nq_open_10.jsonl.gz`)."""
    return load_dataset("json", data_files={"test": data})


def with_choices(docs: Dataset) -> Dataset:
    """`prompt`; `choices`, the right one among them, and its number in `gold`."""
    answers = [answers[0] for answers in docs["answers"]]
    return docs.map(lambda doc, i: _with_choices(doc, i, answers), with_indices=True, load_from_cache_file=False)


def _with_choices(doc: dict[str, Any], i: int, answers: list[str]) -> dict[str, Any]:
    others = (answers[(i + step) % len(answers)] for step in range(1, len(answers)))
    wrong = list(dict.fromkeys(other for other in others if other != answers[i]))[:_OTHERS]
    gold = i % (len(wrong) + 1)
    choices = [*wrong[:gold], answers[i], *wrong[gold:]]
    documents = "".join(f"{text['title']}\n{text['text']}\n\n" for text in doc["ctxs"][_AROUND])
    return {"prompt": f"{documents}Question: {doc['question']}?\nAnswer:", "choices": choices, "gold": gold}


def found(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether an answer is in the output."""
    return {"best_subspan_em": best_subspan_em(results[0], doc["answers"])}
