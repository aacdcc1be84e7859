"""A metric module: `evaluate.load(".../best_subspan_em")` on this folder, no network needed."""

from __future__ import annotations

from typing import Any, ClassVar

from buzz.evaluation.metrics import best_subspan_em, evaluate_base


class BestSubspanEm(evaluate_base.MeanMetric):
    description: ClassVar[str] = (
        'Whether any answer, normalised, occurs in the normalised output ("Lost in the Middle").'
    )
    references: ClassVar[str | None] = "texts"

    def score(self, prediction: str, reference: Any) -> dict[str, float]:
        return {"best_subspan_em": best_subspan_em(prediction, reference)}
