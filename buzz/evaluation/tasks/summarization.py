"""Summaries of news articles, as the BUZZ authors ask for them, scored with ROUGE and Self-BLEU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from buzz.evaluation.metrics import ROUGE_METRICS, rouge_scores, self_bleu
from buzz.evaluation.tasks.base import Sample, Task, continuation
from buzz.evaluation.tasks.fields import Row
from buzz.evaluation.tasks.hub import HubSource


def authors_prompt(field: str) -> str:
    """The prompt of the authors' evaluation around a row's article; the double newline is theirs."""
    return f"Text: {{{field}}}\n\nSUMMARIZE the previous text to 50 words!"


@dataclass(frozen=True)
class SummarizationOptions:
    """`likelihood`: also measure how likely the reference is (`answer_nll`), which reads every prompt once more."""

    likelihood: bool = False


class Summarization(Task):
    """A task whose rows hold an article and a reference summary, in that order in `fields`."""

    Options: ClassVar[type] = SummarizationOptions
    metrics: ClassVar[list[str]] = list(ROUGE_METRICS)
    headline: ClassVar[str] = "rougeL"

    def reference(self, row: Row) -> Any:
        return row[list(self.fields)[1]]

    @property
    def measured(self) -> list[str]:
        return [*self.metrics, "answer_nll"] if self.options.likelihood else self.metrics

    def likely(self, sample: Sample) -> str | None:
        return continuation(sample.text, sample.reference)

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        return rouge_scores(prediction, sample.reference)


class Xsum(Summarization):
    """XSum: BBC articles with one-sentence summaries (Narayan et al., arXiv 1808.08745)."""

    name: ClassVar[str] = "xsum"
    fields: ClassVar[dict[str, Any]] = {"document": str, "summary": str}
    template: ClassVar[str] = authors_prompt("document")
    # The data set's main revision is a loading script, which `datasets` no longer runs.
    hub: ClassVar[HubSource] = HubSource("EdinburghNLP/xsum", revision="refs/convert/parquet")


class CnnDailyMail(Summarization):
    """CNN/DailyMail: news stories with highlights (See et al., arXiv 1704.04368). The authors use version 2.0.0."""

    name: ClassVar[str] = "cnn_dm"
    fields: ClassVar[dict[str, Any]] = {"article": str, "highlights": str}
    template: ClassVar[str] = authors_prompt("article")
    hub: ClassVar[HubSource] = HubSource("abisee/cnn_dailymail", name="3.0.0")


class CnnDailyMailSelfBleu(CnnDailyMail):
    """The authors' second run on CNN/DailyMail: longer summaries, judged by how much their sentences repeat each other.

    A task of its own because the prompt differs (150 words after a single newline), so its outputs are others.
    """

    name: ClassVar[str] = "cnn_dm_self_bleu"
    template: ClassVar[str] = "Text: {article}\nSUMMARIZE the previous text to 150 words!"
    metrics: ClassVar[list[str]] = ["self_bleu", *ROUGE_METRICS]
    headline: ClassVar[str] = "self_bleu"

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        return {"self_bleu": self_bleu(prediction), **super().score(prediction, sample)}
