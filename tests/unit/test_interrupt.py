"""Signals end the program and are not swallowed; they are held back while something is finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator

import pytest

from pipeline import interrupt
from pipeline.cli import main, program
from pipeline.interrupt import SIGNALS, ended_by_ctrl_c, held_back, listening
from tests import conftest


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    interrupt._came.clear()
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


def test_an_interruption_that_python_drops_in_a_weak_references_callback_comes_again(
        capsys: pytest.CaptureFixture[str]) -> None:
    """A library's callback during imports took a Ctrl-C, and the sweep ran on."""
    class Thing:
        pass

    def callback(dead: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with listening(is_program=False):
        thing = Thing()
        kept = weakref.ref(thing, callback)
        del thing
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
    assert kept() is None
    assert capsys.readouterr().err == ""


def test_an_interruption_that_a_library_swallows_is_found_where_work_begins() -> None:
    with listening(is_program=False):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:  # noqa: BLE001
            swallowed = True
        with held_back():
            interrupt.check()  # not here
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
    assert swallowed and interrupt.exit_code() == 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("outcome", [0, 1, RuntimeError("what a library made of it")], ids=repr)
def test_however_a_command_takes_a_signal_the_exit_code_says_which_it_was(
        outcome: int | Exception, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(words: list[str]) -> int:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            if isinstance(outcome, Exception):
                raise outcome from None
        return int(str(outcome))

    monkeypatch.setattr(program, "_command", ends)
    assert main([]) == code


def test_ctrl_c_may_be_how_a_user_ends_a_watch_and_sigterm_still_interrupts() -> None:
    with listening(is_program=False):
        with ended_by_ctrl_c():
            signal.raise_signal(signal.SIGINT)
        assert not interrupt.came()
        with pytest.raises(KeyboardInterrupt), ended_by_ctrl_c():
            signal.raise_signal(signal.SIGTERM)


def test_when_the_terminal_is_gone_nothing_is_said_there_any_more() -> None:
    """What a closed terminal refuses would else be an error in the middle of the end."""
    master, slave = os.openpty()
    code = ("import os, signal, sys\n"
            "from pipeline import interrupt\n"
            "try:\n"
            "    with interrupt.listening(is_program=True):\n"
            "        os.write(1, b'up'); signal.pause()\n"
            "except KeyboardInterrupt:\n"
            "    print('the end', flush=True); print('the end', file=sys.stderr, flush=True); os._exit(7)\n")
    running = subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, cwd=conftest.ROOT)
    os.close(slave)
    assert os.read(master, 2) == b"up"
    os.close(master)
    running.send_signal(signal.SIGHUP)
    assert running.wait(20) == 7


def test_the_tests_hear_ctrl_c_and_have_a_terminal_wherever_they_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    conftest.pytest_configure()
    program = "import os, signal; print(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN, os.environ['TERM'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "xterm-256color"]
    assert "NO_COLOR" not in os.environ
