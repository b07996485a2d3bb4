"""When a wait for a server has lasted too long: one rule for every wait of a trial, on every engine.

A wait goes on while something moves: a token, a byte loaded, or 0.1 core used by the server's processes. It ends when
none of these moved for the wait's limit, at the outer limit of the whole trial, or when a process is stopped. How an
engine asks its server, and what it does about a wait that is over, is the engine's.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine import server_log

BUSY_CORES = 0.1
"""CPU of the server's processes from which on it computes: a prompt, a compressed weight, a graph."""

LOOK_S = 1.0
"""CPU is read this often at the most; a reading costs some 0.2 ms."""
SIGNS_S = 0.1

STOPPED_S = 1.5
"""A process that is stopped (SIGSTOP; state T) answers nothing, and is waited for so long only."""

BLIND_FACTOR = 5
"""Where no process can be looked into, only its answer counts, and it may be silent for this many limits."""


@dataclass(frozen=True)
class OuterLimit:
    """When a trial ends although its server is still busy."""

    at_s: float = math.inf
    """`time.monotonic()`."""
    said: str = ""
    """How long that is, and by what: "6:00 h (engine.trial_limit_s)"."""


NEVER = OuterLimit()


class Wait:
    """One wait. `overdue` is asked a few times a second, by the thread that waits or by another."""

    def __init__(self, doing: str, limit_s: float, setting: str, pid: int, outer: OuterLimit = NEVER,
                 loaded_bytes: Callable[[], int] = lambda: 0, log: Path | None = None) -> None:
        """`doing`: what the server is at, in a word. `setting`: the key that `limit_s` stands at. `pid`: the root of
        the server's processes; 0: out of sight. `loaded_bytes`: what grows while something is loaded. `log`: what it
        writes meanwhile has a limit."""
        self.doing, self.setting, self.outer = doing, setting, outer
        self._asked_s = limit_s
        self._loaded_bytes, self._pid = loaded_bytes, pid
        self._log, self._log_at = log, server_log.size(log)
        self.limit_s = limit_s if pid else limit_s * BLIND_FACTOR
        self.look_s = min(LOOK_S, self.limit_s / 4)
        """Seconds between two readings of CPU time."""
        self._last = self._looked = self._read = self._running = time.monotonic()
        self._most, self._used = loaded_bytes(), cpu_seconds(pid)
        self.reason = ""
        """Why it is over; "" while it is not."""

    @property
    def pause_s(self) -> float:
        """Seconds between two looks at what a load moves."""
        return min(SIGNS_S, self.look_s)

    def moved(self) -> None:
        """Something has come: a token."""
        self._last = time.monotonic()

    def overdue(self, missing: str) -> str:
        """Why the wait is over, in words; "" if it is not. `missing`: what did not come ("no token")."""
        now = time.monotonic()
        if not self.reason and now - self._looked >= self.pause_s:
            self._looked = now
            self._look(now)
            if server_log.size(self._log) - self._log_at > server_log.MOST_BYTES:
                self.reason = (f"wrote more than {server_log.MOST_BYTES // 2**20} MiB of log during {self.doing}, and "
                               "is ended before the disk is full")
            elif now >= self.outer.at_s:
                self.reason = (f"was still busy during {self.doing} when the trial had lasted {self.outer.said}, its "
                               "outer limit")
            elif now - self._running > STOPPED_S:
                self.reason = f"was stopped (SIGSTOP) during {self.doing}: process {self._pid}, or one below it"
            elif now - self._last > self.limit_s:
                self.reason = f"made no progress during {self.doing}: {missing} for {self._stalled()}"
        return self.reason

    def _look(self, now: float) -> None:
        loaded = self._loaded_bytes()
        if loaded > self._most:
            self._most, self._last = loaded, now
        if now - self._read >= self.look_s:
            used = cpu_seconds(self._pid)
            # a process that has ended takes its time with it, one that is new brings its own
            busy_s = sum(seconds - self._used.get(pid, 0.0) for pid, seconds in used.items())
            if busy_s >= BUSY_CORES * (now - self._read):
                self._last = now
            if not any(map(_is_stopped, used)):
                self._running = now
            self._used, self._read = used, now

    def _stalled(self) -> str:
        if self._pid:
            return (f"{self.limit_s:g} s, and less than {BUSY_CORES:g} core used by its processes. Raise "
                    f"{self.setting} if this machine is that slow")
        return (f"{self.limit_s:g} s ({BLIND_FACTOR} × {self.setting}={self._asked_s:g}: its processes cannot be seen "
                f"from here, so that only its answer counts). Raise {self.setting} if that machine is so slow")


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()[0] == "T"
    return False


def cpu_seconds(root: int) -> dict[int, float]:
    """CPU time by process, of a process and its descendants (proc(5): stat fields 14 and 15, task/*/children)."""
    used: dict[int, float] = {}
    left = [root] if root else []
    while left:
        pid = left.pop()
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
            used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            left += [child for child in children(pid) if child not in used]
    return used


def children(pid: int) -> list[int]:
    """Direct children, from whichever thread they were started; one is missed whose starting thread just ends."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text("utf-8").split()]
    return found
