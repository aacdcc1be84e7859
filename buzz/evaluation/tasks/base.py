"""What every task is: rows in, prompts and references out, and a score for an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar, Literal

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import fingerprint, resolve_path
from buzz.evaluation.tasks.data import read_hub_rows, read_rows
from buzz.evaluation.tasks.fields import Row
from buzz.evaluation.tasks.hub import FileSource, HubSource
from buzz.evaluation.tasks.section import TaskConfig
from buzz.evaluation.tasks.split import taker

# A template: literal text and the placeholder that follows it, if any.
Parts = list[tuple[str, "str | None"]]


@dataclass(frozen=True)
class NoOptions:
    """A task without config keys of its own."""


@dataclass(frozen=True)
class Sample:
    """One question to the model.

    Args:
        id: unique within the task's data.
        prompt: the raw prompt, before any chat template.
        reference: what `Task.score` compares an answer with; text, or a list of accepted answers.
        row: the data row the sample was made from.
        context: the start of the prompt that is read in a call of its own, before the rest; empty: all is read at once.
        prefix: what the answer begins with, given and not scored: behind the prompt, or behind what a chat template
            opens an answer with; empty: nothing.
    """

    id: str
    prompt: str
    reference: Any
    row: Row
    context: str = ""
    prefix: str = ""

    @property
    def text(self) -> str:
        """The raw prompt, up to where the model goes on: with the prefix behind it."""
        return self.prompt + continuation(self.prompt, self.prefix) if self.prefix else self.prompt


class Task(ABC):
    """Data source, prompt and metrics of one benchmark.

    A task sets the class attributes and `reference` and `score`; one whose prompt is not made of the fields as they
    are overrides `filling`, one that is not asked row by row (a stream, say) overrides `samples`. Config keys of its
    own are the fields of a frozen dataclass `Options`.

    Args:
        config: the run's `task` section.

    Raises:
        ConfigError: `task.prompt` is no template over the row's fields; or `task.query_aware` is false, and no context
            comes before a question; or `task.answer_prefix` is given, and there are no answers.
    """

    Options: ClassVar[type] = NoOptions
    # "generation": answers are generated and scored. "perplexity": a sample's prompt is a text, read token by token.
    kind: ClassVar[Literal["generation", "perplexity"]] = "generation"

    made: ClassVar[bool] = False  # whether samples are made to a length, so that none of them may be cut

    name: ClassVar[str]
    fields: ClassVar[dict[str, Any]]  # what every row must have, see buzz.evaluation.tasks.fields
    template: ClassVar[str]  # the default of task.prompt
    placeholders: ClassVar[Sequence[str]] = ()  # what a template may name beside {id}; empty: the fields
    asks: ClassVar[tuple[str, str] | None] = (
        None  # placeholders of a context and of the question about it; None: neither
    )
    hub: ClassVar[HubSource | FileSource]  # where rows come from when task.data is null
    metrics: ClassVar[list[str]]  # in the order of the tables
    headline: ClassVar[str]  # the metric of plots

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.options: Any = self.Options(**config.options)
        self.taken = taker(config.rows)
        self._template = self.template if config.prompt is None else config.prompt
        self._parts = parse_template(self._template, ["id", *(self.placeholders or self.fields)], "task.prompt")
        if not config.query_aware:
            self._check_order()
        if config.answer_prefix is not None and self.kind == "perplexity":
            raise ConfigError("task.answer_prefix", f"is given, but {self.name} has no answers", "null is wanted")

    def load(self) -> list[Sample]:
        """The first `task.limit` samples of `task.rows`, in the order of the data; at least one.

        Raises:
            ConfigError: the file or the hub data set cannot be read, or a row lacks something; or none is left.
        """
        samples = self.samples()
        if not samples:
            of, other = ("tuning", "test") if self.config.rows == "tune" else ("test", "tune")
            what = f"is {self.config.rows}, but no id of the data is that of a {of} row"
            raise ConfigError("task.rows", what, f"all or {other}, or more data, is wanted")
        return samples

    def samples(self) -> list[Sample]:
        """`load`, if anything is left."""
        return [self.sample(row) for row in self._rows()]

    def sample(self, row: Row) -> Sample:
        """What is asked about a row."""
        context = "" if self.config.query_aware else self._context(row)
        return Sample(row["id"], self.prompt(row), self.reference(row), row, context, self.answer_prefix(row))

    def fingerprint(self) -> dict[str, Any]:
        """Which data `load` reads: path, bytes and sha256 of a local file, or hub data set, revision and split."""
        if self.config.data is not None:
            return fingerprint(resolve_path(self.config.data, "task.data"))
        return self.hub.facts(self.config.split)

    def prompt(self, row: Row) -> str:
        """The template filled in for a row; braces inside what is filled in are text."""
        return self._filled(row, self.parts(row))

    def parts(self, row: Row) -> Parts:
        """The row's template, parsed; the same for all rows unless a task has several."""
        return self._parts

    def filling(self, row: Row) -> Mapping[str, Any]:
        """What stands for each placeholder of the template, by name."""
        return row

    def problem(self, row: Row) -> tuple[str, str] | None:
        """What is wrong with a row that has all fields, and what is allowed instead; None: nothing."""
        return None

    @property
    def measured(self) -> list[str]:
        """The metrics of a run, in the order of the tables: `metrics`, and what the config asks for beside them."""
        return self.metrics

    def answer_prefix(self, row: Row) -> str:
        """What the answer is made to begin with, without a blank around it; empty: nothing."""
        return self.config.answer_prefix or ""

    def likely(self, sample: Sample) -> str | None:
        """An answer whose mean negative log-likelihood is measured as well (metric `answer_nll`); None: no answer.

        It continues the raw prompt, or the prefix of the answer if there is one, see `continuation`.
        """
        return None

    def calls(self, tokens: int, max_new_tokens: int) -> tuple[int, int]:
        """Tokens of a sample's first call, and how many one-token calls can follow, for a prompt of so many tokens."""
        return tokens, max_new_tokens - 1

    @abstractmethod
    def reference(self, row: Row) -> Any:
        """The right answer of a row."""

    @abstractmethod
    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        """Every metric of `metrics` for one answer."""

    def _filled(self, row: Row, parts: Parts) -> str:
        values = self.filling(row)
        return "".join(literal + (str(values[field]) if field else "") for literal, field in parts)

    def _context(self, row: Row) -> str:
        """The prompt up to the end of its context."""
        assert self.asks is not None
        parts = self.parts(row)
        last = max(i for i, (_, field) in enumerate(parts) if field == self.asks[0])
        return self._filled(row, parts[: last + 1])

    def _check_order(self) -> None:
        """Refuse a task or a template in which no context comes before a question."""
        if self.asks is None:
            what = f"is false, but {self.name} asks no question about a context"
            raise ConfigError("task.query_aware", what, "true, or a task that does, is wanted")
        context, question = self.asks
        names = [field for _, field in self._parts]
        if context not in names or question in names[: len(names) - names[::-1].index(context)]:
            what = f"is false, but task.prompt has no {{{context}}} before {{{question}}}"
            raise ConfigError("task.query_aware", what, "true, or a prompt that has, is wanted")

    def _rows(self) -> Iterator[Row]:
        config = self.config
        if config.data is None:
            return read_hub_rows(
                self.hub, config.split, self.fields, config.limit, problem=self.problem, keep=self.taken
            )
        path = resolve_path(config.data, "task.data")
        return read_rows(path, self.fields, config.limit, problem=self.problem, keep=self.taken)


