"""How far a run is: on a terminal a bar over all methods that moves with every call, elsewhere a line a method."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

PROMPT_TOKENS = 64  # about as many tokens of a prompt take as long as a step: so they weigh as much
_QUIET = 60.0  # seconds between two lines about a method that is not done
_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Figures(NamedTuple):
    """What a process did for a method: samples, tokens of its steps and the seconds of these, summed mean cache lengths
    of the samples."""

    samples: int
    tokens: int
    seconds: float
    cached: float


class Progress:
    """A bar for a run on a terminal; elsewhere a line once a method is done, and once a minute before.

    Args:
        planned: by method, in the order of work, how much is left of it in this process, see `weight`.
        shown: False in a process that keeps quiet.
    """

    def __init__(self, planned: Mapping[str, float], shown: bool = True) -> None:
        self._planned = dict(planned)
        self._places = {name: f"{place}/{len(planned)} {name}" for place, name in enumerate(planned, 1)}
        terminal = sys.stderr.isatty()
        self._lines = shown and not terminal
        # All methods count for the time that is left, so the mean speed does, not the last moments'.
        self._bar = tqdm(
            total=sum(planned.values()) or None,
            smoothing=0,
            miniters=0,  # else a prompt, which moves it far, would have it wait for as many steps
            bar_format=_BAR,
            dynamic_ncols=True,
            disable=not shown or not terminal or not any(planned.values()),
        )
        self._started = self._said = time.monotonic()
        self._before = 0.0  # of methods that are done
        self._name, self._did, self._last = "", 0.0, self._started

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, name: str) -> None:
        """A method comes next."""
        self._name, self._prompt, self._did = name, 0.0, 0.0
        self._samples, self._tokens, self._seconds, self._cached = 0, 0, 0.0, 0.0
        self._bar.set_description_str(self._places[name])

    def batch(self, prompt: float) -> None:
        """A batch comes next, whose prompts weigh as much, see `prompt_weight`."""
        self._prompt = prompt

    def tell(self, rows: int, cached: float, first: bool) -> None:
        """A call is over: of so many rows, which hold so many tokens in the mean; the first one is that of a prompt."""
        now = time.monotonic()
        if not first:
            self._tokens += rows
            self._seconds += now - self._last
        self._last = now
        self._move(self._prompt if first else 1.0)
        self._bar.set_postfix_str(self._rate(self._tokens, self._seconds, cached), refresh=False)
        if self._lines and now - self._said > _QUIET:
            self._say(f"{self._places[self._name]}: {self._rate(self._tokens, self._seconds, cached)}")

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take in a finished batch."""
        self._samples += len(records)
        self._cached += sum(record["cache"]["mean_tokens"] for record in records)

    def figures(self) -> Figures:
        """Of the method so far."""
        return Figures(self._samples, self._tokens, self._seconds, self._cached)

    def finish(self, everybody: Sequence[Figures]) -> None:
        """The method is done: the line, of all processes together, where there is no bar."""
        self._move(self._planned[self._name])
        self._before, self._did = self._before + self._planned[self._name], 0.0
        samples, tokens = sum(one.samples for one in everybody), sum(one.tokens for one in everybody)
        if samples:
            mean = sum(one.cached for one in everybody) / samples
            rate = self._rate(tokens, max(one.seconds for one in everybody), mean)
            self._say(f"{self._places[self._name]}: {samples} sample{'s' if samples != 1 else ''}, {rate}")

    def give_up(self, name: str) -> None:
        """Nothing more comes of a method."""
        done = self._did if name == self._name else 0.0
        self._bar.total = (self._bar.total or 0.0) - self._planned[name] + done
        self._planned[name], self._before, self._did = done, self._before + done, 0.0

    def _move(self, by: float) -> None:
        """Go on, but never past what was planned of the method: answers are short, and some samples run again."""
        by = min(by, self._planned[self._name] - self._did)
        self._did += by
        self._bar.update(by)

    @property
    def left(self) -> float | None:
        """Seconds that are left at the mean speed so far; None: not known yet."""
        done = self._before + self._did
        return (time.monotonic() - self._started) * (sum(self._planned.values()) / done - 1) if done else None

    @staticmethod
    def _rate(tokens: int, seconds: float, cached: float) -> str:
        speed = f"{tokens / seconds:.1f} tokens/s, " if tokens and seconds else ""
        return f"{speed}{cached:.0f} cached"

    def _say(self, line: str) -> None:
        if self._lines:
            self._said, left = time.monotonic(), self.left
            rest = f"; {tqdm.format_interval(left)} left" if left is not None and left >= 1 else ""
            print(f"{line}{rest}", file=sys.stderr, flush=True)


def weight(prompt_tokens: int, calls: int, echo: bool, passes: int) -> float:
    """What samples cost that are read in one batch, in steps of a batch.

    Args:
        prompt_tokens: of all prompts. calls: one-token calls. echo: prompts are read twice. passes: over all of it.
    """
    return passes * (prompt_weight(prompt_tokens, echo) + calls)


def prompt_weight(prompt_tokens: int, echo: bool) -> float:
    """What reading the prompts costs, in steps."""
    return (1 + echo) * prompt_tokens / PROMPT_TOKENS
