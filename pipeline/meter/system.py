"""The whole machine at one instant: memory as psutil.virtual_memory() counts it, and what disturbs a measurement.

Snapshots and a pure difference of two of them; the periodic system columns are the sampler's. Facts: proc(5),
Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import MeterError
from pipeline.meter import base
from pipeline.meter.sampler_program import field_kib, parse_meminfo


@dataclass(frozen=True)
class SystemReading:
    """The machine's memory at one instant, in bytes."""

    t_ns: int
    total: int
    available: int
    free: int
    cached: int
    """Page cache and reclaimable slab; shared anonymous memory counts here too."""
    swap_total: int
    swap_used: int

    @property
    def used(self) -> int:
        """total − available, as psutil 7 has it."""
        return self.total - self.available

    @property
    def percent(self) -> float:
        """used / total × 100, unrounded (psutil rounds to 0.1, which is 24 MiB on a 24 GiB machine)."""
        return 100.0 * self.used / self.total


def read_system(root: Path = Path("/")) -> SystemReading:
    """One reading of /proc/meminfo below `root`. Raises MeterError if it is not there or lacks MemAvailable."""
    path = root / "proc/meminfo"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MeterError(f"{path} cannot be read: {error.strerror}. Expected a mounted /proc.") from error
    total, available, free, cached, swap_used = parse_meminfo(text)
    if total <= 0 or available < 0:
        raise MeterError(f"{path} has no MemTotal and MemAvailable. Expected Linux 3.14 or newer.")
    swap_total = max(field_kib(text, b"\nSwapTotal:"), 0)
    return SystemReading(time.monotonic_ns(), total, available, free, cached, swap_total, swap_used)


