"""What the modules for the library `evaluate` have in common: the mean of a per-sample score."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import datasets
import evaluate


class MeanMetric(evaluate.Metric):
    """The mean over samples of the floats that `score` gives for one of them.

    A module is one subclass. `references` says what a reference is: "text", "texts" (a list of accepted answers) or
    None (the predictions alone are judged).
    """

    description: ClassVar[str]
    references: ClassVar[str | None] = "text"

    @abstractmethod
    def score(self, prediction: str, reference: Any) -> dict[str, float]:
        """The scores of one sample, by name."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = {"predictions": text}
        if self.references:
            features["references"] = text if self.references == "text" else datasets.Sequence(text)
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions: texts; references: " + (self.references or "none"),
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[str], references: list[Any] | None = None) -> dict[str, float]:
        pairs = zip(predictions, references or [None] * len(predictions), strict=True)
        scores = [self.score(prediction, reference) for prediction, reference in pairs]
        return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
