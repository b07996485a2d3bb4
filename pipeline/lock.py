"""One process at a time: on this machine, or at a file. Each lock ends with its owner, however that ends.

Every wait for one has a limit, ends at the first signal, and names what was waited for. What a lock is for, and what a
user is told of it, is its room's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline import interrupt
from pipeline.errors import SlackwaterError

POLL_S = 0.2
LIMIT_S = 600.0
"""How long a lock is awaited by default: what is done under one takes seconds, and minutes on a slow disk."""

VARIABLE = "SLACKWATER_LOCK"
"""Part of the name of every machine's lock: for tests that run sweeps side by side, and measure nothing by them."""


@contextmanager
def on_machine(name: str, limit_s: float, waiting: Callable[[str], SlackwaterError]) -> Iterator[None]:
    """Hold the lock of that name, the only one on this machine, whoever asks and whatever TMPDIR is.

    It is a name in the kernel's abstract socket namespace (unix(7)), so there is no file that someone else's rights
    could spoil. Containers with a network namespace of their own have such names of their own, and do not see each
    other. While it is held by another, `waiting` is told once by which process ("unknown" if it cannot be seen); what
    it returns is raised at the limit, and what it raises ends the wait."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as lock:
        _await(lambda: _bound(lock, name), limit_s, lambda: waiting(holder(name) or "unknown"))
        lock.listen()  # so that the kernel tells others who we are
        yield


def holder(name: str) -> str:
    """The process that holds this lock ("unknown" if it is in another PID namespace); "" if none does."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as asking:
        asking.setblocking(False)
        try:
            asking.connect(_address(name))
        except BlockingIOError:
            return "unknown"  # so many have asked that it takes no more
        except OSError:
            return ""
        pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return str(pid) if pid else "unknown"


@contextmanager
def on_file(path: Path, error: type[SlackwaterError], limit_s: float = LIMIT_S) -> Iterator[None]:
    """Hold the file's lock (flock(2)); it is made if it is not there. Raises `error`, also at the limit."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as failed:
        raise error(f"The lock {path} cannot be opened: {failed.strerror}. Make it and its folder writable for this "
                    "user, or name another folder: SLACKWATER_HOME=FOLDER.") from failed
    with file:
        _await(lambda: _locked(file.fileno()), limit_s, lambda: error(
            f"Another process holds {path}, and did not let go of it while we waited (at most {limit_s:g} s). See "
            f"which one: fuser -v {shlex.quote(str(path))}"))
        yield


def _await(take: Callable[[], bool], limit_s: float, busy: Callable[[], SlackwaterError]) -> None:
    """Try until it succeeds. Raises what `busy` makes at the limit, or as soon as a signal comes that is held back."""
    if take():
        return
    error, until = busy(), time.monotonic() + limit_s
    while not interrupt.came() and time.monotonic() < until:
        time.sleep(POLL_S)
        if take():
            return
    raise error


def _address(name: str) -> str:
    return f"\0slackwater-{name}{os.environ.get(VARIABLE, '')}"


def _bound(lock: socket.socket, name: str) -> bool:
    try:
        lock.bind(_address(name))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
