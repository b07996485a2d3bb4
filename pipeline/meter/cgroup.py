"""The server's own memory cgroup, v2 or v1, if it has one to itself; one that others share is not used.

It charges page cache and kernel memory too, so its figures are not the tree's RSS. Sources:
Documentation/admin-guide/cgroup-v2.rst (memory.*), cgroup-v1/memory.rst. v2 was checked on recorded data only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from pipeline import machine
from pipeline.errors import MeterError
from pipeline.language import N_, sentence
from pipeline.meter import base
from pipeline.metrics import PHASE, WITH_SERVER, Metric, Section

_OWN = N_("the server's own memory cgroup, v2 or v1; absent where it shares one")

SECTION = Section(
    N_("The server's cgroup"),
    N_("Only if the server has a memory cgroup to itself. Page cache and kernel memory are charged to it, "
       "so its figures are not the tree's RSS."), (
        Metric(f"{PHASE}/cgroup_current_mib", N_("All that is charged now."), _OWN,
               N_("Reading a model fills it with page cache."), phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_anon_mib", N_("Anonymous memory."), _OWN, phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_file_mib", N_("Page cache."), _OWN, phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_swap_mib", N_("Swap."), _OWN, N_("Absent without swap accounting."),
               phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_peak_mib", N_("The highest charge since the turn's request."), _OWN,
               N_("Since the cgroup was made where the kernel (before 6.12) or our rights allow no reset."),
               phases=(*WITH_SERVER, "during_generation")),
        Metric(f"{PHASE}/cgroup_<event>_events_count",
               N_("Entries of memory.events (high, max, oom, oom_kill, …) since the trial's first reading."),
               "memory.events, v2 only", phases=WITH_SERVER),
    ))
"""What the metric dictionary says of these figures."""


class Meter(base.Meter):
    """One memory cgroup. v2's peak is reset for the descriptor that asks, so the descriptor is kept."""

    name = "cgroup"
    source = "memory.* of the server's own cgroup"
    checked = "on recorded data"

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version
        peak = folder / ("memory.peak" if version == 2 else "memory.max_usage_in_bytes")
        self._peak_fd: int | None = None
        for mode in (os.O_RDWR, os.O_RDONLY):
            with contextlib.suppress(OSError):  # memory.peak came with Linux 5.19, and became writable with 6.12
                self._peak_fd = os.open(peak, mode)
                break

    def __del__(self) -> None:
        if self._peak_fd is not None:
            os.close(self._peak_fd)

    def reset(self) -> None:
        """The peak counts from here where the kernel and our permissions allow."""
        if self._peak_fd is not None:
            with contextlib.suppress(OSError):
                # v2: any write, valid for this descriptor. v1: writing 0 resets it for everybody.
                os.pwrite(self._peak_fd, b"0\n", 0)

    def read(self, pids: Collection[int] = ()) -> base.Reading:
        """current, peak, anon, file, swap in bytes, and v2's memory.events as counters."""
        now = {"current": "memory.current" if self.version == 2 else "memory.usage_in_bytes"}
        values: dict[str, float] = {f"{name}_bytes": int(self._text(file)) for name, file in now.items()}
        stat = _pairs(self._text("memory.stat"))
        anon, file = ("anon", "file") if self.version == 2 else ("total_rss", "total_cache")
        values |= {"anon_bytes": stat[anon], "file_bytes": stat[file]}
        if self._peak_fd is not None:
            values["peak_bytes"] = int(os.pread(self._peak_fd, 64, 0))
        if self.version == 1:
            return values | ({"swap_bytes": stat["total_swap"]} if "total_swap" in stat else {})
        with contextlib.suppress(MeterError):  # absent where the kernel or the parent does without swap accounting
            values["swap_bytes"] = int(self._text("memory.swap.current"))
        return values | {f"{event}_events_count": count for event, count in _pairs(self._text("memory.events")).items()}

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text("utf-8")
        except OSError as error:
            raise MeterError(f"{self.folder / name} cannot be read: {error.strerror}. Expected the cgroup of a "
                             "running server.") from error


def find(root: Path = Path("/"), target: base.Target = base.NOTHING) -> base.Found:
    """The target's cgroup, or where none runs yet the one a server of ours would start in. Shared: absent."""
    pids = list(target.pids) or [os.getpid()]
    own = next(machine.cgroups("memory", root, str(pids[0])), None)
    if own is None:
        return base.Absent("cgroup", N_("this kernel has no memory cgroups"))
    folder, version = own
    proof = "memory.current" if version == 2 else "memory.usage_in_bytes"
    if not (folder / proof).exists():
        return base.Absent("cgroup", f"{folder} has no {proof}: no memory cgroup v{version} of its own here "
                                     "(the root one has none, and a container may hide it)")
    if not target.pids:
        return base.Absent("cgroup", sentence(
            N_("shared: a server started from here runs in {folder} beside this program (systemd-run --user --scope "
               "gives a server a cgroup of its own)"), folder=folder))
    strangers = _members(folder) - set(pids)
    if strangers:
        return base.Absent("cgroup", sentence(
            N_("shared: {folder} holds {n} processes besides the server's"), folder=folder, n=len(strangers)))
    meter = Meter(folder, version)
    return base.Available(meter, note=sentence(
        N_("v{version}; page cache and kernel memory are charged to it too"), version=version))


def _members(folder: Path) -> set[int]:
    """All processes in the cgroup and below it."""
    found: set[int] = set()
    for file in (folder / "cgroup.procs", *folder.rglob("*/cgroup.procs")):
        with contextlib.suppress(OSError):  # a child cgroup that has just gone, or a threaded one
            found |= {int(line) for line in file.read_text("utf-8").split()}
    return found


def _pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}
