"""The sampler's own process: reads the followed tree and the system by the clock and appends records to files.

Standard library only and run by path, so that it starts fast and stays small; the package imports the
walk and the parsers from here. The orchestrator's side (start, tail, stop) is sampler.py.
"""

import _thread
import ctypes
import gc
import mmap
import os
import select
import signal
import struct
import sys
import time

SAMPLE_COLUMNS = (
    "tree_anon", "tree_file", "tree_shmem", "tree_swap", "tree_hwm", "tree_processes",
    "system_total", "system_available", "system_free", "system_cached", "system_swap_used", "rate_hz",
)
"""Columns of one sample after due_ns and t_ns; bytes, except tree_processes and rate_hz, the rate held until the next.

tree_hwm and tree_swap may be as old as the last refresh of the tree; a phase's peak is read_peaks' (tree.py).
The system's columns are read SYSTEM_HZ times a second and repeated between."""
SAMPLE_FIELDS = ("due_ns", "t_ns", *SAMPLE_COLUMNS)
PROCESS_FIELDS = ("t_ns", "pid", "anon", "file", "shmem", "swap", "hwm")
"""Columns of one process in one sample; bytes, except t_ns and pid."""
SYSTEM_HZ = 25
"""How often /proc/meminfo is read: it costs as much as the tree, and its own noise is far above what 40 ms hide."""
ATTENTIVE_NS = 250_000_000
"""How long no deadline is left out after the tree moved, or a phase began: 25 readings alike at 100 Hz."""
SAMPLES_FILE = "samples.bin"
"""Whole chunks of SAMPLE_CHUNK bytes; a record whose t_ns is 0 was not written yet."""
PROCESSES_FILE = "processes.bin"

SAMPLE_BYTES = 8 * len(SAMPLE_FIELDS)
SAMPLE_CHUNK = len(SAMPLE_FIELDS) * mmap.PAGESIZE

_STATUS_KEYS = (b"\nRssAnon:", b"\nRssFile:", b"\nRssShmem:", b"\nVmSwap:", b"\nVmHWM:")
_MEMINFO_KEYS = (b"MemTotal:", b"\nMemAvailable:", b"\nMemFree:", b"\nCached:", b"\nSReclaimable:",
                 b"\nSwapTotal:", b"\nSwapFree:")
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_KCMP_VM = 1
_SLOW_IN_A_ROW = 20
_SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272}


def field_kib(text: bytes, key: bytes) -> int:
    """The value of a "Key:   123 kB" line in bytes (×1024); -1 if the line is not there (proc(5))."""
    at = text.find(key)
    if at < 0:
        return -1
    at += len(key)
    return int(text[at:text.index(b"kB", at)]) << 10


def parse_status(text: bytes) -> tuple[int, int, int, int, int] | None:
    """(anon, file, shmem, swap, high-water mark) in bytes from /proc/PID/status.

    None for a process without memory: a zombie, or one past its exit (its status lacks RssAnon)."""
    anon, file, shmem, swap, hwm = (field_kib(text, key) for key in _STATUS_KEYS)
    if anon < 0:
        return None
    return anon, max(file, 0), max(shmem, 0), max(swap, 0), max(hwm, 0)


def parse_meminfo(text: bytes) -> tuple[int, int, int, int, int]:
    """(total, available, free, cached, swap used) in bytes from /proc/meminfo.

    Cached counts reclaimable slab too, as psutil.virtual_memory() and free(1) do."""
    total, available, free, cached, slab, swap_total, swap_free = (field_kib(text, key) for key in _MEMINFO_KEYS)
    return total, available, free, cached + max(slab, 0), swap_total - swap_free


def children(pid: int) -> list[int]:
    """Direct children of all threads of a process, from /proc/PID/task/*/children; [] once it is gone."""
    found: list[int] = []
    try:
        threads = [entry.name for entry in os.scandir(f"/proc/{pid}/task")]
    except OSError:
        return found
    for thread in threads:
        try:
            fd = os.open(f"/proc/{pid}/task/{thread}/children", os.O_RDONLY)
        except OSError:
            continue  # the thread ended since it was listed
        try:
            found += map(int, os.read(fd, 65536).split())
        except OSError:
            continue
        finally:
            os.close(fd)
    return found


