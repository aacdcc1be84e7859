"""A metric module: `evaluate.load(".../first_answer_em")` on this folder, no network needed."""

from __future__ import annotations

from typing import Any, ClassVar

from buzz.evaluation.metrics import evaluate_base, exact_match


class FirstAnswerEm(evaluate_base.MeanMetric):
    description: ClassVar[str] = (
        "Whether the output is the first answer, both stripped and lower-cased (the BUZZ authors' exact match)."
    )
    references: ClassVar[str | None] = "texts"

    def score(self, prediction: str, reference: Any) -> dict[str, float]:
        return {"exact_match": exact_match(prediction, reference)}
