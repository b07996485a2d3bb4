"""Measure any running process by the same meters, without a sweep: per second and as a whole.

It stands on its own (the sampler, /proc, the kernel's peak), so that others can check our meters with it.
The live picture is drawn in the report room; here are the values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from pipeline import ports
from pipeline.errors import ConfigError
from pipeline.language import N_, sentence
from pipeline.meter.sampler import Sampler, lost_slots, process_cpu_ns
from pipeline.meter.tree import members, read_peaks, read_tree, reset_peaks
from pipeline.metrics import KINDS
from pipeline.phases import MIB, Peaks, Span, Timeline, joint_peak
from pipeline.scratch import scratch

SCHEMA_VERSION = 1
UNSEEN = N_("A child that has detached from this process is not counted: the process is not ours, so the kernel hands "
            "such a child to init, where its origin cannot be told.")
_PSS_DUTY = 0.005


@dataclass(frozen=True)
class Second:
    """One second of a watched tree, or the whole of it. Sizes are medians over the samples, but for the peaks."""

    t_s: float
    """Its end, from the start."""
    samples: int
    lost_slots: int
    lateness_p99_ms: float
    sampler_cpu_pct: float
    """Of one core."""
    processes: int
    """The most at one instant."""
    baseline_rss_mib: float
    """The tree at the start, where the kernel's peaks were reset."""
    rss_mib: float
    anon_mib: float
    file_mib: float
    shmem_mib: float
    swap_mib: float
    pss_mib: float | None
    """Read once, at its end. None: not permitted, or left out to keep its cost below 0.5 % of the time."""
    sampled_peak_mib: float
    """Largest sampled RSS of the whole tree at one instant, within it."""
    kernel_peak_mib: float
    """Since the start, lower bound of the joint peak: see `Watch`."""
    kernel_peak_bound_mib: float
    """Since the start, upper bound of the joint peak."""


class Watch:
    """A running measurement of one tree. The kernel's peaks are reset at the start, so they count from there.

    What the sampler cannot see (shorter than its period, in a tree of several processes) is an interval and
    not a number: `joint_peak` of pipeline/phases.py, with each process's sampled minimum as what it never
    went below. For a single process both ends meet."""

    def __init__(self, pid: int, sampler: Sampler) -> None:
        """Follow a process and its descendants from now on. Raises MeterError if there is no such process."""
        self.pid = pid
        self.sampler = sampler
        pids = members(pid)
        # Before the sampler looks, so that no row has a mark from before the reset.
        self.unreset = reset_peaks(pids)
        """Processes whose peak could not be reset (another user's): it counts from their own start."""
        self.baseline_rss = read_tree(pids, with_pss=False).rss
        sampler.follow(pid, exclude=frozenset({sampler.pid}))
        self.begin_ns = time.monotonic_ns()
        self.seconds: list[Second] = []
        self._rows_seen = len(sampler.processes().t_ns)
        self._instants = 0
        self._marks: dict[int, int] = {}
        self._minima: dict[int, tuple[int, int]] = {}  # pid → (smallest RSS, samples it was in)
        self._cpu_ns = self._first_cpu_ns = process_cpu_ns(sampler.pid)
        self._pss_due_ns = 0

    def tick(self, since_ns: int, last: bool = False) -> Second | None:
        """Close the second that began at `since_ns`; None if the tree had ended before it began.

        The last one has its PSS whatever it costs. Raises MeterError if the sampler died."""
        timeline = self.sampler.since(since_ns)
        if not timeline.columns["tree_processes"].any():
            return None
        pids = members(self.pid)
        for pid, mark in read_peaks(pids).items():
            self._marks[pid] = max(mark, self._marks.get(pid, 0))
        self._take_rows()
        cpu_ns = process_cpu_ns(self.sampler.pid)
        second = self._summary(timeline, since_ns, cpu_ns - self._cpu_ns, self._read_pss(pids, last))
        self._cpu_ns = cpu_ns
        self.seconds.append(second)
        return second

    def whole(self) -> Second:
        """Everything since the start; PSS is the median of those that were read."""
        known = [second.pss_mib for second in self.seconds if second.pss_mib is not None]
        timeline = self.sampler.since(self.begin_ns)
        self._take_rows()
        cpu_ns = process_cpu_ns(self.sampler.pid) - self._first_cpu_ns
        return self._summary(timeline, self.begin_ns, cpu_ns, float(np.median(known)) if known else None)

    def _summary(self, timeline: Timeline, since_ns: int, cpu_ns: int, pss_mib: float | None) -> Second:
        now = time.monotonic_ns()
        alive = timeline.columns["tree_processes"] > 0
        sizes = {"rss": timeline.tree_rss, **{name: timeline.columns[f"tree_{name}"] for name in KINDS}}
        medians = {f"{name}_mib": float(np.median(values[alive])) / MIB if alive.any() else 0.0
                   for name, values in sizes.items()}
        sampled = int(timeline.tree_rss.max(initial=0))
        span = Span("watch", 0, self.begin_ns, now)
        low, high = joint_peak(Peaks(span, self._marks, {}, self.unreset), sampled, {
            pid: least if count == self._instants else 0 for pid, (least, count) in self._minima.items()})
        late_ms = (timeline.t_ns - timeline.due_ns) / 1e6
        return Second(
            t_s=(now - self.begin_ns) / 1e9, samples=len(late_ms),
            lost_slots=lost_slots(timeline.due_ns, self.sampler.rate_hz),
            lateness_p99_ms=float(np.percentile(late_ms, 99)) if len(late_ms) else 0.0,
            sampler_cpu_pct=100.0 * cpu_ns / max(now - since_ns, 1),
            processes=int(timeline.columns["tree_processes"].max(initial=0)),
            baseline_rss_mib=self.baseline_rss / MIB, **medians, pss_mib=pss_mib, sampled_peak_mib=sampled / MIB,
            kernel_peak_mib=low / MIB, kernel_peak_bound_mib=(low if high is None else high) / MIB)

    def _take_rows(self) -> None:
        """Fold the new rows into each process's mark and minimum; what has ended keeps what it had."""
        rows = self.sampler.processes(skip=self._rows_seen)
        self._rows_seen += len(rows.t_ns)
        rss = rows.anon + rows.file + rows.shmem
        self._instants += len(np.unique(rows.t_ns))
        for pid in map(int, np.unique(rows.pid)):
            own = rows.pid == pid
            # A mark is raised from per-CPU batched counters and may lag behind a sample.
            self._marks[pid] = max(self._marks.get(pid, 0), int(rows.hwm[own].max()), int(rss[own].max()))
            least, count = self._minima.get(pid, (int(rss[own].max()), 0))
            self._minima[pid] = (min(least, int(rss[own].min())), count + int(own.sum()))

    def _read_pss(self, pids: Collection[int], whatever_it_costs: bool) -> float | None:
        """MiB, at most every 200 times its own cost."""
        if time.monotonic_ns() < self._pss_due_ns and not whatever_it_costs:
            return None
        reading = read_tree(pids)
        self._pss_due_ns = reading.t_ns + round(reading.duration_ns / _PSS_DUTY)
        shares = [process.pss for process in reading.processes if process.pss is not None]
        return sum(shares) / MIB if shares and len(shares) == len(reading.processes) else None


