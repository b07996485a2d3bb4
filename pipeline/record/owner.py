"""Who writes a record: which process, and whether it is still there.

A process is named by host, boot, pid and start time, since pids are used again (proc(5), field 22 of stat).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline import machine


def owner_tags() -> dict[str, str]:
    """This process, as tags: host, boot_id, pid, pid_start (clock ticks after boot)."""
    pid = os.getpid()
    here = machine.facts()
    return {"host": here["host"], "boot_id": here["boot_id"], "pid": str(pid), "pid_start": str(_start_ticks(pid))}


def is_dead(tags: Mapping[str, str], started_ms: int) -> bool:
    """Is the owner certainly gone? A run of another machine, or without owner tags, is never called dead.

    `started_ms`: when the run began, Unix time in milliseconds."""
    if tags.get("host") != machine.facts()["host"] or not tags.get("pid", "").isdigit():
        return False
    if tags.get("boot_id") != machine.facts()["boot_id"]:
        # an older boot of this machine; a later one is another machine that goes by the same name
        return started_ms < _boot_time_s() * 1000
    return not is_alive(int(tags["pid"]), tags.get("pid_start", ""))


def is_alive(pid: int, start_ticks: str) -> bool:
    """Does the process with this pid and start time still run? A zombie does not."""
    return _start_ticks(pid) == int(start_ticks) if start_ticks.isdigit() else _start_ticks(pid) is not None


def _start_ticks(pid: int) -> int | None:
    try:
        # the command may hold spaces and brackets: the fields begin after the last one
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_time_s() -> int:
    lines = Path("/proc/stat").read_text("utf-8", errors="replace").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("btime")))
