"""What this machine offers a server: cores and memory, as limits for the checks before anything is started.

Measurements are not taken here; that is what meters do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil


def usable_cores() -> int:
    """CPUs this process may run on (sched_getaffinity(2)): what a server started by it may use."""
    return len(os.sched_getaffinity(0))


def memory_limit() -> int:
    """Bytes a process of ours may hold at most: the machine's RAM or the tightest cgroup limit above us."""
    return min([psutil.virtual_memory().total, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, name = Path("/sys/fs/cgroup"), "memory.max"
            elif "memory" in controllers.split(","):
                root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
            else:
                continue
            here = root / path.lstrip("/")
            for folder in (here, *here.parents):
                if not folder.is_relative_to(root):
                    break
                with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
                    yield int((folder / name).read_text())