def descendants(root_pid: int, reaper_pid: int | None, exclude: frozenset[int]) -> dict[int, int]:
    """The measured tree, pid → parent pid (0 for the root): the root's descendants and the reaper's other children.

    A process that detached (double fork) leaves the root's tree and is re-parented to the nearest
    child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), so it is looked for there. Neither an excluded
    process nor anything below it is followed. The root is in it whether or not it is alive."""
    found = {root_pid: 0}
    queue = [root_pid]
    if reaper_pid is not None:
        for pid in children(reaper_pid):
            if pid not in exclude and pid not in found:
                found[pid] = reaper_pid
                queue.append(pid)
    while queue:
        parent = queue.pop()
        for pid in children(parent):
            if pid not in exclude and pid not in found:
                found[pid] = parent
                queue.append(pid)
    return found


class _Process:
    """One member of the tree: open descriptors, which the kernel ties to this very process and not to its number."""

    __slots__ = ("children_fd", "children_text", "own_memory", "packed", "parent", "pid", "row", "statm", "statm_fd",
                 "status_fd")

    def __init__(self, pid: int, parent: int) -> None:
        self.pid = pid
        self.parent = parent
        self.children_text = b""
        self.own_memory = parent == 0
        self.statm = b""
        self.row: tuple[int, int, int, int, int] | None = None
        self.packed = b""
        self.statm_fd = self.status_fd = self.children_fd = -1
        try:
            self.statm_fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
            self.status_fd = os.open(f"/proc/{pid}/status", os.O_RDONLY)
            self.children_fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for fd in (self.statm_fd, self.status_fd, self.children_fd):
            if fd >= 0:
                os.close(fd)


_NOTHING = (0, 0, 0, 0, 0, 0)
_pack_process = struct.Struct(f"={len(PROCESS_FIELDS) - 1}q").pack


class Tree:
    """The followed tree, kept current. A reading in which nothing moved costs one pread per process, and one more."""

    def __init__(self, root_pid: int, reaper_pid: int | None, exclude: frozenset[int]) -> None:
        self.root_pid = root_pid
        self.reaper_pid = reaper_pid
        self.exclude = exclude
        self.members: dict[int, _Process] = {}
        self.still = False
        """Did the last reading find every process as it had been? (statm, to the page.)"""
        self.sums: tuple[int, ...] = _NOTHING
        self.packed: list[bytes] = []
        self.reaper_fd = -1
        self.reaper_text = b""
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.kcmp_number = _SYS_KCMP.get(os.uname().machine)
        if reaper_pid is not None:
            self.reaper_fd = os.open(f"/proc/{reaper_pid}/task/{reaper_pid}/children", os.O_RDONLY)
        self.refresh()

    def refresh(self) -> None:
        """Walk the tree and open what is new; what is gone is dropped when its status can no longer be read."""
        for pid, parent in descendants(self.root_pid, self.reaper_pid, self.exclude).items():
            if pid not in self.members:
                try:
                    self.members[pid] = _Process(pid, parent)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # ended between the walk and here

    def changed(self) -> bool:
        """Has any member, or the reaper, other children than at the last call? (Of its main thread: one pread each.)"""
        changed = False
        for process in self.members.values():
            text = _pread(process.children_fd, 65536)
            if text != process.children_text:
                process.children_text = text
                changed = True
        if self.reaper_fd >= 0:
            text = _pread(self.reaper_fd, 65536)
            if text != self.reaper_text:
                self.reaper_text = text
                changed = True
        return changed

    def read(self, anew: bool) -> bool:
        """Bring `sums` and `packed` up to now; False if nothing moved. Forgets members that ended.

        statm costs a sixth of status. Where it has not moved by a page, neither has the split, and the
        row of last time stands; only the high-water mark and swap may then be older, at most until
        the next reading `anew`."""
        moved = anew
        self.still = True
        gone = []
        pread = os.pread
        for process in self.members.values():
            try:
                statm = pread(process.statm_fd, 128, 0)
            except ProcessLookupError:
                statm = b""
            if statm == process.statm and process.own_memory and not anew:
                continue
            moved = True
            if statm != process.statm:
                self.still = False
            values = parse_status(_pread(process.status_fd, 4096))
            if values is None:
                gone.append(process.pid)
                continue
            process.statm = statm
            process.row = values
            process.packed = _pack_process(process.pid, *values)
        if moved:
            for pid in gone:
                self.members.pop(pid).close()
            self._add_up()
        return moved

    def _add_up(self) -> None:
        rows = []
        self.packed = []
        for process in self.members.values():
            if process.row is not None and (process.own_memory or self._has_own_memory(process)):
                rows.append(process.row)
                self.packed.append(process.packed)
        self.sums = (*map(sum, zip(*rows, strict=True)), len(rows)) if rows else _NOTHING

    def _has_own_memory(self, process: _Process) -> bool:
        """False while a vforked child still runs in its parent's memory, which would be counted twice (kcmp(2))."""
        if self.kcmp_number is not None:
            shared = self.libc.syscall(self.kcmp_number, process.pid, process.parent, _KCMP_VM, 0, 0) == 0
            if shared and process.parent in self.members:
                return False
        process.own_memory = True
        return True

    def close(self) -> None:
        """Give all descriptors back."""
        for process in self.members.values():
            process.close()
        if self.reaper_fd >= 0:
            os.close(self.reaper_fd)


