"""Quality metrics of generated text: one answer and its reference in, floats from 0 to 1 out.

`answers` has those of questions, `summaries` ROUGE and Self-BLEU. `evaluate_modules` offers the same functions as
modules of the library `evaluate`, averaged over samples.
"""

from __future__ import annotations

from buzz.evaluation.metrics.answers import (
    best_subspan_em,
    class_named,
    exact_match,
    normalise,
    numbers_right,
    qa_f1,
    recall,
    string_match_all,
    string_match_part,
)
from buzz.evaluation.metrics.summaries import ROUGE_METRICS, likeness, rouge_scores, self_bleu

__all__ = [
    "ROUGE_METRICS",
    "best_subspan_em",
    "class_named",
    "exact_match",
    "likeness",
    "normalise",
    "numbers_right",
    "qa_f1",
    "recall",
    "rouge_scores",
    "self_bleu",
    "string_match_all",
    "string_match_part",
]
