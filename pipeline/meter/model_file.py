"""How much of a model's files lies in the page cache, and how to evict them.

The kernel answers truthfully only to the file's owner or to who may write it (facts: mincore(2), NOTES;
cachestat(2) as of Linux 6.5). Other parts of the page cache are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import MeterError
from pipeline.language import N_
from pipeline.meter import base
from pipeline.metrics import PHASE, WITH_SERVER, Metric, Section
from pipeline.model.files import files_of
from pipeline.phases import MIB

_SYS_CACHESTAT = 451  # one number on all architectures but alpha


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _CacheStat(ctypes.Structure):
    _fields_ = [("cached", ctypes.c_uint64), ("dirty", ctypes.c_uint64), ("writeback", ctypes.c_uint64),
                ("evicted", ctypes.c_uint64), ("recently_evicted", ctypes.c_uint64)]


@dataclass(frozen=True)
class Eviction:
    """Resident bytes of the files before and after; None: this user is not told. `reason` is empty when verified."""

    before: int | None
    after: int | None
    verified: bool
    """Less than 1 % of each file is left, and we were in a position to know."""
    reason: str = ""


def resident_bytes(path: Path) -> int | None:
    """Bytes of the file in the page cache, in whole pages. None: unverifiable for this user.

    For a user who neither owns the file nor may write it mincore reports every page resident and cachestat
    is refused, so neither is asked then. Raises MeterError if the file cannot be opened."""
    fd = _open(path)
    try:
        return _resident(fd)
    finally:
        os.close(fd)


def evict(path: Path) -> Eviction:
    """Drop the file's pages from the page cache: fdatasync, POSIX_FADV_DONTNEED, verify.

    Pages that a live process maps stay; so do dirty ones, hence the fdatasync. Needs read permission only.
    Raises MeterError if the file cannot be opened."""
    fd = _open(path)
    try:
        before = _resident(fd)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        after = _resident(fd)
        size = os.fstat(fd).st_size
    except OSError as error:
        raise MeterError(f"{path} could not be evicted from the page cache: {error.strerror}. Expected a file on a "
                         "local disk; clear=none leaves the cache as it is.") from error
    finally:
        os.close(fd)
    if after is None:
        return Eviction(before, after, False, f"unverifiable: this user neither owns {path} nor may write it")
    if after * 100 > size:
        return Eviction(before, after, False, f"{after / MIB:.1f} of {size / MIB:.1f} MiB stay: {_why(path)}")
    return Eviction(before, after, True)


def _why(path: Path) -> str:
    """Why pages stay: a file system that lies in memory, or a process that has mapped them, if we may see one."""
    where = path.stat()
    kind = _file_system(where.st_dev)
    if kind in _IN_MEMORY:
        return f"the file lies in memory itself ({kind}) and can only be deleted from there; move it to a disk"
    device = f"{os.major(where.st_dev):02x}:{os.minor(where.st_dev):02x} {where.st_ino} "
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda each: int(each.name)):
        with contextlib.suppress(OSError):  # ended, or another user's
            if device.encode() in (folder / "maps").read_bytes():
                return f"process {folder.name} maps the file"
    return f"no process that this user may see maps the file; another user's may, or its file system ({kind}) keeps it"


_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs")


def _file_system(device: int) -> str:
    """The type of the file system with this device number (proc(5), mountinfo); "unknown type" if it is not listed."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines():
            fields, _, source = line.partition(" - ")
            if fields.split()[2] == wanted:
                return source.split()[0]
    return "unknown type"


def evict_all(files: Sequence[Path]) -> Eviction:
    """`evict` for every file of a model: sums, verified if each is, and the reasons of those that are not."""
    each = [evict(path) for path in files]
    before, after = [one.before for one in each], [one.after for one in each]
    return Eviction(_sum(before), _sum(after), all(one.verified for one in each),
                    "; ".join(f"{path.name}: {one.reason}" if len(each) > 1 else one.reason
                              for path, one in zip(files, each, strict=True) if one.reason))


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise MeterError(f"{path} cannot be opened: {error.strerror}. Expected the model's file, readable.") from error


def _resident(fd: int) -> int | None:
    info = os.fstat(fd)
    if info.st_size == 0:
        return 0
    if info.st_uid != os.geteuid() and not os.access(f"/proc/self/fd/{fd}", os.W_OK,
                                                              effective_ids=True):
        return None
    pages = _cachestat(fd)
    if pages is None:
        pages = _mincore(fd, info.st_size)
    return pages * mmap.PAGESIZE


def _cachestat(fd: int) -> int | None:
    """Cached pages of the whole file; None where the kernel has no cachestat (before 6.5) or a sandbox forbids it."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = _CacheStat()
    if libc.syscall(_SYS_CACHESTAT, fd, ctypes.byref(_Range(0, 0)), ctypes.byref(answer), 0) != 0:
        return None
    return int(answer.cached)


def _mincore(fd: int, size: int) -> int:
    """Cached pages of the whole file: one byte per page of a mapping, bit 0 set for a resident one (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    vector = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(vector.ctypes.data)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return int((vector & 1).sum(dtype=np.int64))


_SOURCE = N_("cachestat(2), else mincore(2)")

SECTION = Section(
    N_("The model's files in the page cache"),
    N_("Read once at a phase's moment, and where a trial is cleared (`clear`)."), (
        Metric(f"{PHASE}/model_file_resident_mib", N_("How much of the model's file lies in the page cache."),
               _SOURCE, N_("Absent for another user's file: the kernel does not report it."),
               phases=WITH_SERVER),
        Metric("clear/model_resident_before_mib",
               N_("How much of the model's file lay in the page cache before the trial evicted it."),
               _SOURCE),
        Metric("clear/model_resident_after_mib", N_("How much of it was left afterwards."),
               _SOURCE,
               N_("More than 1 % of the file left is noted: the trial did not begin cold.")),
        Metric("clear/program_resident_before_mib",
               N_("How much of the engine's own files lay in the page cache before the trial evicted them."),
               _SOURCE),
        Metric("clear/program_resident_after_mib", N_("How much of the engine's own files was left afterwards."),
               _SOURCE,
               N_("More than 1 % of a file left is noted: another program maps it, and program pages may differ.")),
    ))
"""What the metric dictionary says of these figures."""


class Meter(base.Meter):
    """The weights' share of the page cache."""

    name = "model_file"
    source = "cachestat(2), else mincore(2)"
    checked = "on hardware"

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def read(self, pids: Collection[int] = ()) -> base.Reading:
        """Resident bytes; nothing where this user may not know."""
        resident = _sum([resident_bytes(path) for path in self.files])
        return {} if resident is None else {"resident_bytes": resident}


def find(root: Path = Path("/"), target: base.Target = base.NOTHING) -> base.Found:
    """Here if the target names a file on this machine whose pages this user may ask about."""
    if target.model_path is None:
        return base.Absent("model_file", N_("no model file is named (a sweep names it)"))
    files = files_of(target.model_path)
    try:
        hidden = [path for path in files if resident_bytes(path) is None]
    except MeterError as error:
        return base.Absent("model_file", str(error))
    if hidden:
        return base.Absent("model_file", f"unverifiable: this user neither owns {hidden[0]} nor may write it")
    return base.Available(Meter(files))
