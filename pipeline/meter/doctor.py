"""What this machine is, which meters it has, and what would spoil a measurement here: collected, as values.

Printing is the report's, exit codes are the command's. Every concern is also recorded with a sweep.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline import machine
from pipeline.errors import MeterError
from pipeline.language import N_, sentence
from pipeline.meter import base
from pipeline.meter.sampler import Sampler, SamplerReport
from pipeline.meter.sampler_program import parse_status
from pipeline.meter.system import Disturbance, disturbance, read_system, snapshot
from pipeline.meter.tree import members, reset_peaks
from pipeline.phases import MIB
from pipeline.scratch import scratch

NEIGHBOURS_SHOWN = 8
NOT_IN_KERNEL = N_("not in this kernel")
_NEIGHBOUR_MIB = 100
_SERVER_MARK = re.compile(rb"(?:^|\0)SLACKWATER_SERVER=(\d+)-")
"""What engine/process.py gives every server of ours, with the process that started it."""
_WAIT = N_("Wait until the sweep that runs here has ended: what holds memory may be its server.")


@dataclass(frozen=True)
class Fact:
    """One property of the machine, as text for the user."""

    name: str
    value: str


@dataclass(frozen=True)
class Concern:
    """Something the user should know before measuring: what was seen, why it matters, how to fix it.

    `blocks`: no trustworthy run is possible while it lasts. `note`: it limits or colours the figures."""

    level: Literal["blocks", "note"]
    what: str
    remedy: str


@dataclass(frozen=True)
class Neighbour:
    """A process that is not ours and holds memory now."""

    pid: int
    command: str
    rss: int
    """Bytes."""


@dataclass(frozen=True)
class Examination:
    """All that was found."""

    facts: Sequence[Fact]
    meters: Sequence[base.Found]
    neighbours: Sequence[Neighbour]
    """The largest first, at most NEIGHBOURS_SHOWN, each with 100 MiB or more."""
    concerns: Sequence[Concern]

    @property
    def trustworthy(self) -> bool:
        """Is a trustworthy run possible here and now?"""
        return not any(concern.level == "blocks" for concern in self.concerns)


def examine(rate_hz: float = 100.0, target: base.Target = base.NOTHING, root: Path = Path("/"),
            sweep: str = "") -> Examination:
    """Look at everything, about one second; a trial run of the sampler at `rate_hz` included.

    `sweep`: the process whose sweep holds this machine, "" if none does or that is not known. Its server is no
    neighbour, and while it runs nothing is advised to be ended: what one sees may be what it measures.
    Below another `root` (recorded trees) the live trials are left out. Raises MeterError without /proc/meminfo."""
    live = root == Path("/")
    before = snapshot(root=root)
    sampler = _try_sampler(rate_hz) if live else None
    seen = disturbance(before, snapshot(root=root))
    meters = base.find_all(root, target)
    served = _served(root)
    owners = {*served.values(), *([int(sweep)] if sweep.isdigit() else ())} - {os.getpid()}
    sweep = sweep or (str(min(owners)) if owners else "")
    trees = [pid for owner in (os.getpid(), *owners) for pid in members(owner)] if live else []
    neighbours = _neighbours(root, {*trees, *served, *owners})
    concerns = [*_about_meters(meters), *_about_memory(root), *_about_cores(root), *_about_activity(seen, neighbours),
                *(_about_permissions(root) if live else ()),
                *(_about_sampler(sampler, rate_hz) if sampler is not None else ())]
    if sweep:
        concerns = [replace(concern, remedy=_WAIT) if concern.remedy.startswith("End ") else concern
                    for concern in concerns]
        concerns.append(Concern(
            "note", sentence(
                N_("A sweep of slackwater runs here (process {pid}): what it does is seen in the figures above."),
                pid=sweep),
            N_("Look again when it has ended; a sweep started now waits for it.")))
    facts = [*machine_facts(root), *_sampler_facts(sampler)]
    return Examination(facts, meters, neighbours, sorted(concerns, key=lambda concern: concern.level))


def machine_facts(root: Path = Path("/")) -> list[Fact]:
    """Machine, kernel and its memory settings; what cannot be read is said to be unknown."""
    system = read_system(root)
    cpu = machine.cpu(root) or platform.machine()
    _folder, cgroup = next(machine.cgroups("memory", root), (None, 0))
    zswap = _text(root / "sys/module/zswap/parameters/enabled")
    return [
        Fact("machine", sentence(N_("{cpu}, {n} of {of} cores usable"), cpu=cpu, n=machine.usable_cores(root),
                                 of=os.cpu_count())),
        Fact("memory", sentence(N_("{total} MiB, {available} MiB available now"), total=f"{system.total / MIB:.0f}",
                                available=f"{system.available / MIB:.0f}")),
        Fact("kernel", _text(root / "proc/sys/kernel/osrelease") or N_("unknown")),
        Fact("cgroup", (N_("none"), N_("memory controller v1"), "v2")[cgroup]),
        Fact("swap", sentence(N_("{total} MiB, {used} MiB used"), total=f"{system.swap_total / MIB:.0f}",
                              used=f"{system.swap_used / MIB:.0f}") if system.swap_total else N_("none")),
        Fact("transparent huge pages", _chosen(machine.huge_pages(root))),
        Fact("zswap", {"Y": "on", "N": "off"}.get(zswap, NOT_IN_KERNEL)),
        Fact("overcommit", {"0": N_("heuristic (0)"), "1": N_("always (1)"), "2": N_("never (2)")}.get(
            _text(root / "proc/sys/vm/overcommit_memory"), "unknown")),
        Fact("page size", f"{os.sysconf('SC_PAGE_SIZE') // 1024} KiB"),
        Fact("load", " ".join(_text(root / "proc/loadavg").split()[:3]) or "unknown"),
        Fact("user", "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"),
    ]


def _sampler_facts(report: SamplerReport | MeterError | None) -> list[Fact]:
    if not isinstance(report, SamplerReport):
        return []
    return [Fact("sampler", sentence(
        N_("{n} samples at {rate} Hz, {lost} lost, lateness p99 {ms} ms, {share} % of a core, {size} MiB, {priority} "
           "priority"),
        n=report.samples, rate=f"{report.rate_hz:g}", lost=report.lost_slots, ms=f"{report.lateness_p99_ms:.2f}",
        share=f"{report.cpu_pct:.1f}", size=f"{report.rss_mib:.0f}",
        priority=N_("real-time") if report.realtime else N_("ordinary")))]


def _about_meters(meters: Sequence[base.Found]) -> list[Concern]:
    absent = {meter.name: meter.reason for meter in meters if isinstance(meter, base.Absent)}
    return [Concern("blocks", sentence(N_("The {name} meter is not here: {why}."), name=name, why=absent[name]),
                    N_("Run on Linux 5.0 or newer with /proc mounted in full."))
            for name in ("system", "tree") if name in absent]


def _about_memory(root: Path) -> list[Concern]:
    system = read_system(root)
    found = []
    if system.available < system.total // 20:
        found.append(Concern(
            "blocks",
            sentence(N_("Only {available} MiB of {total} MiB are available: a model would push others out, or be "
                        "pushed out."),
                     available=f"{system.available / MIB:.0f}", total=f"{system.total / MIB:.0f}"),
            N_("End what is not needed (see the neighbours), or take a smaller model.")))
    if system.swap_total:
        swappiness = _text(root / "proc/sys/vm/swappiness") or "unknown"
        found.append(Concern(
            "note",
            sentence(N_("Swap is on ({total} MiB, swappiness {n}): memory can leave RSS without being freed. It is "
                        "metered, and a trial that swaps is suspect."),
                     total=f"{system.swap_total / MIB:.0f}", n=swappiness),
            N_("sudo swapoff -a for the time of the sweep, if memory suffices.")))
    if system.swap_total and _text(root / "sys/module/zswap/parameters/enabled") == "Y":
        found.append(Concern(
            "note", N_("zswap is on: swapped pages still take memory, compressed, but in no process's RSS."),
            "echo N | sudo tee /sys/module/zswap/parameters/enabled"))
    if _chosen(machine.huge_pages(root)) == "always":
        found.append(Concern(
            "note",
            N_("Transparent huge pages are always on: anonymous memory grows in steps of 2 MiB. Compare only with runs "
               "under the same setting."),
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"))
    if _text(root / "proc/sys/vm/overcommit_memory") == "2":
        found.append(Concern(
            "note", N_("Overcommit is off (2): a server that reserves more than it touches may not start."),
            "sudo sysctl vm.overcommit_memory=0"))
    limit = machine.cgroup_memory_limit(root)
    if limit is not None and limit < system.total:
        found.append(Concern(
            "note",
            sentence(N_("A cgroup limits memory here to {limit} MiB; the system's figures speak of the whole machine "
                        "({total} MiB)."), limit=f"{limit / MIB:.0f}", total=f"{system.total / MIB:.0f}"),
            N_("Read the tree's figures, or raise the container's limit.")))
    return found


def _about_cores(root: Path) -> list[Concern]:
    quota, allowed = machine.cpu_quota(root), len(os.sched_getaffinity(0))
    if quota is None or quota >= allowed:
        return []
    return [Concern(
        "note",
        sentence(N_("A cgroup limits this container to {n} of {of} cores: beyond that the kernel stops every process "
                    "in it until the next period, so times scatter, and the sampler may come late."),
                 n=f"{quota:g}", of=allowed),
        N_("Raise the container's CPU limit by one core more than the server uses (docker run --cpus), or lower "
           "n_threads."))]


def _about_activity(seen: Disturbance, neighbours: Sequence[Neighbour]) -> list[Concern]:
    found = []
    stalled_pct = seen.memory_full_pct or 0.0
    swapped = seen.swapped_in_bytes + seen.swapped_out_bytes
    if stalled_pct > 5 or swapped > 0:
        found.append(Concern(
            "blocks",
            sentence(N_("Memory is short right now: in the last {seconds} s everything stood still for {share} % of "
                        "the time, {size} MiB were swapped."),
                     seconds=f"{seen.seconds:.1f}", share=f"{stalled_pct:.0f}", size=f"{swapped / MIB:.1f}"),
            N_("End what is not needed (see the neighbours) and look again.")))
    if seen.other_cpu_cores > 0.5:
        found.append(Concern(
            "note",
            sentence(N_("Other processes keep {n} cores busy: times and the system's percentage will scatter; the "
                        "process tree's figures are not affected."), n=f"{seen.other_cpu_cores:.1f}"),
            N_("Measure when the machine is quiet.")))
    if seen.stolen_cpu_cores > 0.05:
        found.append(Concern(
            "note",
            sentence(N_("The host of this virtual machine takes {n} of a core away (steal): the sampler may lose more "
                        "than 1 % of its slots, and such trials do not count."), n=f"{seen.stolen_cpu_cores:.2f}"),
            N_("Measure at another time, or on a machine of your own.")))
    if neighbours:
        largest = neighbours[0]
        more = sentence(N_(", and {n} more with over {least} MiB"), n=len(neighbours) - 1,
                        least=_NEIGHBOUR_MIB) if len(neighbours) > 1 else ""
        found.append(Concern(
            "note",
            sentence(N_("Others hold memory: process {pid} {size} MiB ({command}){more}. What they do moves the "
                        "system's percentage, not the tree's figures."),
                     pid=largest.pid, size=f"{largest.rss / MIB:.0f}", command=largest.command, more=more),
            N_("End them, or read the tree's figures.")))
    return found


def _about_permissions(root: Path) -> list[Concern]:
    found = []
    if reset_peaks([os.getpid()]):
        found.append(Concern(
            "blocks",
            N_("The kernel's peak cannot be reset here (/proc/PID/clear_refs is refused even for our own process), so "
               "a phase's peak would be the process's."),
            N_("Run outside the sandbox that forbids it.")))
    if not os.access(root / "proc/sys/vm/drop_caches", os.W_OK):
        found.append(Concern("note", N_("clear=drop_caches is not possible: it needs root."),
                             N_("Use clear=unload (the default), which needs no permission.")))
    if os.geteuid() != 0:
        found.append(Concern(
            "note",
            N_("Processes of other users (a system-wide Ollama) show neither PSS nor a peak that can be reset, nor "
               "whether their model file is cached."),
            N_("Let slackwater start the server, or run as that user or root.")))
    return found


def _about_sampler(report: SamplerReport | MeterError, rate_hz: float) -> list[Concern]:
    if isinstance(report, MeterError):
        return [Concern("blocks", sentence(N_("The sampler does not run here: {why}"), why=report),
                        N_("Fix what the message names."))]
    period_ms = 1000 / rate_hz
    if report.lost_slots > 0.01 * report.samples or report.lateness_p99_ms > period_ms:
        return [Concern(
            "blocks",
            sentence(N_("The sampler cannot keep {rate} Hz here now: {lost} of {n} slots lost, lateness p99 {ms} ms (a "
                        "period is {period} ms). Phases that lack readings would not count."),
                     rate=f"{rate_hz:g}", lost=report.lost_slots, n=report.samples + report.lost_slots,
                     ms=f"{report.lateness_p99_ms:.1f}", period=f"{period_ms:g}"),
            N_("Leave a core free, allow real-time priority (root, or ulimit -r 1), or lower meter.rate_hz."))]
    return []


def _try_sampler(rate_hz: float, seconds: float = 0.6) -> SamplerReport | MeterError:
    try:
        with scratch() as folder, Sampler(folder, rate_hz, 0.2) as sampler:
            sampler.follow(os.getpid())
            time.sleep(seconds)
            return sampler.stop()
    except MeterError as error:
        return error


def _neighbours(root: Path, ours: Collection[int]) -> list[Neighbour]:
    found = []
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            values = parse_status((folder / "status").read_bytes())
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip().decode(errors="replace")
        except OSError:
            continue  # ended while we looked
        if values is not None and int(folder.name) not in ours and sum(values[:3]) >= _NEIGHBOUR_MIB * MIB:
            found.append(Neighbour(int(folder.name), command[:80], sum(values[:3])))
    return sorted(found, key=lambda neighbour: -neighbour.rss)[:NEIGHBOURS_SHOWN]


def _served(root: Path) -> dict[int, int]:
    """Servers that slackwater has started and still watches → the process that did, whatever lock that one holds.

    Of another user's nothing can be read; the lock's holder tells of that."""
    found = {}
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            mark = _SERVER_MARK.search((folder / "environ").read_bytes())
        except OSError:
            continue
        if mark is not None and (root / "proc" / mark[1].decode()).exists():
            found[int(folder.name)] = int(mark[1])
    return found


def _text(path: Path) -> str:
    """The file's text without the last newline; empty where it cannot be read (a kernel without that feature)."""
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _chosen(text: str) -> str:
    """The word in brackets of "always [madvise] never"."""
    return text.partition("[")[2].partition("]")[0] or NOT_IN_KERNEL
