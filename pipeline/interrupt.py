"""Ctrl-C, SIGTERM and SIGHUP: from our first line to the last they end the program, and cannot be swallowed.

The handler notes the signal and raises KeyboardInterrupt in the main thread. Python drops what is raised in a weak
reference's callback or a `__del__`: then it is sent again. What some library drops by itself comes again at `check`,
which stands where work begins. While something must not be left half done, signals are held back. What a sweep keeps
of an interruption is not decided here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

AGAIN_S = 0.02
"""The signal of an interruption that Python dropped is sent again after this time: the dropping is over by then."""

_came: list[int] = []
"""The signals so far, the first one first."""
_held: list[Held] = []
_terminals: list[int] = []
"""Those of stdin, stdout and stderr that are a terminal."""


class Interrupted(KeyboardInterrupt):
    """Of a type of our own: after a plain one inside `exec`, as dataclasses use it, CPython ends by SIGINT, caught or
    not (Modules/main.c, _Py_UnhandledKeyboardInterrupt)."""


class Held:
    """Whether a signal came meanwhile."""

    came = False


def came() -> bool:
    """Has a signal come? A wait ends then, also where it is held back."""
    return bool(_came)


def check() -> None:
    """Raise KeyboardInterrupt if a signal has come that nothing acted on; not where it is held back."""
    if _came and not _held:
        raise Interrupted


def exit_code() -> int:
    """What a shell reports of a program that the signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (_came[0] if _came else signal.SIGINT)


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the body and interrupts nothing: it is how a user says that it is enough. SIGTERM interrupts."""
    try:
        yield
    except KeyboardInterrupt:
        if any(number != signal.SIGINT for number in _came):
            raise
        _came.clear()


@contextmanager
def held_back() -> Iterator[Held]:
    """Note signals instead of acting on them; whoever holds them back decides what a noted one means.

    One that is ignored stays so: a script's background job, cron and nohup start programs deaf to Ctrl-C.
    For bounded work only. Call from the main thread."""
    held = Held()
    with _handled(_take):
        _held.append(held)
        try:
            yield held
        finally:
            _held.remove(held)


@contextmanager
def listening(is_program: bool) -> Iterator[None]:
    """Take the signals. `is_program`: afterwards nothing is left but the interpreter's own end, and a signal is the
    end at once; else the handlers are as they were. Outside of the main thread there is nothing to take."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _came.clear()
    _terminals[:] = [descriptor for descriptor in range(3) if os.isatty(descriptor)]
    dropped, sys.unraisablehook = sys.unraisablehook, _again_or(sys.unraisablehook)
    try:
        with _handled(_take):
            try:
                yield
            finally:
                if is_program:
                    for number in SIGNALS:
                        if signal.getsignal(number) is _take:
                            signal.signal(number, _end)
    finally:
        sys.unraisablehook = dropped


def _take(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if number == signal.SIGHUP:
        _leave_terminal()
    for held in _held:
        held.came = True
    check()


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _leave_terminal() -> None:
    """It is gone, and whatever would still be said there would be an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in _terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: known for number, known in before.items() if known is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, known)


def _again_or(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook for exceptions that Python can only drop (sys.unraisablehook): ours comes again."""
    def dropped(unraisable: Any) -> None:
        if _came and isinstance(unraisable.exc_value, KeyboardInterrupt):
            again = threading.Timer(AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, _came[0]))
            again.daemon = True
            again.start()
        else:
            hook(unraisable)
    return dropped
