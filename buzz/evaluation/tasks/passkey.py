"""Passkey retrieval: numbers hidden at chosen depths of texts of chosen lengths, to be told at the end."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar

from buzz.evaluation.config.schema import at_least
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.metrics import recall
from buzz.evaluation.paths import fingerprint, resolve_path
from buzz.evaluation.tasks.base import Sample, Task, continuation
from buzz.evaluation.tasks.fields import Row
from buzz.evaluation.tasks.filler import fill, given_sentences, insert, invented, passage
from buzz.evaluation.tasks.grid import check_size, depth_list, length_list, spread
from buzz.evaluation.tasks.section import TaskConfig

# Of the texts alone, so that every run, whatever its own seed, asks the same.
_SEED = "passkey 1"
_COLOURS = ("amber", "copper", "crimson", "emerald", "ivory", "scarlet", "silver", "violet")
_THINGS = ("gate", "tower", "vault", "cellar")
_NAMES = [f"{colour} {thing}" for colour, thing in product(_COLOURS, _THINGS)]
_NEEDLE = "The pass key of the {} is {}."
_NEEDLE_WORDS = 9
_MOST_WORDS = 10**8  # in all texts together, which are held in memory


@dataclass(frozen=True)
class PasskeyOptions:
    """The grid of samples.

    Args:
        lengths: words of the text, needles included; a word is about 1.3 tokens.
        depths: where the first needle stands, as a share of the text's sentences: from 0 (start) to 1 (end).
        needles: keys hidden in one text; all are asked for. The others stand at equal distances after the first one,
            going on from the start of the text where it ends.
        per_cell: samples of each length and depth.
    """

    lengths: list[int] = field(
        default_factory=lambda: [500, 1000, 2000],
        metadata=length_list(20, "words"),
    )
    depths: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        metadata=depth_list(),
    )
    needles: int = field(default=1, metadata=at_least(1))
    per_cell: int = field(default=5, metadata=at_least(1, 10**6))


class Passkey(Task):
    """Passkey retrieval (Mohtashami and Jaggi, arXiv 2305.16300), with text that varies and several keys if wanted.

    A needle reads "The pass key of the amber gate is 48213.". The text around it is invented, or comes from the text
    file `task.data`; `task.split` is not used. A sample's id, such as length1000-depth0.25-3, names its cell, and its
    text depends on the options and that id alone. With a `task.limit` below the size of the grid, samples are taken
    from cells spread over the whole of it.

    Raises:
        ConfigError: also if the needles do not fit the shortest text, or there are more than names for them.
    """

    Options: ClassVar[type] = PasskeyOptions
    made: ClassVar[bool] = True
    name: ClassVar[str] = "passkey"
    fields: ClassVar[dict[str, Any]] = {}
    placeholders: ClassVar[Sequence[str]] = ("text", "question")
    template: ClassVar[str] = (
        "Somewhere in the following text pass keys are hidden. Remember them.\n\n{text}\n\n{question}\nAnswer:\n"
    )
    asks: ClassVar[tuple[str, str] | None] = ("text", "question")
    metrics: ClassVar[list[str]] = ["recall", "answer_nll"]
    headline: ClassVar[str] = "recall"

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        options = self.options
        most = min(len(_NAMES), (min(options.lengths) - 1) // _NEEDLE_WORDS)
        if options.needles > most:
            what = f"{options.needles} needles in {min(options.lengths)} words"
            raise ConfigError("task.needles", what, f"at most {most} can be hidden in the shortest text")
        samples = len(options.lengths) * len(options.depths) * options.per_cell
        check_size(options.lengths, samples, config.limit, _MOST_WORDS, "words")

    def samples(self) -> list[Sample]:
        options = self.options
        sentences = given_sentences(self.config.data, max(options.lengths))
        cells = list(product(options.lengths, options.depths))
        grid = spread(cells, options.per_cell, self.config.limit, lambda cell, index: self.taken(_name(*cell, index)))
        return [self.sample(self._row(length, depth, index, sentences)) for (length, depth), index in grid]

    def fingerprint(self) -> dict[str, Any]:
        if self.config.data is not None:
            return fingerprint(resolve_path(self.config.data, "task.data"))
        return {"generated": _SEED}

    def filling(self, row: Row) -> Mapping[str, Any]:
        names = [f"the {name}" for name in row["keys"]]
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        if len(names) == 1:
            question = f"What is the pass key of {listed}? Answer with the number alone."
        else:
            question = f"What are the pass keys of {listed}? Answer with the numbers in this order."
        return {"id": row["id"], "text": row["text"], "question": question}

    def reference(self, row: Row) -> Any:
        return list(row["keys"].values())

    def likely(self, sample: Sample) -> str | None:
        return continuation(sample.text, ", ".join(sample.reference))

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        return {"recall": recall(prediction, sample.reference)}

    def _row(self, length: int, depth: float, index: int, sentences: list[str] | None) -> Row:
        name = _name(length, depth, index)
        count = self.options.needles
        chance = random.Random(f"{_SEED} {count} {name}")
        owners = chance.sample(_NAMES, count)
        text = fill(passage(sentences, chance) if sentences else invented(chance), length - count * _NEEDLE_WORDS)
        numbers = set(re.findall(r"\d+", " ".join(text)))  # none of them may be a key
        keys: dict[str, str] = {}
        while len(keys) < count:
            key = str(chance.randrange(10_000, 100_000))
            if key not in numbers:
                numbers.add(key)
                keys[owners[len(keys)]] = key
        places = [depth + i / count for i in range(count)]
        slots = [round((place if place <= 1 else place - 1) * len(text)) for place in places]
        insert(text, sorted((slot, _NEEDLE.format(o, keys[o])) for slot, o in zip(slots, owners, strict=True)))
        return {"id": name, "text": " ".join(text), "keys": keys, "length": length, "depth": depth}


def _name(length: int, depth: float, index: int) -> str:
    """A sample's id."""
    return f"length{length}-depth{depth:g}-{index}"
