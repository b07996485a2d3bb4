"""The processes of an Ollama server: which of them is one, which child holds the model, what its log says.

Starting and ending processes is engine/process.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.engine import process, server_log
from pipeline.engine.waiting import children


@dataclass(frozen=True)
class Host:
    """How much of a server can be seen from here."""

    pid: int
    """The process that serves; 0: not on this machine, or not ours to look into."""
    log_path: Path | None
    ended: Callable[[], str | None]
    """None while it runs, else how it ended."""
    url: str = ""
    """Where it was found by the address at which it answers; "": it was not looked for."""

    def log_bytes(self) -> int:
        """Length of its log; 0 without one."""
        return server_log.size(self.log_path)

    def log_since(self, offset: int) -> str:
        """What it and its children have logged from this byte on (server_log.py says how much of it)."""
        return server_log.read(self.log_path, offset)

    def child(self, thorough: bool = False) -> int | None:
        """The child that holds a model: of several the youngest. Probes for GPUs are none of them.

        A look is cheap and may miss a child whose starting thread ends at this moment; a thorough one does not."""
        if not self.pid:
            return None
        below = [each.pid for each in _processes_below(self.pid)] if thorough else children(self.pid)
        return max((pid for pid in below if "--model" in process.command_line(pid)), key=_started, default=None)


def gone(pid: int) -> bool:
    """Has the process ended and been reaped by its parent?"""
    return not Path(f"/proc/{pid}").exists()


def servers(users: Collection[int] = ()) -> list[int]:
    """Every `ollama serve` of this machine, or of these users of it (their ids)."""
    found = [pid for pid in psutil.pids() if (line := process.command_line(pid))[1:2] == ["serve"]
             and Path(line[0]).name == "ollama"]
    return [pid for pid in found if not users or _user(pid) in users]


def called(pid: int) -> str:
    """A process for a user to recognise: "process 4711 (ollama, of the user ollama)"."""
    with contextlib.suppress(psutil.Error):
        seen = psutil.Process(pid)
        return f"process {pid} ({seen.name()}, of the user {seen.username()})"
    return f"process {pid}"


def not_the_one(host: Host, why: str) -> str:
    """What to say of a process that was found by its address, and is not the server that answers there."""
    return (f"{called(host.pid)} listens at {host.url} and is not the server that answers: {why}. It passes "
            "connections on, or another program has this port at another address. Name the server's own process, "
            "engine.pid=PID.")


def log_file(pid: int) -> Path | None:
    """Where a process writes its stderr, if that is a file we may read; None: a terminal, a journal, not ours."""
    with contextlib.suppress(OSError):
        path = Path(f"/proc/{pid}/fd/2").readlink()
        return path if path.is_file() and os.access(path, os.R_OK) else None
    return None


def _processes_below(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children()
    return []


def _user(pid: int) -> int | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).uids().effective
    return None


def _started(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).create_time()
    return 0.0