def _pread(fd: int, size: int) -> bytes:
    try:
        return os.pread(fd, size, 0)
    except ProcessLookupError:
        return b""  # reaped


def _write(fd: int, record: bytes) -> None:
    written = os.write(fd, record)
    if written != len(record):  # a full disk takes a part first; the next write says why
        os.write(fd, record[written:])


class _Records:
    """The samples' file, written through a mapping of its last chunk: a sample is a store and no system call."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self.size = 0
        self._next_chunk()

    def _next_chunk(self) -> None:
        os.posix_fallocate(self.fd, self.size, SAMPLE_CHUNK)  # a full disk is an error here, not a SIGBUS later
        self.chunk = mmap.mmap(self.fd, SAMPLE_CHUNK, offset=self.size)
        self.size += SAMPLE_CHUNK
        self.at = 0

    def append(self, due_ns: int, t_ns: int, columns: bytes) -> None:
        """Add one record; its times come last, so that whoever sees them sees the rest."""
        if self.at == SAMPLE_CHUNK:
            self._next_chunk()
        at = self.at
        self.chunk[at + 16:at + SAMPLE_BYTES] = columns
        _TIMES.pack_into(self.chunk, at, due_ns, t_ns)
        self.at = at + SAMPLE_BYTES


_TIMES = struct.Struct("=2q")
_TIME = struct.Struct("=q")
_COLUMNS = struct.Struct(f"={len(SAMPLE_COLUMNS)}q")


class Sampler:
    """The loop: absolute deadlines, one record per deadline met, deadlines missed by a whole period left out.

    While nothing moves only every `still_slots`-th deadline is kept: waking costs more than reading, and what is short
    and falls between is in the kernel's high-water mark."""

    def __init__(self, folder: str, period_ns: int, refresh_ns: int, still_slots: int) -> None:
        self.period_ns = period_ns
        self.refresh_ns = refresh_ns
        self.still_slots = still_slots
        self.step = 1
        """Deadlines from this sample to the next."""
        self.rate_hz = 0
        self.attentive_until_ns = 0
        self.samples = _Records(f"{folder}/{SAMPLES_FILE}")
        self.processes_fd = os.open(f"{folder}/{PROCESSES_FILE}",
                                    os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        self.meminfo_fd = os.open("/proc/meminfo", os.O_RDONLY)
        self.forks = _Forks()
        self.tree: Tree | None = None
        self.refreshed_ns = 0
        self.system: tuple[int, ...] = ()
        self.system_ns = 0
        self.columns = b""
        self.control = b""
        self.rows: list[bytes] = []
        self.realtime = _claim_realtime()

    def run(self) -> None:
        """Until "stop" or the end of the control pipe. Raises OSError for a disk that is full."""
        origin = time.monotonic_ns()
        slot = slow = 0
        self.sample(origin)
        _answer("ready realtime" if self.realtime else "ready")
        while True:
            slot += self.step
            due = origin + slot * self.period_ns
            while True:
                wait_ns = due - time.monotonic_ns()
                if not select.select((0,), (), (), max(wait_ns, 0) / 1e9)[0]:
                    break
                if not self.obey():
                    return
                if wait_ns <= 0:
                    break
                if self.step == 1:  # a phase began: the very next deadline is kept
                    slot = min(slot, (time.monotonic_ns() - origin) // self.period_ns + 1)
                    due = origin + slot * self.period_ns
            late = time.monotonic_ns() - due
            if late >= self.period_ns:
                slot += late // self.period_ns
                due = origin + slot * self.period_ns
            began = time.monotonic_ns()
            self.sample(due)
            slow = slow + 1 if time.monotonic_ns() - began > self.period_ns // 2 else 0
            if self.realtime and slow == _SLOW_IN_A_ROW:
                # A tree too large for this rate: late samples are better than a core taken from the server.
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
                self.realtime = False

    def sample(self, due_ns: int) -> None:
        """Read everything once and append the sample; the rows of its processes follow with the tree's refresh."""
        t_ns = time.monotonic_ns()
        tree = self.tree
        moved = not self.columns
        if t_ns - self.system_ns >= 1_000_000_000 // SYSTEM_HZ - self.period_ns // 2:
            self.system = parse_meminfo(os.pread(self.meminfo_fd, 4096, 0))
            self.system_ns = t_ns
            moved = True
        if tree is not None:
            anew = t_ns - self.refreshed_ns >= self.refresh_ns or (self.forks.any() and tree.changed())
            if anew:
                tree.refresh()
                self.refreshed_ns = t_ns
                self.flush()
            moved = tree.read(anew) or moved
            if not tree.still:
                self.attend(t_ns + ATTENTIVE_NS)
            time_of = _TIME.pack(t_ns)
            for packed in tree.packed:
                self.rows += (time_of, packed)
        self.step = 1 if t_ns < self.attentive_until_ns else self.still_slots
        rate_hz = round(1e9 / (self.step * self.period_ns))
        if moved or rate_hz != self.rate_hz:
            self.rate_hz = rate_hz
            self.columns = _COLUMNS.pack(*(tree.sums if tree is not None else _NOTHING), *self.system, rate_hz)
        self.samples.append(due_ns, t_ns, self.columns)

    def attend(self, until_ns: int) -> None:
        """Keep every deadline until then."""
        self.attentive_until_ns = max(self.attentive_until_ns, until_ns)
        self.step = 1

    def flush(self) -> None:
        """Append the process rows that wait. They are written in batches: a write costs as much as three processes."""
        if self.rows:
            _write(self.processes_fd, b"".join(self.rows))
            self.rows.clear()

    def obey(self) -> bool:
        """Carry out what the control pipe says; False at "stop" and when the orchestrator is gone."""
        received = os.read(0, 65536)
        if not received:
            return False
        *lines, self.control = (self.control + received).split(b"\n")
        for line in lines:
            command, *words = line.decode().split()
            if command == "attend":
                self.attend(time.monotonic_ns() + int(words[0]))
                continue
            self.flush()
            if command == "stop":
                return False
            self.columns = b""
            self.attend(time.monotonic_ns() + ATTENTIVE_NS)
            if self.tree is not None:
                self.tree.close()
                self.tree = None
            if command == "follow":
                root, reaper, *exclude = map(int, words)
                self.tree = Tree(root, reaper or None, frozenset(exclude) | {os.getpid()})
                self.refreshed_ns = time.monotonic_ns()
                if root not in self.tree.members:
                    self.tree.close()
                    self.tree = None
                    _answer("gone")
                    continue
            _answer("done")
        return True


class _Forks:
    """Was any process or thread made since the last look? One cheap read instead of one per member of the tree.

    The last word of /proc/loadavg is the newest pid (proc(5)), of this pid namespace, which sees those below it too.
    Where it does not move with a new thread (an emulated /proc), the answer is always yes."""

    def __init__(self) -> None:
        self.fd = os.open("/proc/loadavg", os.O_RDONLY)
        self.newest = self._read()
        _thread.start_new_thread(int, ())
        self.told = self._read() != self.newest

    def _read(self) -> bytes:
        return os.pread(self.fd, 128, 0).rpartition(b" ")[2]

    def any(self) -> bool:
        """True at the first look after one was made."""
        newest = self._read()
        if newest == self.newest:
            return not self.told
        self.newest = newest
        return True


def _answer(word: str) -> None:
    os.write(1, word.encode() + b"\n")


def _claim_realtime() -> bool:
    """Run ahead of ordinary processes where this user may (root, CAP_SYS_NICE, RLIMIT_RTPRIO); see sched(7).

    With every core busy an ordinary sampler loses one slot in five to ten; this one lost none (p99 0.5 ms
    against 10 ms), at the same CPU time."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    return True


def _die_with_parent(parent: int) -> None:
    """The signal comes when the *thread* that started us ends (prctl(2)): go only if the process is gone too."""

    def check(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(0)

    signal.signal(signal.SIGHUP, check)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # wake at the deadline, not up to 50 µs after it
    check()


def main(arguments: list[str]) -> int:
    """FOLDER PERIOD_NS REFRESH_NS STILL_SLOTS PARENT_PID; 0 when stopped or orphaned, 1 with a line on stderr
    otherwise."""
    folder, period, refresh, still, parent = arguments
    gc.disable()  # nothing here makes cycles, and a collection is a late sample
    try:
        _die_with_parent(int(parent))
        Sampler(folder, int(period), int(refresh), int(still)).run()
    except BrokenPipeError:
        return 0
    except OSError as error:
        os.write(2, f"{error.strerror}: {error.filename or 'writing the records'}\n".encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