def watch(pid: int, seconds: float, rate_hz: float = 100.0,
          on_second: Callable[[Second], None] | None = None) -> dict[str, Any]:
    """Measure for `seconds` or until the process ends; returns the document of `slackwater watch --json`.

    Raises MeterError if there is no such process, or the sampler died."""
    with scratch() as folder, Sampler(folder, rate_hz, 0.2) as sampler:
        running = Watch(pid, sampler)
        end = running.begin_ns + round(seconds * 1e9)
        since = running.begin_ns
        while since < end:
            due = min(since + 1_000_000_000, end)
            time.sleep(max(due - time.monotonic_ns(), 0) / 1e9)
            second = running.tick(since, last=due == end)
            since = due
            if second is None:
                break
            if on_second is not None:
                on_second(second)
        sampler.unfollow()
        return document(running)


def document(running: Watch) -> dict[str, Any]:
    """What was measured until now, with stable names and a unit in each."""
    notes = [UNSEEN]
    if running.unreset:
        notes.append(f"The peak of {sorted(running.unreset)} could not be reset (another user's processes): it counts "
                     "from their own start, and stands in the upper bound alone.")
    return {"schema_version": SCHEMA_VERSION, "pid": running.pid, "rate_hz": running.sampler.rate_hz,
            "seconds": [vars(second) for second in running.seconds], "whole": vars(running.whole()), "notes": notes}


def find_process(wanted: str) -> int:
    """The process id behind PID, NAME or URL. NAME is the program's name; URL is one that a local process listens on.

    Raises ConfigError if there is none, or several with that name of which none is the parent of the others."""
    if wanted.isdigit():
        if not Path("/proc", wanted).exists():
            raise ConfigError(f"watch {wanted}: there is no process {wanted}. Expected a running one's id; see ps.")
        return int(wanted)
    if "://" in wanted:
        return _listener(wanted)
    return _named(wanted)


def _named(name: str) -> int:
    found: dict[int, int] = {}
    for process in psutil.process_iter(["ppid", "name", "cmdline", "memory_info"]):
        program = Path((process.info["cmdline"] or [""])[0]).name
        held = process.info["memory_info"]  # a kernel thread and a zombie have none
        if held and held.vms and name in (program, process.info["name"]):
            found[process.pid] = process.info["ppid"]
    roots = [pid for pid in found if found[pid] not in found]
    if len(roots) == 1:
        return roots[0]
    if not roots:
        raise ConfigError(sentence(
            N_("watch {name}: no process has that name. Expected a process id, a program's name or a URL that a local "
               "server listens on."), name=name))
    raise ConfigError(f"watch {name}: {len(roots)} processes have that name: {', '.join(map(str, sorted(roots)))}. "
                      "Expected one; give its process id.")


def _listener(url: str) -> int:
    """The process that listens on the URL's port."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError as error:
        raise ConfigError(f"watch {url}: {error}. Expected something like http://127.0.0.1:11434.") from error
    if not ports.is_here(parts.hostname or ""):
        raise ConfigError(f"watch {url}: {parts.hostname} is not this machine. Expected a local address: memory can "
                          "only be read where the server runs.")
    if not ports.listening(port):
        raise ConfigError(f"watch {url}: nothing listens on port {port} here. Expected a running server.")
    pid = ports.listener(port, parts.hostname or "")
    if pid is None:
        raise ConfigError(f"watch {url}: the process that listens on port {port} belongs to another user. Expected one "
                          "whose open files this user may see; give its process id, or run as that user or root.")
    if forwarder := ports.passes_on(pid):
        raise ConfigError(f"watch {url}: {forwarder}. Give the process id of the server itself: slackwater watch PID "
                          f"(slackwater watch {pid} watches this one).")
    return pid
