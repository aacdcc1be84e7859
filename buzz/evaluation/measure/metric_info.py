"""What every metric is called, which way is better, and how its samples become one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class MetricInfo:
    """How tables, plots and statistics treat a metric.

    Args:
        label: in tables and plots.
        percent: samples are shares from 0 to 1 and shown in percent.
        higher_is_better: False for losses.
        pooled: samples are mean negative log-likelihoods in nats, each over `record["weight"]` tokens; the run's
            figure is exp of their token-weighted mean (a perplexity).
    """

    label: str
    percent: bool = True
    higher_is_better: bool = True
    pooled: bool = False


METRIC_INFO: Mapping[str, MetricInfo] = MappingProxyType(
    {
        "rouge1": MetricInfo("ROUGE-1"),
        "rouge2": MetricInfo("ROUGE-2"),
        "rougeL": MetricInfo("ROUGE-L"),
        "self_bleu": MetricInfo("Self-BLEU", higher_is_better=False),  # low: sentences differ from each other
        "exact_match": MetricInfo("exact match"),
        "best_subspan_em": MetricInfo("best subspan EM"),
        "answer_nll": MetricInfo("answer NLL", percent=False, higher_is_better=False),
        "recall": MetricInfo("needles found"),
        "string_match_all": MetricInfo("string match"),
        "string_match_part": MetricInfo("any match"),
        "qa_f1": MetricInfo("F1"),
        "accuracy": MetricInfo("accuracy"),
        "score": MetricInfo("score"),  # a LongBench row under its own data set's metric
        "perplexity": MetricInfo("perplexity", percent=False, higher_is_better=False, pooled=True),
        # Against the full cache, see buzz.evaluation.measure.fidelity.
        "fidelity_kl": MetricInfo("KL to full", percent=False, higher_is_better=False),
        "fidelity_top1": MetricInfo("top-1 agreement"),
        "fidelity_rougeL": MetricInfo("ROUGE-L to full"),
    }
)

FIDELITY_METRICS = ("fidelity_kl", "fidelity_top1", "fidelity_rougeL")
FOLLOWED_METRICS = FIDELITY_METRICS[:2]  # those that need no answer of the method's own


def metric_info(name: str) -> MetricInfo:
    """The facts about a metric; for one that is not listed, its bare name and no percent."""
    return METRIC_INFO.get(name) or MetricInfo(name, percent=False)
