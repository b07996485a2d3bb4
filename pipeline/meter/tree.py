"""The measured process tree: who belongs to it, its memory process by process, and the kernel's high-water marks.

One-off readings at a phase's moment; periodic ones are the sampler's. Facts: proc(5), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pipeline.errors import MeterError
from pipeline.meter import base
from pipeline.meter.sampler_program import children, descendants, field_kib, parse_status
from pipeline.metrics import KINDS
from pipeline.phases import ProcessReading, TreeReading

__all__ = ["Meter", "become_subreaper", "children", "find", "members", "read_major_faults",
           "read_peaks", "read_tree", "reset_peaks"]

_PR_SET_CHILD_SUBREAPER = 36
_GONE = (FileNotFoundError, ProcessLookupError)


def become_subreaper() -> None:
    """Make this process the parent of whatever detaches below it, so that a daemonised child is still counted.

    prctl(2), PR_SET_CHILD_SUBREAPER, Linux 3.4. Orphans become this process's zombies when they end: reap them.
    Raises MeterError if the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise MeterError(f"This process could not become a child subreaper: {os.strerror(ctypes.get_errno())}. "
                         "Expected Linux 3.4 or newer with prctl allowed; without it a detached child of the "
                         "server would go uncounted.")


def members(root_pid: int, reaper_pid: int | None = None, exclude: Collection[int] = frozenset()) -> list[int]:
    """Process ids of the tree: the root first, its descendants, and what was re-parented to the reaper.

    Excluded processes (our sampler, our helpers) and everything below them are left out. A child started
    from a thread is found too (task/*/children). The root is listed whether or not it still lives."""
    return list(descendants(root_pid, reaper_pid, frozenset(exclude)))


def read_tree(pids: Iterable[int], with_pss: bool = True, model: Sequence[Path] = ()) -> TreeReading:
    """Every process once, in bytes; those that have ended are left out. `model`: files whose pages are told apart.

    PSS and USS walk the page tables, about 10 µs per MiB mapped in 4 KiB pages (smaps_rollup): for
    phase boundaries, not for loops. They are None where this user may not read them."""
    # the device number is left out: on overlay file systems maps shows another one than stat
    inodes = frozenset((str(path.stat().st_ino), str(path.resolve())) for path in model)
    begin = time.monotonic_ns()
    processes = [reading for pid in pids if (reading := _read_process(pid, with_pss, inodes)) is not None]
    return TreeReading(t_ns=begin, processes=tuple(processes), duration_ns=time.monotonic_ns() - begin)


def _read_process(pid: int, with_pss: bool, model: Collection[tuple[str, str]]) -> ProcessReading | None:
    folder = Path("/proc", str(pid))
    try:
        values = parse_status((folder / "status").read_bytes())
        if values is None:
            return None
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip().decode(errors="replace")
        pss, uss = _read_rollup(folder) if with_pss else (None, None)
        of_model = _model_pages(folder, model) if model else None
    except _GONE:
        return None
    anon, file, shmem, swap, hwm = values
    return ProcessReading(pid, command, anon, file, shmem, swap, hwm, pss, uss, of_model)


def _model_pages(folder: Path, model: Collection[tuple[str, str]]) -> int | None:
    """Bytes of these files (inode, path) that the process has mapped and resident, without its private copies of their
    pages (smaps, proc(5)). The walk is only made where one is mapped. None: not readable."""
    def is_of_model(header: bytes) -> bool:
        words = header.decode(errors="surrogateescape").split(maxsplit=5)
        return len(words) == 6 and (words[4], words[5].rstrip("\n")) in model

    try:
        if not any(map(is_of_model, (folder / "maps").read_bytes().splitlines())):
            return 0
        total, counting = 0, False
        for line in (folder / "smaps").read_bytes().splitlines():
            if b"-" in line.split(b" ", 1)[0]:
                counting = is_of_model(line)
            elif counting and line.startswith((b"Rss:", b"Anonymous:")):
                total += int(line.split()[1]) * (1024 if line.startswith(b"Rss:") else -1024)
        return total
    except PermissionError:
        return None


def _read_rollup(folder: Path) -> tuple[int | None, int | None]:
    """(PSS, USS): the proportional share, and what no other process maps (all Private_* lines, as psutil counts)."""
    try:
        text = (folder / "smaps_rollup").read_bytes()
    except PermissionError:
        return None, None
    pss = field_kib(text, b"\nPss:")
    private = (b"\nPrivate_Clean:", b"\nPrivate_Dirty:", b"\nPrivate_Hugetlb:")
    return (pss, sum(max(field_kib(text, key), 0) for key in private)) if pss >= 0 else (None, None)


def reset_peaks(pids: Iterable[int]) -> list[int]:
    """Set each process's VmHWM to its present RSS ("5" to /proc/PID/clear_refs, about 20 µs, no other effect).

    Returns the living processes that could not be reset (another user's, or /proc is read-only); their peak stays
    the one since they started. It lowers getrusage's ru_maxrss of that process too."""
    refused = []
    for pid in pids:
        try:
            Path("/proc", str(pid), "clear_refs").write_bytes(b"5")
        except _GONE:
            continue
        except OSError:
            refused.append(pid)
    return refused


def read_peaks(pids: Iterable[int]) -> dict[int, int]:
    """VmHWM in bytes of each living process since its last reset; one status read each (about 12 µs).

    The kernel raises it from per-CPU batched counters, so it may miss up to about 130 KiB here and some
    MiB on many cores: the peak is the larger of this and the sampled maximum."""
    peaks = {}
    for pid in pids:
        try:
            values = parse_status(Path("/proc", str(pid), "status").read_bytes())
        except _GONE:
            continue
        if values is not None:
            peaks[pid] = values[4]
    return peaks


def read_major_faults(pids: Iterable[int]) -> dict[int, int]:
    """Page faults of each living process that needed the disk, since it began (proc(5), stat field 12)."""
    faults = {}
    for pid in pids:
        try:
            text = Path("/proc", str(pid), "stat").read_text("utf-8", errors="replace")
        except _GONE:
            continue
        # the name is in parentheses and may hold spaces and parentheses itself
        faults[pid] = int(text.rpartition(")")[2].split()[9])
    return faults


class Meter(base.Meter):
    """What the tree holds now, summed over its processes. Peaks and the timeline are read elsewhere."""

    name = "tree"
    source = "/proc/PID/status and smaps_rollup"
    checked = "on hardware"

    def read(self, pids: Collection[int] = ()) -> base.Reading:
        """RSS and its split, swap, PSS and USS. PSS and USS are left out if one process does not show them."""
        reading = read_tree(pids)
        values: dict[str, float] = {"rss_bytes": reading.rss}
        for name in KINDS:
            values[f"{name}_bytes"] = sum(getattr(process, name) for process in reading.processes)
        for name in ("pss", "uss"):
            shares = [getattr(process, name) for process in reading.processes]
            if None not in shares:
                values[f"{name}_bytes"] = sum(shares)
        return values


def find(root: Path = Path("/"), target: base.Target = base.NOTHING) -> base.Found:
    """Here wherever /proc has smaps_rollup (Linux 4.14) and task/*/children (CONFIG_PROC_CHILDREN)."""
    own = root / "proc/self"
    for path in (own / "smaps_rollup", own / "task"):
        if not path.exists():
            return base.Absent("tree", f"{path} does not exist: Linux 4.14 or newer with /proc is needed")
    if not all((thread / "children").exists() for thread in (own / "task").iterdir()):
        return base.Absent("tree", "this kernel was built without CONFIG_PROC_CHILDREN")
    return base.Available(Meter())
