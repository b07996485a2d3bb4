"""The live display on a real pseudo-terminal: what the user sees, at 60, 80 and 200 columns and while they resize."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyte
import pytest
from rich.cells import cell_len

from tests.terminal import Terminal

PLAYER = """
import logging, sys, termios
from pipeline import language
from pipeline.progress import *
from pipeline.report.live import Progress
from tests.unit.test_report_live import MIB, ORDER, STARTED, result, running

settings = termios.tcgetattr(0)
settings[3] &= ~termios.ECHO
termios.tcsetattr(0, termios.TCSANOW, settings)
language.speak(sys.argv[1])
verbose, quiet = "-v" in sys.argv, "-q" in sys.argv
with Progress(None, 4, verbose=verbose, quiet=quiet, every_s=None) as progress:
    print("earlier line", flush=True)
    for step in sys.stdin:
        match step.strip():
            case "start":
                progress.on_event(Notice("before the first trial"))
                progress.on_event(STARTED)
            case "run":
                running(progress)
            case "valid":
                progress.on_event(TrialFinished(result("oneshot-off", 1)))
            case "long":
                progress.on_event(TrialStarted(2, "interactive-" + "long-name-" * 12, 2, 2))
            case "failed":
                progress.on_event(TrialFinished(result("interactive-off", 2, "failed", ["died of signal 9 " * 8])))
            case "foreign":
                print("a line on stdout")
                logging.getLogger("mlflow").warning("a warning on %s", "stderr")
                print("half a line, ", end="")
                progress._region.refresh()
                print("and its end")
            case "end":
                progress.on_event(SweepFinished("s1", 1, 0, 1))
                break
        if progress._region is not None:
            progress._region.refresh()
        sys.__stdout__.write("\\a"); sys.__stdout__.flush()  # a bell says that the step is drawn
