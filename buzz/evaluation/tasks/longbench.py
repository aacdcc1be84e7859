"""LongBench: long texts of many kinds, each data set with its own prompt and metric."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, zip_longest
from typing import Any, ClassVar

from buzz.evaluation.config.schema import parsed_by, said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.metrics import class_named, numbers_right, qa_f1, rouge_scores
from buzz.evaluation.paths import resolve_path
from buzz.evaluation.tasks.base import Parts, Sample, Task, parse_template
from buzz.evaluation.tasks.data import read_hub_rows, read_rows
from buzz.evaluation.tasks.fields import Maybe, Row
from buzz.evaluation.tasks.hub import FileSource
from buzz.evaluation.tasks.section import TaskConfig

# One answer and one row in, a score from 0 to 1 out.
Score = Callable[[str, Row], float]


def _f1(text: str, row: Row) -> float:
    return qa_f1(text, row["answers"])


def _rouge(text: str, row: Row) -> float:
    return max(rouge_scores(text, answer)["rougeL"] for answer in row["answers"])


def _class(text: str, row: Row) -> float:
    return max(class_named(text, answer, row["all_classes"]) for answer in row["answers"])


def _number(text: str, row: Row) -> float:
    return max(numbers_right(text, answer) for answer in row["answers"])


@dataclass(frozen=True)
class DataSet:
    """How one data set of LongBench is asked and scored. `first_line`: only that of an answer counts."""

    template: str
    score: Score
    first_line: bool = False


_READ_AND_ANSWER = (
    "Read {what} and answer the question that follows in as few words as possible.\n\n{{context}}\n\n"
    "Question: {{input}}\nShort answer:"
)
_SUMMARIZE = "{{context}}\n\nWrite a summary of {what} above, {how}.\nSummary:"
_PASSAGES = _READ_AND_ANSWER.format(what="the passages")
_QMSUM = "Here is the transcript of a meeting.\n\n{context}\n\nQuestion: {input}\nAnswer in a few sentences:"
_RETRIEVAL = (
    "Below are numbered paragraphs, and after them the summary of one of the paragraphs.\n\n{context}\n\n"
    'Summary: {input}\n\nWhich paragraph is it? Answer in the form "Paragraph 1".\nAnswer:'
)
_COUNT = (
    "Below are numbered paragraphs, some of which are repeated.\n\n{context}\n\n"
    "How many different paragraphs are there? Answer with the number alone.\nAnswer:"
)
# Few-shot data sets: the context is solved examples, the input the start of the next.
_EXAMPLES = "{what}\n\n{{context}}\n{{input}}"

# The prompts are ours; the metrics, and for few-shot sets the first line alone, are LongBench's. The English sets
# but for the two of code, whose metric is another one.
DATA_SETS: dict[str, DataSet] = {
    "narrativeqa": DataSet(_READ_AND_ANSWER.format(what="the story"), _f1),
    "qasper": DataSet(_READ_AND_ANSWER.format(what="the scientific article"), _f1),
    "multifieldqa_en": DataSet(_READ_AND_ANSWER.format(what="the text"), _f1),
    "hotpotqa": DataSet(_PASSAGES, _f1),
    "2wikimqa": DataSet(_PASSAGES, _f1),
    "musique": DataSet(_PASSAGES, _f1),
    "gov_report": DataSet(_SUMMARIZE.format(what="the government report", how="one page long"), _rouge),
    "qmsum": DataSet(_QMSUM, _rouge),
    "multi_news": DataSet(_SUMMARIZE.format(what="the news stories", how="one page long"), _rouge),
    "trec": DataSet(_EXAMPLES.format(what="Name the type of each question."), _class, first_line=True),
    "triviaqa": DataSet(_EXAMPLES.format(what="Answer each question from its passage."), _f1, first_line=True),
    "samsum": DataSet(_EXAMPLES.format(what="Summarize each dialogue."), _rouge, first_line=True),
    "passage_count": DataSet(_COUNT, _number),
    "passage_retrieval_en": DataSet(_RETRIEVAL, _number),
}


def _names(raw: Any, where: str) -> list[str] | None:
    good = raw is None or (isinstance(raw, list) and raw and all(isinstance(name, str) for name in raw))
    if not good or (raw is not None and (set(raw) - set(DATA_SETS) or len(set(raw)) < len(raw))):
        raise ConfigError(where, said(raw), f"null (all) or a list of names among {', '.join(DATA_SETS)} is wanted")
    return raw


@dataclass(frozen=True)
class LongBenchOptions:
    """`datasets`: the data sets to take; None: all that there are."""

    datasets: list[str] | None = field(default=None, metadata=parsed_by(_names))


class LongBench(Task):
    """LongBench (Bai et al., arXiv 2308.14508), its English data sets without code.

    `score` is a row's metric in its own data set: F1 of words (questions), ROUGE-L (summaries), share of classes
    (trec), share of numbers (passage_count, passage_retrieval_en); the best over the accepted answers. Ids are the
    data set's name, a slash and the row's own id. `task.limit` takes the data sets in turn, a row of each.
    `task.prompt` replaces the prompts of all data sets; `task.split` is not used. LongBench has another length of
    answer for each data set; here `generation.max_new_tokens` holds for all of a run.
    """

    Options: ClassVar[type] = LongBenchOptions
    name: ClassVar[str] = "longbench"
    fields: ClassVar[dict[str, Any]] = {
        "dataset": str,
        "input": Maybe(str),
        "context": str,
        "answers": [str],
        "all_classes": Maybe([str]),
    }
    placeholders: ClassVar[Sequence[str]] = ("dataset", "input", "context")
    asks: ClassVar[tuple[str, str] | None] = ("context", "input")
    template: ClassVar[str] = _PASSAGES  # of most question sets; the others have theirs in DATA_SETS
    # The repository's main revision is a loading script, which `datasets` no longer runs, around this archive.
    hub: ClassVar[FileSource] = FileSource(
        "data.zip", repository="zai-org/LongBench", revision="5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
    )
    metrics: ClassVar[list[str]] = ["score"]
    headline: ClassVar[str] = "score"

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self._own_parts = {
            name: parse_template(known.template, self.placeholders, name) for name, known in DATA_SETS.items()
        }

    def parts(self, row: Row) -> Parts:
        return self._own_parts[row["dataset"]] if self.config.prompt is None else super().parts(row)

    def filling(self, row: Row) -> Mapping[str, Any]:
        return {**row, "input": row.get("input") or ""}

    def reference(self, row: Row) -> Any:
        return row["answers"]

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        known = DATA_SETS[sample.row["dataset"]]
        if known.first_line:
            prediction = prediction.lstrip("\n").partition("\n")[0]
        return {"score": known.score(prediction, sample.row)}

    def problem(self, row: Row) -> tuple[str, str] | None:
        name = row["dataset"]
        if self.options.datasets is not None and name not in self.options.datasets:
            return None  # not taken
        if name not in DATA_SETS:
            return f"field 'dataset' is {name!r}", f"one of {', '.join(DATA_SETS)} is wanted"
        score = DATA_SETS[name].score
        if score is _class and not row.get("all_classes"):
            return "field 'all_classes' is missing or empty", f"{name} needs the names of all classes there"
        if score is _number and (bad := [answer for answer in row["answers"] if not re.search(r"\d", answer)]):
            return f"field 'answers' holds {bad[0]!r}", f"{name} needs a number there"
        return None

    def _rows(self) -> Iterator[Row]:
        """The data sets in turn, a row of each, up to `task.limit` rows."""
        groups = self._hub_groups() if self.config.data is None else self._file_groups(self.config.data)
        turns = chain.from_iterable(zip_longest(*groups.values()))
        yield from islice(filter(None, turns), self.config.limit)

    def _hub_groups(self) -> dict[str, list[Row]]:
        config, groups = self.config, {}
        for name in self.options.datasets or DATA_SETS:
            source = replace(self.hub, member=f"data/{name}.jsonl")
            rows = read_hub_rows(source, config.split, self.fields, problem=self.problem)
            groups[name] = list(islice(filter(None, map(self._named, rows)), config.limit))
        return groups

    def _file_groups(self, data: str) -> dict[str, list[Row]]:
        path, limit, wanted = resolve_path(data, "task.data"), self.config.limit, self.options.datasets
        groups: dict[str, list[Row]] = {}
        for row in read_rows(path, self.fields, problem=self.problem):
            group = groups.setdefault(row["dataset"], [])
            named = self._named(row) if wanted is None or row["dataset"] in wanted else None
            if named and (limit is None or len(group) < limit):
                group.append(named)
        for name in wanted or ():
            if name not in groups:
                raise ConfigError("task.datasets", f"{name!r} is not in {path}", f"it has {', '.join(groups)}")
        return groups

    def _named(self, row: Row) -> Row | None:
        """The row under a sample's id; None if `task.rows` leaves it out."""
        name = f"{row['dataset']}/{row['id']}"
        return {**row, "id": name} if self.taken(name) else None
