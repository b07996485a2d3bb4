"""What is shown while a sweep runs: on a terminal, in a pipe, and when nothing is known yet."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from pipeline.progress import (
    Reading,
    StageEntered,
    SweepFinished,
    SweepStarted,
    TokenCount,
    TrialFinished,
    TrialStarted,
)
from pipeline.record.trial import TrialRecord, Verdict
from pipeline.report.live import Progress, sparkline
from tests.unit.made_records import said

MIB = 1024 * 1024
ORDER = ["oneshot-off", "interactive-off", "interactive-off", "oneshot-off"]
STARTED = SweepStarted("s1", "Does [bold]it[/bold] need more?", sorted(set(ORDER)), 4, ORDER, 2, "mode_gap")


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def result(cell: str, order: int, verdict: Verdict = "valid", reasons: Sequence[str] = ()) -> TrialRecord:
    mode, _, infer_os = cell.partition("-")
    metrics = {"stabilized/tree_rss_mib": {1: 194.26}, "stabilized/time_to_stable_s": {1: 2.04},
               "during_generation/tree_rss_peak_mib": {1: 198.1}} if verdict == "valid" else {}
    return TrialRecord("s1", cell, 1, 1, order, mode, infer_os, verdict, 0, 0, tuple(map(said, reasons)), turns=metrics)


def screen(progress: Progress, width: int) -> list[str]:
    return [line.plain for line in progress.lines(width)]


def running(progress: Progress) -> None:
    progress.on_event(TrialStarted(1, ORDER[0], 1, 1))
    progress.on_event(StageEntered("start", 0, 1))
    progress.on_event(Reading(0, 0, 0, 0, 0, 0))  # nothing is there yet, which is not the empty server
    progress.on_event(StageEntered("measure", 0, 1))
    progress.on_event(Reading(22 * MIB, 10 * MIB, 0, 0, 32 * MIB, 0))
    progress.on_event(StageEntered("generate", 2, 3))
    for second in range(1, 30):
        progress.on_event(Reading(158 * MIB, 14 * MIB, 0, 0, 173 * MIB, second * 10**9))
    progress.on_event(TokenCount(41, 64))


def test_in_a_pipe_one_plain_line_per_finished_trial() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=40), 4) as progress:
        progress.on_event(STARTED)
        running(progress)
        progress.on_event(TrialFinished(result("oneshot-off", 1)))
        progress.on_event(TrialStarted(2, ORDER[1], 1, 1))
        progress.on_event(TrialFinished(result("interactive-off", 2, "failed", ["died [red]of[/red] signal 9"])))
        progress.on_event(SweepFinished("s1", 1, 0, 1))
    assert out.getvalue() == (
        "trial 1 of 4  oneshot-off   valid   settled 194.3 MiB after 2.0 s, peak 198.1 MiB\n"
        "trial 2 of 4  interactive-off   failed   died [red]of[/red] signal 9\n")


def test_quiet_says_nothing() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True), 4, quiet=True) as progress:
        progress.on_event(STARTED)
        running(progress)
        progress.on_event(TrialFinished(result("oneshot-off", 1)))
    assert out.getvalue() == ""


def test_the_region_is_gone_and_the_cursor_back_when_the_sweep_ends_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)

    def sweep() -> None:
        with Progress(console, 4) as progress:
            progress.on_event(STARTED)
            running(progress)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep()
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("width", [60, 80, 130, 200])
def test_four_lines_that_fit_the_terminal(width: int) -> None:
    progress = Progress(Console(file=io.StringIO()), 4)
    progress.on_event(STARTED)
    running(progress)
    lines = screen(progress, width)
    assert len(lines) == 4
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("mode_gap  block 1 of 2")
    assert "trial 1 of 4" in lines[0]
    assert lines[1] == "oneshot-off   turn 2 of 3   generate 41/64 tokens"
    assert "158 + 14 MiB" in lines[2]
    assert "peak 173" in lines[2]
    assert "empty 32" in lines[2]
    assert "[bold]" in lines[3]


def test_before_the_first_event_there_is_something_to_show() -> None:
    assert len(screen(Progress(Console(file=io.StringIO()), 4), 80)) == 4


def test_time_left_uses_what_each_cell_took() -> None:
    clock = Clock()
    progress = Progress(Console(file=io.StringIO()), 4, clock=clock)
    progress.on_event(STARTED)
    assert progress.left_s() is None
    for order, seconds in ((1, 10.0), (2, 30.0)):
        progress.on_event(TrialStarted(order, ORDER[order - 1], 1, 1))
        clock.now += seconds
        progress.on_event(TrialFinished(result(ORDER[order - 1], order)))
    assert progress.left_s() == 40.0
    progress.on_event(TrialStarted(3, ORDER[2], 2, 2))
    clock.now += 12.0
    assert progress.left_s() == 28.0


def test_time_left_of_the_first_trial_comes_from_earlier_sweeps() -> None:
    progress = Progress(Console(file=io.StringIO()), 4, clock=Clock())
    progress.on_event(SweepStarted("s1", "", ORDER, 4, ORDER, expected_trial_s=7.0))
    assert progress.left_s() == 28.0


def test_it_draws_while_its_numbers_change_in_another_thread() -> None:
    """The live display died once when a cell was new in the moment it was drawn."""
    progress, drawn, ended = Progress(Console(file=io.StringIO())), list[int](), threading.Event()
    progress.on_event(STARTED)

    def draw() -> None:
        while not ended.is_set():
            drawn.append(len(screen(progress, 80)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor() as pool:
            drawing = pool.submit(draw)
            for order in range(400):
                progress.on_event(TrialStarted(order, f"cell{order}", 1, 1))
                progress.on_event(TrialFinished(result(f"cell{order}", order)))
                progress.on_event(Reading(order * MIB, 0, 0, 0, 0, order * 10**9))
            ended.set()
            drawing.result(30)
    finally:
        ended.set()
        sys.setswitchinterval(interval)
    assert set(drawn) == {4}


def test_a_sparkline_starts_at_zero() -> None:
    assert sparkline([0, 50, 100, 200], 100) == "▁▅██"
