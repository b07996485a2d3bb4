"""Ctrl-C and SIGTERM are held back while something is finished; what was ignored from the start stays ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.interrupt import SIGNALS, held_back
from tests import conftest


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_while_it_is_held_back_and_acts_again_afterwards(number: int) -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(number, stop)
    with held_back() as held:
        signal.raise_signal(number)
    assert held.came
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_as_in_a_background_job_stays_ignored(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    with held_back() as held:
        signal.raise_signal(number)
    assert not held.came
    assert signal.getsignal(number) is signal.SIG_IGN


def test_the_tests_hear_ctrl_c_and_have_a_terminal_wherever_they_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    conftest.pytest_configure()
    program = "import os, signal; print(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN, os.environ['TERM'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "xterm-256color"]
    assert "NO_COLOR" not in os.environ