def per_cpu_free_bytes(root: Path = Path("/")) -> int | None:
    """Pages freed but kept on per-CPU lists, which MemFree and MemAvailable do not count (/proc/zoneinfo, proc(5)).

    Hundreds of MiB right after a large process has ended. None: not readable."""
    try:
        lines = (root / "proc/zoneinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    pages = [int(words[1]) for words in map(str.split, lines) if len(words) == 2 and words[0] == "count:"]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessUse:
    """What one process has used since it began, with its children that have ended and been waited for (a server's
    engine that an unload killed). `cpu_s` in seconds; `major_faults` needed the disk."""

    cpu_s: float
    major_faults: int


@dataclass(frozen=True)
class Interference:
    """Counters since boot at one instant; only differences mean anything. None: this kernel does not say."""

    t_ns: int
    swapped_in_bytes: int
    swapped_out_bytes: int
    major_faults: int
    memory_some_us: int | None
    """Microseconds in which at least one task waited for memory (PSI)."""
    memory_full_us: int | None
    memory_some_avg10_pct: float | None
    memory_full_avg10_pct: float | None
    cpu_busy_s: float
    """All cores together, everything but idle, waiting for I/O and stolen."""
    cpu_stolen_s: float = 0.0
    """All cores together: this machine is virtual, wanted to run, and its host ran another guest (proc(5), steal)."""
    tree: Mapping[tuple[int, int], ProcessUse] = field(default_factory=dict)
    """(pid, start time) → use, for the measured tree."""
    own: Mapping[tuple[int, int], ProcessUse] = field(default_factory=dict)
    """The same for the orchestrator and its helpers."""
    boot_s: float = 0.0
    """Seconds since boot, on the clock of a process's start time."""


@dataclass(frozen=True)
class Disturbance:
    """What happened between two snapshots. Swap and faults of the whole machine; None: this kernel does not say."""

    seconds: float
    swapped_in_bytes: int
    swapped_out_bytes: int
    major_faults: int
    tree_major_faults: int
    memory_some_pct: float | None
    """Share of the time in which at least one task waited for memory."""
    memory_full_pct: float | None
    tree_cpu_cores: float
    own_cpu_cores: float
    other_cpu_cores: float
    """Cores kept busy by everybody else, 0 and up."""
    stolen_cpu_cores: float
    """Cores that the host of a virtual machine took away meanwhile; nothing in here can be on time then."""


def snapshot(tree_pids: Iterable[int] = (), own_pids: Iterable[int] | None = None,
             root: Path = Path("/")) -> Interference:
    """Take the counters now. `own_pids` None means this process alone. Processes that are gone are left out.

    Raises MeterError if /proc/vmstat or /proc/stat cannot be read."""
    try:
        vmstat = dict(line.split() for line in (root / "proc/vmstat").read_text("utf-8").splitlines())
        cpu = [int(word) for word in (root / "proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:]]
    except OSError as error:
        raise MeterError(f"{error.filename} cannot be read: {error.strerror}. Expected a mounted /proc.") from error
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _iowait, irq, softirq, steal = cpu[:8]
    some_us, some_avg10, full_us, full_avg10 = _memory_pressure(root / "proc/pressure/memory")
    return Interference(
        t_ns=time.monotonic_ns(),
        swapped_in_bytes=int(vmstat.get("pswpin", 0)) * page,
        swapped_out_bytes=int(vmstat.get("pswpout", 0)) * page,
        major_faults=int(vmstat.get("pgmajfault", 0)),
        memory_some_us=some_us, memory_full_us=full_us,
        memory_some_avg10_pct=some_avg10, memory_full_avg10_pct=full_avg10,
        cpu_busy_s=(user + nice + system + irq + softirq) / tick,
        cpu_stolen_s=steal / tick,
        tree=_uses(tree_pids, root, tick),
        own=_uses((os.getpid(),) if own_pids is None else own_pids, root, tick),
        boot_s=time.clock_gettime(time.CLOCK_BOOTTIME))


def with_found(before: Interference, found: Interference) -> Interference:
    """`before`, for a tree that partly ran already then (an attached server): what its processes had used until they
    were `found` is not this trial's. Pure."""
    tick = os.sysconf("SC_CLK_TCK")
    return replace(before, tree={key: use for key, use in found.tree.items() if key[1] / tick < before.boot_s})



def disturbance(before: Interference, after: Interference) -> Disturbance:
    """The difference of two snapshots; pure."""
    seconds = max((after.t_ns - before.t_ns) / 1e9, 1e-9)
    tree, own = _difference(before.tree, after.tree), _difference(before.own, after.own)
    busy = after.cpu_busy_s - before.cpu_busy_s
    return Disturbance(
        seconds=seconds,
        swapped_in_bytes=after.swapped_in_bytes - before.swapped_in_bytes,
        swapped_out_bytes=after.swapped_out_bytes - before.swapped_out_bytes,
        major_faults=after.major_faults - before.major_faults,
        tree_major_faults=tree.major_faults,
        memory_some_pct=_stalled(before.memory_some_us, after.memory_some_us, seconds),
        memory_full_pct=_stalled(before.memory_full_us, after.memory_full_us, seconds),
        tree_cpu_cores=tree.cpu_s / seconds,
        own_cpu_cores=own.cpu_s / seconds,
        other_cpu_cores=max(busy - tree.cpu_s - own.cpu_s, 0.0) / seconds,
        stolen_cpu_cores=(after.cpu_stolen_s - before.cpu_stolen_s) / seconds)


def _memory_pressure(path: Path) -> tuple[int | None, float | None, int | None, float | None]:
    """(some total µs, some avg10 %, full total µs, full avg10 %); all None without PSI."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None, None, None, None  # a kernel without PSI, or PSI switched off: reading it is EOPNOTSUPP
    rows = {words[0]: dict(word.split("=", 1) for word in words[1:]) for words in map(str.split, lines) if words}
    some, full = rows.get("some", {}), rows.get("full", {})
    return (int(some["total"]) if "total" in some else None, float(some["avg10"]) if "avg10" in some else None,
            int(full["total"]) if "total" in full else None, float(full["avg10"]) if "avg10" in full else None)


def _uses(pids: Iterable[int], root: Path, tick: int) -> dict[tuple[int, int], ProcessUse]:
    uses = {}
    for pid in pids:
        try:
            text = (root / "proc" / str(pid) / "stat").read_text("utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name is in parentheses and may hold spaces and parentheses itself (proc(5)).
        words = text[text.rindex(")") + 2:].split()
        cpu = sum(map(int, words[11:15]))  # utime, stime, cutime, cstime
        uses[(pid, int(words[19]))] = ProcessUse(cpu / tick, int(words[9]) + int(words[10]))
    return uses


def _difference(before: Mapping[tuple[int, int], ProcessUse],
                after: Mapping[tuple[int, int], ProcessUse]) -> ProcessUse:
    nothing = ProcessUse(0.0, 0)
    return ProcessUse(
        sum(use.cpu_s - before.get(key, nothing).cpu_s for key, use in after.items()),
        sum(use.major_faults - before.get(key, nothing).major_faults for key, use in after.items()))


def _stalled(before_us: int | None, after_us: int | None, seconds: float) -> float | None:
    if before_us is None or after_us is None:
        return None
    return 100.0 * (after_us - before_us) / 1e6 / seconds


class Meter(base.Meter):
    """The machine's memory and the share of it that MemAvailable misses."""

    name = "system"
    source = "/proc/meminfo, zoneinfo and vmstat"
    checked = "on hardware"

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, pids: Collection[int] = ()) -> base.Reading:
        """Now; swapped_in and swapped_out are counters since boot."""
        reading, counters = read_system(self.root), snapshot(own_pids=(), root=self.root)
        values: dict[str, float] = {
            "used_pct": reading.percent, "used_bytes": reading.used, "available_bytes": reading.available,
            "free_bytes": reading.free, "cached_bytes": reading.cached, "swap_used_bytes": reading.swap_used,
            "swapped_in_bytes": counters.swapped_in_bytes, "swapped_out_bytes": counters.swapped_out_bytes}
        per_cpu = per_cpu_free_bytes(self.root)
        if per_cpu is not None:
            values["per_cpu_free_bytes"] = per_cpu
        return values


def find(root: Path = Path("/"), target: base.Target = base.NOTHING) -> base.Found:
    """Here wherever /proc/meminfo has MemAvailable (Linux 3.14)."""
    try:
        read_system(root)
    except MeterError as error:
        return base.Absent("system", str(error))
    return base.Available(Meter(root))
