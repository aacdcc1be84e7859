"""Perplexity of texts: WikiText, and any long text as a stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from buzz.evaluation.config.schema import at_least
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import resolve_path
from buzz.evaluation.tasks.base import Sample, Task
from buzz.evaluation.tasks.data import read_hub_rows, read_text
from buzz.evaluation.tasks.hub import HubSource
from buzz.evaluation.tasks.section import TaskConfig

TEXT_FILE = "a .txt or .txt.gz file is wanted"
_LINE = re.compile(r"[^\n]*\n|[^\n]+")  # other line separators belong to the text
_TITLE = re.compile(r" = (?!= )(.+) = ")  # sections have more than one = on each side


@dataclass(frozen=True)
class StreamOptions:
    """Config keys of a text that is read token by token.

    Args:
        max_tokens: read at most so many tokens of a text; null: all.
        prefill: tokens of the first call, at once; they are context and not counted. Policies that compress prompts
            alone (SnapKV, PyramidKV) evict after this call or never, so with 1 they are the full cache.
    """

    max_tokens: int | None = field(default=None, metadata=at_least(2))
    prefill: int = field(default=1, metadata=at_least(1))


@dataclass(frozen=True)
class WikitextOptions(StreamOptions):
    """Config keys of WikiText.

    Args:
        protocol: "document", the standard way: every article is a text of its own, read from an empty cache. "lines",
            the BUZZ authors' way: the lines that are not blank, one by one, each tokenised alone; its first token is
            not predicted and its last one not read, and the cache is never reset. "stream": the whole text as one.
    """

    protocol: Literal["document", "lines", "stream"] = "document"


@dataclass(frozen=True)
class TextOptions(StreamOptions):
    """Config keys of a text of the user's own.

    Args:
        segment: cut it into texts of so many words, each read from an empty cache; null: it is one text.
    """

    segment: int | None = field(default=None, metadata=at_least(1))


class LanguageModeling(Task):
    """A task that reads texts and answers nothing. `task.prompt` has no place in it.

    Raises:
        ConfigError: as `Task`; or there is a prompt.
    """

    kind: ClassVar[Literal["generation", "perplexity"]] = "perplexity"
    fields: ClassVar[dict[str, Any]] = {"text": str}
    template: ClassVar[str] = "{text}"
    metrics: ClassVar[list[str]] = ["perplexity"]
    headline: ClassVar[str] = "perplexity"
    Options: ClassVar[type] = StreamOptions

    def __init__(self, config: TaskConfig) -> None:
        if config.prompt is not None:
            raise ConfigError("task.prompt", f"is given, but {config.name} reads its text as it is", "null is wanted")
        super().__init__(config)

    def pieces(self, sample: Sample) -> list[str]:
        """The parts of a sample's text that are tokenised alone and read one after the other."""
        return [sample.prompt]

    def calls(self, tokens: int, max_new_tokens: int) -> tuple[int, int]:
        # The last token is predicted, but never read.
        first = min(self.options.prefill, tokens - 1)
        return first, tokens - 1 - first

    def reference(self, row: Any) -> None:
        return None

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        return {}

    def _taken(self, texts: Iterable[tuple[str, str]]) -> list[Sample]:
        """The samples of pairs of an id and a text that the config asks for."""
        taken = [Sample(name, text, None, {"id": name}) for name, text in texts if self.taken(name)]
        return taken[: self.config.limit]


class Stream(LanguageModeling):
    """One long text of the user's own, such as a book, read from its first token to its last.

    Its id is the file's name; of segments, which `task.limit` counts, with a slash and the number, from 1.
    """

    name: ClassVar[str] = "stream"
    Options: ClassVar[type] = TextOptions

    def samples(self) -> list[Sample]:
        if self.config.data is None:
            raise ConfigError("task.data", f"is null, but {self.name} reads a text of your own", TEXT_FILE)
        path = resolve_path(self.config.data, "task.data")
        name, text, words = Path(path).name, read_text(path), self.options.segment
        if words is None:
            return self._taken([(name, text)])
        return self._taken([(f"{name}/{i}", part) for i, part in enumerate(segments(text, words), 1)])


class Wikitext(LanguageModeling):
    """WikiText-2, raw (Merity et al., arXiv 1609.07843): real case, nothing replaced by <unk>.

    The text is as the raw file has it, blank lines included. `task.limit` counts articles, or, with the protocol
    "lines", lines that are not blank; a stream has no use for it. The ids of these two are the protocol's name.
    """

    name: ClassVar[str] = "wikitext"
    hub: ClassVar[HubSource] = HubSource("Salesforce/wikitext", name="wikitext-2-raw-v1")
    Options: ClassVar[type] = WikitextOptions

    def samples(self) -> list[Sample]:
        text = self._text()
        if self.options.protocol == "document":
            return self._taken(articles(text))
        if self.options.protocol == "lines":
            text = "".join(written_lines(text)[: self.config.limit])
        return self._taken([(self.options.protocol, text)])

    def pieces(self, sample: Sample) -> list[str]:
        return written_lines(sample.prompt) if self.options.protocol == "lines" else [sample.prompt]

    def _text(self) -> str:
        if self.config.data is not None:
            return read_text(resolve_path(self.config.data, "task.data"))
        try:
            # Rows are lines; those that were blank (a space and a line feed) have become empty on the hub.
            rows = list(read_hub_rows(self.hub, self.config.split, {}, problem=_no_text))
        except ConfigError as error:
            raise ConfigError(error.where, error.what, "task.data takes a local .txt or .txt.gz file") from error
        return "".join(row["text"] or " \n" for row in rows)


def _no_text(row: Any) -> tuple[str, str] | None:
    return None if isinstance(row.get("text"), str) else ("has no field 'text' with text", "a line of text is wanted")


def segments(text: str, words: int) -> list[str]:
    """A text cut after every so many words; put together they are the text."""
    return re.findall(rf"(?:\s*\S+){{1,{words}}}(?:\s+\Z)?", text)


def written_lines(text: str) -> list[str]:
    """The lines that are not blank, each with its line feed."""
    return [line for line in _LINE.findall(text) if line.strip()]


def articles(text: str) -> list[tuple[str, str]]:
    """The articles of a WikiText file as pairs of an id and the text; put together they are the file again.

    An article begins at a line ` = Title = ` that stands between blank lines (some formulas look alike, but stand in
    the middle of a text). What comes before the first title belongs to the first article, or is an article of its own
    if it is more than blank lines.
    """
    lines = _LINE.findall(text)
    starts = [i for i in range(len(lines)) if _is_title(lines, i)]
    if not starts or "".join(lines[: starts[0]]).strip():
        starts.insert(0, 0)
    starts[0] = 0
    found = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True), 1):
        title = next(line for line in lines[start:end] if line.strip()).strip(" =\n")
        found.append((f"{number} {title[:60].strip()}", "".join(lines[start:end])))
    return found


def _is_title(lines: Sequence[str], i: int) -> bool:
    neighbours = [lines[k] for k in (i - 1, i + 1) if 0 <= k < len(lines)]
    return _TITLE.fullmatch(lines[i].rstrip("\n")) is not None and not any(line.strip() for line in neighbours)