def continuation(prompt: str, answer: str) -> str:
    """An answer as it goes on after a raw prompt: with a blank before it unless the prompt ends in whitespace.

    A prompt that ends in a blank already has that blank's token, so a second one would make the answer unlikely. A
    default prompt that ends in whitespace suits a chat template too, where the answer opens a turn of its own.
    """
    return answer if prompt[-1:].isspace() else f" {answer}"


def parse_template(template: str, fields: Sequence[str], where: str) -> Parts:
    """A template such as `Text: {document}` as pairs of literal text and the field that follows it.

    Only bare field names may stand in braces (no `{document[0]}`, `{document!r}`, `{document:>9}`); `{{` is a brace.

    Raises:
        ConfigError: not a template, an unknown placeholder (lists the fields), or no placeholder at all.
    """
    allowed = f"the fields are {', '.join(f'{{{name}}}' for name in fields)}; write {{{{ and }}}} for braces"
    parts: Parts = []
    try:
        for literal, field, spec, conversion in Formatter().parse(template):
            if field is not None and (field not in fields or spec or conversion):
                shown = f"{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
                raise ConfigError(where, f"unknown placeholder {{{shown}}}", allowed)
            parts.append((literal, field))
    except ValueError as error:
        raise ConfigError(where, f"is no template ({error})", allowed) from error
    if all(field is None for _, field in parts):
        raise ConfigError(where, "names no field, so every prompt would be the same", allowed)
    return parts
