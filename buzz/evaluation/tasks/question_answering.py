"""Questions over ten documents, one of which holds the answer, as the BUZZ authors ask them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from buzz.evaluation.metrics import best_subspan_em, exact_match
from buzz.evaluation.tasks.base import Sample, Task, continuation
from buzz.evaluation.tasks.fields import Row
from buzz.evaluation.tasks.hub import FileSource


class TenDocumentQA(Task):
    """10-QA: NaturalQuestions-Open with ten documents, the gold one fifth (Liu et al., arXiv 2307.03172).

    `exact_match` is the BUZZ authors' metric, which forgives nothing; `best_subspan_em` is the data set's own. The
    data set's release scores the first line of an output; we score all of it.
    """

    name: ClassVar[str] = "ten_qa"
    fields: ClassVar[dict[str, Any]] = {"question": str, "answers": [str], "ctxs": [{"title": str, "text": str}]}
    placeholders: ClassVar[Sequence[str]] = ("documents", "question")
    asks: ClassVar[tuple[str, str] | None] = ("documents", "question")
    # "an brief" and the blank at the end are the authors'.
    template: ClassVar[str] = (
        "Documents are following: {documents}. Based on the provided documents, give an brief answer to this question: "
        "{question}. The answer has to directly answer the question and be BRIEF. "
    )
    # The file of the paper's own release: the hub has no official copy.
    hub: ClassVar[FileSource] = FileSource(
        "https://raw.githubusercontent.com/nelson-liu/lost-in-the-middle/29b8a6d042ce29abccee3db1a73171a107d7e6af/"
        "qa_data/10_total_documents/nq-open-10_total_documents_gold_at_4.jsonl.gz"
    )
    metrics: ClassVar[list[str]] = ["best_subspan_em", "exact_match", "answer_nll"]
    headline: ClassVar[str] = "best_subspan_em"

    def filling(self, row: Row) -> Mapping[str, Any]:
        """`documents`: title and text of each, every one on a line of its own."""
        documents = "".join(f"{document['title']}\n{document['text']}\n" for document in row["ctxs"])
        return {"id": row["id"], "documents": documents, "question": row["question"]}

    def reference(self, row: Row) -> Any:
        return row["answers"]

    def likely(self, sample: Sample) -> str | None:
        """The first answer. The authors' prompt ends in a blank, so there it has none of its own."""
        return continuation(sample.text, sample.reference[0])

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        return {
            "best_subspan_em": best_subspan_em(prediction, sample.reference),
            "exact_match": exact_match(prediction, sample.reference),
        }
