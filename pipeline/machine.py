"""What this machine offers our processes: cores and memory, as limits for the checks before anything is started, and a
home folder.

Cores are counted here and nowhere else. Measurements are not taken here; that is what meters do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipeline.errors import ConfigError


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that a server started by us can keep busy: CPUs it may run on (sched_getaffinity(2)), or the whole ones
    of a CPU quota, if a cgroup gives fewer; at least 1.

    More threads than the quota feeds are stopped by the kernel in the middle of their work, again and again."""
    allowed, quota = len(os.sched_getaffinity(0)), cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the tightest CPU quota of our cgroup and its parents gives; None: no quota, or none that is visible.

    v2: cpu.max, "QUOTA PERIOD" or "max PERIOD" (Documentation/admin-guide/cgroup-v2.rst); v1: cpu.cfs_quota_us, -1
    for none, over cpu.cfs_period_us (Documentation/scheduler/sched-bwc.rst)."""
    quotas = []
    for folder, version in _cgroups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # not limited here, or hidden
            quota, period = (int(word) for name in names for word in (folder / name).read_text("utf-8").split())
            if quota > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit() -> int:
    """Bytes a process of ours may hold at most: the machine's RAM or the tightest cgroup limit above us."""
    total, limit = psutil.virtual_memory().total, cgroup_memory_limit()
    return total if limit is None else min(total, limit)


def cgroup_memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest memory limit of our cgroup and its parents leaves; None: no limit, or not visible."""
    limits = []
    for folder, version in _cgroups("memory", root):
        with contextlib.suppress(OSError, ValueError):  # "max" is not a number: no limit
            name = "memory.max" if version == 2 else "memory.limit_in_bytes"
            limits.append(int((folder / name).read_text("utf-8")))
    return min(limits, default=None)


def in_home(path: str, variable: str) -> Path:
    """An absolute path, ~ in it being this user's home.

    Raises ConfigError, naming `variable` as the way out, where there is none: HOME is not set and the user database
    does not know the id, as in a container that was given an id of its own."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"this user (id {os.geteuid()}) has no home folder: HOME is not set, and the machine knows "
                          f"no other. Set HOME=FOLDER, or {variable}=FOLDER.") from error


def _cgroups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Folders in which our own cgroup and its parents show a controller, the innermost first, and v1 or v2.

    In a container the mount may begin below the path that /proc/self/cgroup gives: then its top is ours."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            # v1 is mounted under the name of its controllers, with links for the single ones
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            here = top / path.lstrip("/")
            for folder in (here, *here.parents):
                if not folder.is_relative_to(top):
                    break
                yield folder, 1 if controllers else 2
