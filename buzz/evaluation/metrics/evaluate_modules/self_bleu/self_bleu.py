"""A metric module: `evaluate.load(".../self_bleu")` on this folder, no network needed."""

from __future__ import annotations

from typing import Any, ClassVar

from buzz.evaluation.metrics import evaluate_base, self_bleu


class SelfBleu(evaluate_base.MeanMetric):
    description: ClassVar[str] = "3-gram BLEU of every sentence of a text against its other sentences. Lower is better."
    references: ClassVar[str | None] = None

    def score(self, prediction: str, reference: Any) -> dict[str, float]:
        return {"self_bleu": self_bleu(prediction)}
