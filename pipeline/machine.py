"""What this machine is (the facts that are recorded with every number) and what it offers our processes: cores and
memory, as limits for the checks before anything is started, and a home folder.

Cores are counted and cgroup limits read here and nowhere else. What moves is measured by meters.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import ConfigError

HARDWARE = ("architecture", "cpu", "cores_usable")
"""What makes it another machine, of which no interval knows."""
FACTS = ("host", "kernel", *HARDWARE, "memory_total", "swap_total", "transparent_hugepages", "libc", "python")
"""What two machines are told apart by, as records and tags name it; the boot id tells one machine's boots apart."""


@functools.cache
def facts() -> Mapping[str, str]:
    """FACTS and the boot id, as strings; the same for every trial of a process."""
    return {
        "host": platform.node(), "kernel": platform.release(), "architecture": platform.machine(), "cpu": cpu(),
        "cores_usable": str(usable_cores()), "memory_total": _first_value(Path("/proc/meminfo"), "MemTotal"),
        "swap_total": _first_value(Path("/proc/meminfo"), "SwapTotal"), "transparent_hugepages": huge_pages(),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip(),
        "libc": " ".join(platform.libc_ver()), "python": platform.python_version()}


def cpu(root: Path = Path("/")) -> str:
    """The processor's name; "" where the kernel gives none (ARM)."""
    return _first_value(root / "proc/cpuinfo", "model name")


def huge_pages(root: Path = Path("/")) -> str:
    """The setting of transparent huge pages, such as "always [madvise] never"; "" on a kernel without them."""
    with contextlib.suppress(OSError):
        return (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text("utf-8").strip()
    return ""


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
    for folder, version in cgroups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # not limited here, or hidden
            quota, period = (int(word) for name in names for word in (folder / name).read_text("utf-8").split())
            if quota > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit() -> int:
    """Bytes a process of ours may hold at most: the machine's RAM or the tightest cgroup limit above us."""
    total, limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), cgroup_memory_limit()
    return total if limit is None else min(total, limit)


def cgroup_memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest memory limit of our cgroup and its parents leaves; None: no limit, or not visible."""
    limits = []
    for folder, version in cgroups("memory", root):
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


def cgroups(controller: str, root: Path = Path("/"), pid: str = "self") -> Iterator[tuple[Path, int]]:
    """Folders in which a process's cgroup and its parents show a controller, the innermost first, and v1 or v2.

    In a container the mount may begin below the path that /proc/PID/cgroup gives: then its top is ours."""
    with contextlib.suppress(OSError):
        for line in (root / "proc" / pid / "cgroup").read_text("utf-8", errors="replace").splitlines():
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


def _first_value(path: Path, key: str) -> str:
    """Value of the first `key : value` line of a /proc file; "" if there is none."""
    with contextlib.suppress(OSError):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if line.split(":")[0].strip() == key:
                return line.partition(":")[2].strip()
    return ""