print("after it", flush=True)
"""


class Player(Terminal):
    """The player on a terminal, step by step."""

    def step(self, name: str) -> None:
        """One step, drawn."""
        bells = self.sent.count(b"\a")
        self.type(f"{name}\n")
        self.wait_for(lambda: self.sent.count(b"\a") > bells)


@contextmanager
def player(columns: int, *options: str, lang: str = "en", **environment: str) -> Iterator[Player]:
    terminal = Player([sys.executable, "-c", PLAYER, lang, *options], columns, 30, **environment)
    with terminal:
        terminal.wait_for("earlier line")
        yield terminal


@pytest.mark.parametrize(("columns", "lang"), [(60, "en"), (60, "ja"), (80, "en"), (200, "ja")])
def test_four_lines_that_never_wrap_and_leave_no_trace(columns: int, lang: str) -> None:
    with player(columns, lang=lang) as terminal:
        for step in ("start", "run", "valid", "long"):
            terminal.step(step)
            assert terminal.rows[:2] == ["earlier line", "before the first trial"]
            assert len(terminal.rows) <= 6, terminal.text
            assert all(cell_len(row) < columns for row in terminal.rows)
            if step == "run":
                sweep, stage, memory, question = terminal.rows[2:]
                assert sweep.startswith("mode_gap") and ("1 of 4" in sweep or "1/4" in sweep)
                assert "41/64" in stage and "oneshot-off" in stage
                assert "158 + 14 MiB" in memory and "173" in memory
                assert question.startswith("Does [bold]it[/bold]")
        assert "long-name-long-name" in terminal.rows[3]
        terminal.step("failed")
        assert "died of signal 9" in terminal.text  # stays above
        terminal.type("end\n")
        terminal.wait_for("after it")
        assert terminal.end() == 0
        assert terminal.rows[-1] == "after it"
        assert "mode_gap" not in terminal.text
        assert not terminal.screen.cursor.hidden


def test_a_frame_is_drawn_over_the_last_one_and_never_onto_a_cleared_screen() -> None:
    with player(80) as terminal:
        terminal.step("start")
        terminal.step("run")
        before = len(terminal.sent)
        terminal.step("valid")
        frames = terminal.sent[before:].split(b"\x1b[?2026h")[1:]
        assert frames
        for frame in frames:
            drawn, _, rest = frame.partition(b"\x1b[?2026l")
            assert b"\x1b[J" not in drawn[:-3] and b"\x1b[2J" not in drawn
            assert b"\x1b[" not in rest


def test_a_terminal_that_changes_its_width_shows_the_display_once() -> None:
    with player(200) as terminal:
        for step in ("start", "run"):
            terminal.step(step)
        for columns in (60, 130, 50, 80):
            terminal.resize(columns)
            terminal.step("redraw")
            assert len(terminal.rows) == 6, terminal.text
            assert terminal.text.count("mode_gap") == 1
            assert terminal.text.count("MiB") == 1
            assert all(cell_len(row) < columns for row in terminal.rows)


def test_a_terminal_that_wraps_anew_when_it_is_made_narrower_is_not_torn() -> None:
    with player(200, TERM="xterm-256color") as terminal:
        for step in ("start", "run"):
            terminal.step(step)
        rows = terminal.rows
        for columns in (60, 45):
            wrapped = [row[at:at + columns] for row in rows for at in range(0, max(1, len(row)), columns)]
            assert len(wrapped) > len(rows)
            terminal.resize(columns)
            terminal.screen.reset()
            terminal.stream.feed("\r\n".join(wrapped).encode())
            terminal.step("redraw")
            assert terminal.text.count("mode_gap") == 1, terminal.text
            assert len(terminal.rows) == 6, terminal.text
            rows = terminal.rows


def test_what_others_print_meanwhile_stays_whole_above_the_display() -> None:
    with player(80) as terminal:
        for step in ("start", "run", "foreign", "redraw"):
            terminal.step(step)
        assert terminal.rows[1:5] == ["before the first trial", "a line on stdout", "a warning on stderr",
                                      "half a line, and its end"]
        assert len(terminal.rows) == 9 and terminal.text.count("mode_gap") == 1, terminal.text


def test_no_color_is_heeded() -> None:
    with player(80) as terminal:
        terminal.step("start")
        terminal.step("run")
        assert re.search(rb"\x1b\[[0-9;]*3[0-9][0-9;]*m", terminal.sent)
    with player(80, NO_COLOR="1") as terminal:
        terminal.step("start")
        terminal.step("run")
        terminal.step("failed")
        assert not re.search(rb"\x1b\[[0-9;]*[349][0-9][0-9;]*m", terminal.sent)
        assert "▓" in terminal.text


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_dumb_terminal_and_a_ci_job_get_plain_lines(environment: dict[str, str]) -> None:
    with player(80, **environment) as terminal:
        for step in ("start", "run", "valid", "failed", "end"):
            terminal.type(f"{step}\n")
        assert terminal.end() == 0
        assert "trial 1 of 4  oneshot-off   valid   settled 194.3 MiB after 2.0 s" in terminal.text
        assert "trial 2 of 4  interactive-off   failed   died of signal 9" in terminal.text
        assert "▓" not in terminal.text
        assert b"\x1b[?" not in terminal.sent and b"\x1b[J" not in terminal.sent


def test_quiet_is_quiet_and_verbose_keeps_a_line_for_every_trial() -> None:
    with player(80, "-q") as terminal:
        for step in ("start", "run", "valid", "failed", "end"):
            terminal.type(f"{step}\n")
        assert terminal.end() == 0
        assert terminal.rows == ["earlier line", "after it"]
    with player(80, "-v") as terminal:
        for step in ("start", "run", "valid"):
            terminal.step(step)
        assert "trial 1 of 4  oneshot-off   valid   settled 194.3 MiB" in terminal.text
        assert len(terminal.rows) > 6


def test_the_screen_of_these_tests_would_show_a_line_that_wraps() -> None:
    screen = pyte.Screen(10, 5)
    pyte.ByteStream(screen).feed(b"0123456789abc")
    assert screen.display[1].rstrip() == "abc"
