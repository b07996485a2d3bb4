"""The rule for every wait: what is progress, what ends it, what is said then. On processes of known CPU use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pipeline.engine.waiting import OuterLimit, Wait, cpu_seconds

BUSY = "while True: pass"
IDLE = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        for pid in cpu_seconds(each.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        each.wait()


def run(program: str, running: list[subprocess.Popen[bytes]]) -> int:
    running.append(subprocess.Popen([sys.executable, "-S", "-c", program]))
    time.sleep(0.3)  # a Python that starts is busy too
    return running[-1].pid


def outlived(wait: Wait, seconds: float) -> str:
    """Why the wait was over within these seconds; "" if it was not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if reason := wait.overdue("no token"):
            return reason
        time.sleep(0.02)
    return ""


@pytest.mark.parametrize("program", [BUSY, PARENT], ids=["itself", "its child"])
def test_a_server_that_computes_is_waited_for_beyond_the_limit(program: str,
                                                               running: list[subprocess.Popen[bytes]]) -> None:
    wait = Wait("generation", 0.4, "engine.no_progress_s", run(program, running))
    assert outlived(wait, 1.0) == ""


def test_a_server_that_sleeps_is_given_up_at_the_limit(running: list[subprocess.Popen[bytes]]) -> None:
    wait = Wait("generation", 0.4, "engine.no_progress_s", run(IDLE, running))
    began = time.monotonic()
    assert outlived(wait, 5.0) == (
        "made no progress during generation: no token for 0.4 s, and less than 0.1 core used by its processes. "
        "Raise engine.no_progress_s if this machine is that slow")
    assert 0.4 <= time.monotonic() - began < 2.0


def test_a_server_that_is_stopped_is_given_up_within_two_seconds(running: list[subprocess.Popen[bytes]]) -> None:
    pid = run(BUSY, running)
    wait = Wait("generation", 60.0, "engine.no_progress_s", pid)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert outlived(wait, 10.0) == f"was stopped (SIGSTOP) during generation: process {pid}, or one below it"
    assert time.monotonic() - began < 2.5


def test_tokens_and_loaded_bytes_are_progress_without_any_cpu(running: list[subprocess.Popen[bytes]]) -> None:
    pid, loaded = run(IDLE, running), [0]
    wait = Wait("load", 0.4, "engine.no_progress_s", pid, loaded_bytes=lambda: loaded[0])
    for _ in range(4):
        loaded[0] += 1
        assert outlived(wait, 0.15) == ""
    for _ in range(4):
        wait.moved()
        assert outlived(wait, 0.15) == ""
    assert outlived(wait, 5.0)


def test_a_server_out_of_sight_has_longer_and_the_reason_says_why() -> None:
    wait = Wait("generation", 0.1, "engine.no_progress_s", 0)
    assert outlived(wait, 0.3) == ""
    assert "no token for 0.5 s (5 × engine.no_progress_s=0.1: its processes cannot be seen from here" in outlived(
        wait, 5.0)


def test_a_server_that_is_busy_for_ever_ends_at_the_outer_limit_and_the_reason_says_which(
        running: list[subprocess.Popen[bytes]]) -> None:
    outer = OuterLimit(time.monotonic() + 1.0, "6:00 h (engine.trial_limit_s)")
    wait = Wait("generation", 60.0, "engine.no_progress_s", run(BUSY, running), outer)
    assert outlived(wait, 5.0) == (
        "was still busy during generation when the trial had lasted 6:00 h (engine.trial_limit_s), its outer limit")
