"""The task `ruler`: which texts are made, how they are asked about, and RULER's scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from buzz.evaluation.config.schema import MAX_SEED, at_least
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.metrics import string_match_all, string_match_part
from buzz.evaluation.paths import fingerprint, resolve_path
from buzz.evaluation.tasks.base import Sample, Task, continuation
from buzz.evaluation.tasks.fields import Row
from buzz.evaluation.tasks.filler import given_sentences
from buzz.evaluation.tasks.grid import check_size, depth_list, length_list, listed, spread
from buzz.evaluation.tasks.ruler import counts, needles, variables
from buzz.evaluation.tasks.ruler.texts import Asked
from buzz.evaluation.tasks.section import TaskConfig

_VERSION = "ruler 1"  # of the texts: whatever changes one of them changes this
_MOST_TOKENS = 10**8  # in all texts together, which are held in memory

# RULER's names, and about how many tokens each needs at least. Its two sets of questions are not made but data.
NAMES: dict[str, int] = {
    **dict.fromkeys(needles.KINDS, needles.LEAST),
    "vt": variables.LEAST,
    "cwe": counts.LEAST_COMMON,
    "fwe": counts.LEAST_FREQUENT,
}


class Cell(NamedTuple):
    """A place in the grid of samples; a task without a depth has a number in the place of each depth."""

    task: str
    length: int
    depth: float | None
    number: int


@dataclass(frozen=True)
class RulerOptions:
    """The grid of samples.

    Args:
        tasks: RULER's names.
        lengths: of prompt and answer prefix in tokens, about: as `texts.tokens_about` counts, whatever the model.
        depths: where the needle stands in tasks that ask for one, as a share of the haystack's sentences or lines: from
            0 (start) to 1 (end). The other tasks have as many samples, without a depth.
        per_cell: samples of each task, length and depth.
        seed: other samples of the same kind.
    """

    tasks: list[str] = field(
        default_factory=lambda: list(NAMES),
        metadata=listed((str,), lambda name: name in NAMES, f"a list of names among {', '.join(NAMES)} is wanted"),
    )
    lengths: list[int] = field(
        default_factory=lambda: [1024, 2048, 4096], metadata=length_list(min(NAMES.values()), "tokens, about")
    )
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0], metadata=depth_list())
    per_cell: int = field(default=5, metadata=at_least(1, 10**6))
    seed: int = field(default=0, metadata=at_least(0, MAX_SEED))


class Ruler(Task):
    """RULER's eleven tasks that are made, not read (Hsieh et al., arXiv 2404.06654): needles, chains, counts.

    The prose around needles is invented, or comes from the text file `task.data`; `task.split` is not used. A sample's
    id, such as niah_single_1/length1024-depth0.25-3 or vt/length1024-3, names its cell, and its text depends on the
    seed, the file and that id alone. `string_match_all` is RULER's score of these tasks; `string_match_part`, whether
    anything at all was found, is the one of its questions. The answer begins with RULER's prefix. RULER has another
    length of answer for each task; here `generation.max_new_tokens` holds for all of a run.

    Raises:
        ConfigError: also if a length is too short for a task, or `task.answer_prefix` is given.
    """

    Options: ClassVar[type] = RulerOptions
    made: ClassVar[bool] = True
    name: ClassVar[str] = "ruler"
    fields: ClassVar[dict[str, Any]] = {}
    placeholders: ClassVar[Sequence[str]] = ("opening", "context", "question")
    template: ClassVar[str] = "{opening}{context}\n{question}"
    asks: ClassVar[tuple[str, str] | None] = ("context", "question")
    metrics: ClassVar[list[str]] = ["string_match_all", "string_match_part", "answer_nll"]
    headline: ClassVar[str] = "string_match_all"

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        if config.answer_prefix is not None:
            raise ConfigError("task.answer_prefix", "is given, but ruler has prefixes of its own", "null is wanted")
        options = self.options
        for name in options.tasks:
            if min(options.lengths) < NAMES[name]:
                what = f"{min(options.lengths)} tokens are too few for {name}"
                raise ConfigError("task.lengths", what, f"at least {NAMES[name]} is wanted")
        samples = len(options.lengths) * len(options.depths) * len(options.tasks) * options.per_cell
        check_size(options.lengths, samples, config.limit, _MOST_TOKENS, "tokens")

    def samples(self) -> list[Sample]:
        options = self.options
        sentences = given_sentences(self.config.data, max(options.lengths))  # a word is at least one token
        cells = [
            Cell(name, length, depth if _has_depth(name) else None, number)
            for length in options.lengths
            for name in options.tasks
            for number, depth in enumerate(options.depths)
        ]
        grid = spread(
            cells, options.per_cell, self.config.limit, lambda cell, index: self.taken(self._name(cell, index))
        )
        return [self.sample(self._row(cell, index, sentences)) for cell, index in grid]

    def fingerprint(self) -> dict[str, Any]:
        if self.config.data is not None:
            return fingerprint(resolve_path(self.config.data, "task.data"))
        return {"generated": _VERSION}

    def filling(self, row: Row) -> Mapping[str, Any]:
        return {"id": row["id"], **{name: getattr(row["asked"], name) for name in self.placeholders}}

    def answer_prefix(self, row: Row) -> str:
        return row["asked"].prefix

    def reference(self, row: Row) -> Any:
        return row["asked"].references

    def likely(self, sample: Sample) -> str | None:
        return continuation(sample.text, sample.row["asked"].answer)

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        return {
            "string_match_all": string_match_all(prediction, sample.reference),
            "string_match_part": string_match_part(prediction, sample.reference),
        }

    def _name(self, cell: Cell, index: int) -> str:
        """A sample's id."""
        if cell.depth is None:
            return f"{cell.task}/length{cell.length}-{index * len(self.options.depths) + cell.number}"
        return f"{cell.task}/length{cell.length}-depth{cell.depth:g}-{index}"

    def _row(self, cell: Cell, index: int, sentences: list[str] | None) -> Row:
        name = self._name(cell, index)
        chance = random.Random(f"{_VERSION} {self.options.seed} {name}")
        return {"id": name, "asked": _made(cell, chance, sentences)}


def _has_depth(name: str) -> bool:
    return name in needles.KINDS and needles.KINDS[name].single


def _made(cell: Cell, chance: random.Random, sentences: list[str] | None) -> Asked:
    if cell.task == "vt":
        return variables.track(cell.length, chance)
    if cell.task == "cwe":
        return counts.common_words(cell.length, chance)
    if cell.task == "fwe":
        return counts.frequent_words(cell.length, chance)
    return needles.hide(needles.KINDS[cell.task], cell.length, cell.depth, chance, sentences)
