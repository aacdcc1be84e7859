"""A metric module: `evaluate.load(".../authors_rouge")` on this folder, no network needed."""

from __future__ import annotations

from typing import Any, ClassVar

from buzz.evaluation.metrics import evaluate_base, rouge_scores


class AuthorsRouge(evaluate_base.MeanMetric):
    description: ClassVar[str] = (
        "ROUGE-1/2/L F as the BUZZ authors measure it (package `rouge`: case-sensitive, unstemmed)."
    )

    def score(self, prediction: str, reference: Any) -> dict[str, float]:
        return rouge_scores(prediction, reference)
