"""A metric module: `evaluate.load(".../qa_f1")` on this folder, no network needed."""

from __future__ import annotations

from typing import Any, ClassVar

from buzz.evaluation.metrics import evaluate_base, qa_f1


class QaF1(evaluate_base.MeanMetric):
    description: ClassVar[str] = "Best F1 of the output's normalised words with those of any answer (SQuAD, LongBench)."
    references: ClassVar[str | None] = "texts"

    def score(self, prediction: str, reference: Any) -> dict[str, float]:
        return {"qa_f1": qa_f1(prediction, reference)}
