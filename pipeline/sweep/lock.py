"""One sweep at a time on a machine: two would disturb each other. A lock dies with its owner (flock(2))."""

from __future__ import annotations

import fcntl
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError

POLL_S = 0.5


def lock_file() -> Path:
    """The same for every user of this machine."""
    return Path(tempfile.gettempdir()) / "slackwater.lock"


@contextmanager
def machine_lock(when_busy: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold this machine for a sweep; `waiting` is told once whom we wait for.

    Raises ConfigError if another sweep runs and `when_busy` is fail."""
    descriptor = _open(lock_file())
    told = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
                if when_busy == "fail":
                    raise ConfigError(f"another sweep runs on this machine (process {owner}), and two would disturb "
                                      "each other. Wait for it, or design.when_busy=wait does so.") from None
                if not told:
                    waiting(f"another sweep runs on this machine (process {owner}): waiting for it")
                    told = True
                time.sleep(POLL_S)
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def holder() -> str:
    """The process whose sweep holds this machine ("unknown" if it has not signed); "" if none does."""
    try:
        descriptor = os.open(lock_file(), os.O_RDONLY)
    except OSError:
        return ""  # no sweep has ever run here, or its lock cannot be read: then nothing is known
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return ""


def _open(path: Path) -> int:
    """Open for locking, made if it is not there. Raises ConfigError where neither is allowed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY)  # another user's file, or a read-only disk: it can still be locked
        raise ConfigError(
            f"the lock of this machine, {path}, cannot be opened: {error.strerror}. Two sweeps at once would disturb "
            f"each other. Let its owner make it readable (chmod a+r {shlex.quote(str(path))}) or remove it while no "
            "sweep runs, or name another folder in TMPDIR.") from error
    if os.fstat(descriptor).st_uid == os.geteuid():
        os.fchmod(descriptor, 0o666)
    return descriptor


def _sign(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
