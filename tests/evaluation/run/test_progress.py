"""Progress: a bar that moves with every call, and lines where there is no terminal."""

from __future__ import annotations

import sys

import pytest

from buzz.evaluation.run import progress as module
from buzz.evaluation.run.progress import Figures, Progress, prompt_weight, weight


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def records(count: int, cached: float) -> list[dict]:
    return [{"cache": {"mean_tokens": cached}}] * count


def one_batch(progress: Progress, clock: Clock, name: str, steps: int = 4, rows: int = 2) -> None:
    """A prompt that weighs ten steps and takes as long, then steps of half a second."""
    progress.begin(name)
    progress.batch(10)
    clock.now += 5
    progress.tell(rows, 300.0, True)
    for step in range(steps):
        clock.now += 0.5
        progress.tell(rows, 100.0 + step, False)
    progress.add(records(rows, 101.5))


def test_a_line_a_method(clock, capsys):
    with Progress({"full": 14.0, "buzz": 14.0}) as progress:
        one_batch(progress, clock, "full")
        assert progress.figures() == Figures(2, 8, 2.0, 203.0)
        progress.finish([progress.figures()])
        one_batch(progress, clock, "buzz")
        progress.finish([progress.figures(), Figures(1, 4, 4.0, 200.0)])
    assert capsys.readouterr().err.splitlines() == [
        "1/2 full: 2 samples, 4.0 tokens/s, 102 cached; 00:07 left",
        "2/2 buzz: 3 samples, 3.0 tokens/s, 134 cached",
    ]


def test_a_line_a_minute_of_a_long_method(clock, capsys):
    with Progress({"full": 1000.0}) as progress:
        progress.begin("full")
        progress.batch(0)
        progress.tell(1, 10.0, True)
        for _ in range(500):
            clock.now += 0.5
            progress.tell(1, 20.0, False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "1/1 full: 2.0 tokens/s, 20 cached; 07:19 left"


def test_every_call_moves_it_and_never_past_the_plan(clock):
    with Progress({"full": 12.0, "gone": 20.0, "buzz": 12.0}, shown=False) as progress:
        progress.begin("full")
        progress.batch(10)
        assert progress.left is None
        clock.now += 5
        progress.tell(2, 1.0, True)
        assert progress.left == pytest.approx(5 * 44 / 10 - 5)
        for _ in range(5):  # three more than planned
            clock.now += 1
            progress.tell(2, 1.0, False)
        assert progress.left == pytest.approx(10 * 44 / 12 - 10)
        progress.finish([progress.figures()])
        progress.give_up("gone")
        assert progress.left == pytest.approx(10)
        progress.begin("buzz")
        clock.now += 2
        progress.tell(2, 1.0, True)  # of a batch of which nothing is known
        progress.finish([progress.figures()])
        assert progress.left == pytest.approx(0)


def test_a_terminal_has_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress({"full": 14.0, "buzz": 14.0}) as progress:
        progress._bar.mininterval = 0
        one_batch(progress, clock, "full")
        progress.finish([progress.figures()])
        one_batch(progress, clock, "buzz", steps=2)
        assert progress._bar.n == pytest.approx(14 + 12)
        progress._bar.refresh()
    shown = capsys.readouterr().err.split("\r")
    last = [part for part in shown if "2/2 buzz" in part][-1]
    assert " 93%|" in last
    assert "4.0 tokens/s, 101 cached" in last
    assert len({part.split("|")[0] for part in shown if "1/2 full" in part}) >= 4  # it moved with the steps


def test_nothing_to_do_shows_nothing(capsys):
    with Progress({"full": 0.0, "buzz": 0.0}):
        pass
    assert capsys.readouterr().err == ""


def test_weights():
    assert prompt_weight(640, False) == 10
    assert prompt_weight(640, True) == 20
    assert weight(640, 30, False, 2) == 80
