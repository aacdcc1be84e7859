"""A call that is read twice: it waits, with all that it holds, until its copy has been read, and evicts then.

What the copy is for: `Policy.echo_chunk`. A chunk of it is a call like any other to the layers: it appends behind the
slots of the call that waits, attends, and observes. But no length is advanced, so that its slots are forgotten, and the
next chunk is written over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from buzz.cache.call import Call
from buzz.cache.schedule import Eviction, Step
from buzz.policies import Policy, ScoreSpec
from buzz.rows import Rows

# Tokens of the chunk before that every chunk but the first starts with. They are read and do not count for the scores.
# Other words that lead a chunk in would be counted like these, in `Copy.counts` and not in `Copy.heard`, and be put in
# front of its tokens in `buzz.patching.echo`.
_LEAD = 0


class Copy(NamedTuple):
    """A chunk of a call's tokens as it is read again: of row b the tokens begins[b] .. begins[b] + counts[b] - 1.

    heard: how many of a row's tokens, the last ones, count for the scores.
    """

    begins: Rows
    counts: Rows
    heard: Rows

    @property
    def width(self) -> int:
        """Columns of the chunk."""
        return max(self.counts)


@dataclass(frozen=True)
class Repeated(Step):
    """What a chunk of the copy means for the layers of one schedule; nothing is evicted after it.

    asked: the scores that attention must give.
    """

    asked: ScoreSpec | None = None

    @cached_property
    def evictions(self) -> list[Eviction]:
        return []

    @cached_property
    def steps(self) -> Rows | None:
        return None

    @cached_property
    def spec(self) -> ScoreSpec | None:
        return self.asked


class Hearing:
    """A call that waits, and what its layers have heard of it.

    Args:
        call: the call.
        schedule_of: the schedule of each layer.

    Attributes:
        copies: the chunks of the copy, in their order; none: the call need not be read twice.
        is_read: whether pools count the call among what they hold.
    """

    def __init__(self, call: Call, schedule_of: Sequence[int]) -> None:
        self.call, self._schedule_of = call, schedule_of
        self.copies = list(_copies(call))
        self._first: list[torch.Tensor | None] = [None] * len(schedule_of)
        self._largest: list[torch.Tensor | None] = [None] * len(schedule_of)
        self._ends: list[Rows] = [Rows()] * len(schedule_of)
        self.is_read = False

    @cached_property
    def _longest(self) -> list[int]:
        """Tokens of each row's longest chunk."""
        return [max(row) for row in zip(*(copy.counts for copy in self.copies), strict=True)]

    def slots(self, schedule: int) -> int:
        """Slots of the longest row with a chunk of the copy behind it, in the layers of a schedule."""
        return max(end + chunk for end, chunk in zip(self.call.steps[schedule].ends, self._longest, strict=True))

    def last_positions(self, last: Sequence[int]) -> list[int]:
        """Of rows whose last tokens have these positions: the last ones that their copies need."""
        return [position + chunk for position, chunk in zip(last, self._longest, strict=True)]

    def repeat(self, copy: Copy) -> Call:
        """A chunk of the copy as a call."""
        most = ScoreSpec(False, tuple(copy.heard), "largest")
        steps: list[Step] = [
            Repeated(
                step.policies, Rows(step.ends), copy.counts, step.sampled, step.heads, step.several,
                asked=most if step.echoes and step.scores else None,
            )
            for step in self.call.steps
        ]  # fmt: skip
        first = self.call.first + self.call.columns
        seen = [seen + count for seen, count in zip(self.call.seen, self.call.counts, strict=True)]
        return Call(copy.width, list(copy.counts), steps, None, None, first, seen, self.call.counted)

    def take(self, layer: int, scores: torch.Tensor | None, ends: Rows, step: Step) -> None:
        """A layer has read the call, or a chunk of its copy.

        Args:
            scores: what its slots received, float32 [R, H, S or more], a row of it for each row, or for each head.
            ends: slots of each of these rows.
        """
        if not isinstance(step, Repeated):
            self._first[layer], self._ends[layer] = scores, ends
        elif scores is not None:
            scores = scores[:, :, : max(self._ends[layer])]
            largest = self._largest[layer]
            self._largest[layer] = scores.clone() if largest is None else torch.maximum(largest, scores, out=largest)

    def scores(self, layer: int) -> torch.Tensor | None:
        """What a layer's slots got in both readings, float32 [R, H, S], as its policies hear it; told once."""
        ends, first, echo = self._ends[layer], self._first[layer], self._largest[layer]
        self._first[layer] = self._largest[layer] = None
        if echo is None:
            return first
        if len(set(ends)) > 1:  # behind the slots of a shorter row were those of its copy
            slots = torch.arange(echo.shape[2], device=echo.device)
            echo.masked_fill_(slots >= ends.on(echo.device)[:, None, None], 0)
        return heard(self.call.steps[self._schedule_of[layer]], first, echo)


def heard(step: Step, first: torch.Tensor | None, echo: torch.Tensor) -> torch.Tensor:
    """The scores of a call by the policy of each row, float32 like what it hears (`Policy.heard`).

    Args:
        first, echo: [R, H, S], as many rows of it for each row of the call. Zeros if there was no copy. Of a row that
            counts as a one-token call (`Step.steps`), `first` has the scores of such a call.
    """
    rows: dict[Policy, list[int]] = {}
    each, steps = len(echo) // len(step.policies), step.steps or ()
    for row, policy in enumerate(step.policies):
        if row not in steps:
            rows.setdefault(policy, []).extend(range(row * each, (row + 1) * each))
    if len(rows) == 1 and not steps:
        return step.policies[0].heard(first, echo)
    scores = torch.empty_like(echo) if first is None else first.clone()  # those of one-token calls are there
    asked = first if step.spec is not None else None
    for policy, some in rows.items():
        index = Rows(some).on(echo.device)
        scores[index] = policy.heard(None if asked is None else asked[index], echo[index])
    return scores


def _copies(call: Call) -> Iterator[Copy]:
    """The chunks of the copy: every row is cut as it would be alone, and one that lets go of nothing has none."""
    sizes = [_chunk(call.steps, row) for row in range(len(call.counts))]
    begins = [0] * len(sizes)
    while True:
        left = [count - begin if size else 0 for count, begin, size in zip(call.counts, begins, sizes, strict=True)]
        if not any(left):
            return
        fed = Rows(map(min, left, sizes))
        leads = Rows(min(_LEAD, begin) if n else 0 for begin, n in zip(begins, fed, strict=True))
        starts = Rows(begin - lead for begin, lead in zip(begins, leads, strict=True))
        yield Copy(starts, Rows(map(sum, zip(fed, leads, strict=True))), fed)
        begins = [begin + n for begin, n in zip(begins, fed, strict=True)]


def _chunk(steps: Sequence[Step], row: int) -> int:
    """Tokens of a row that are read again at once; 0: none are, as no layer that would hear them lets go of any."""
    chunks = [step.policies[row].echo_chunk for step in steps if step.echoes and _drops(step, row)]
    if steps[0].counts[row] == 1:
        return 0  # what is read token by token is no text
    return min((chunk for chunk in chunks if chunk is not None), default=0)


def _drops(step: Step, row: int) -> bool:
    """Whether a row lets go of something after the call."""
    return step.after[row][0] < step.ends[row]
