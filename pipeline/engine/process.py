"""Server processes: started in a session of their own, watched, and ended with everything below them.

No protocol of any engine lives here, and no memory is read here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from pipeline import interrupt
from pipeline.engine import guard, server_log
from pipeline.errors import EngineError
from pipeline.record.reason import Reason

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_MARK = "SLACKWATER_SERVER"

_DIE_WITH_PARENT = """
import ctypes, os, sys
parent, number, *command = sys.argv[1:]
ctypes.CDLL(None, use_errno=True).prctl(1, int(number), 0, 0, 0)  # PR_SET_PDEATHSIG; it outlives the exec
if os.getppid() != int(parent):
    os._exit(1)  # the parent died before the signal was armed
try:
    os.execv(command[0], command)
except OSError as error:
    print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)
"""
_NOT_RUN = 127

HURRY_S = 2.0
"""How long a server may take to end once a user has interrupted."""
KILLED_LIMIT_S = 10.0

_STARTED: set[psutil.Process] = set()
"""What this process has started here."""

# What a server may see of our environment: the rest (LLAMA_ARG_*, OLLAMA_*, OMP_*, MALLOC_*, PYTHON*, proxies)
# would change what is measured without standing in any config.
_ALLOWED = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL", "HSA_OVERRIDE_GFX_VERSION", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
})


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The allow-listed part of our environment, with `extra` on top."""
    kept = {name: value for name, value in os.environ.items() if name in _ALLOWED or name.startswith("LC_")}
    return kept | dict(extra or {})


def left_out() -> list[str]:
    """A note on variables that this user has set for a server and that ours does not get; empty if there are none."""
    ours = ("OLLAMA_BIN", "OLLAMA_MODELS")  # read by slackwater itself
    names = sorted(name for name in os.environ if name.startswith(("OLLAMA_", "LLAMA_ARG_")) and name not in ours)
    if not names:
        return []
    return [Reason("variables_unread", {"names": ", ".join(names)})]


class Child:
    """A program that we started, the leader of its own session. Not thread-safe."""

    def __init__(self, popen: subprocess.Popen[bytes], log_path: Path, mark: str,
                 before: Collection[psutil.Process]) -> None:
        self._popen, self._mark = popen, mark
        self._ended_by_us = False
        self._oom_kills = _oom_kills()
        self._seen: dict[int, psutil.Process] = {}
        self._before = before
        self.pid = popen.pid
        self.log_path = log_path

    def ended(self) -> str | None:
        """None while it runs, else how it ended: "exit status 3", "killed by signal 9; …"."""
        code = self._popen.poll()
        if code is None:
            return None
        if code >= 0:
            return f"exit status {code}"
        if code != -signal.SIGKILL or self._ended_by_us:
            return f"killed by signal {-code}"
        before, now = self._oom_kills, _oom_kills()
        if before is None or now is None:
            return "killed by signal 9; the kernel's out-of-memory killer is the usual sender"
        if now > before:
            return "killed by signal 9; the kernel's out-of-memory killer struck while it ran"
        return "killed by signal 9; not by slackwater, and the kernel counts no out-of-memory kill meanwhile"

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def cannot_run(self) -> str | None:
        """Why this program runs on no trial of this machine (not executable, another processor's); None: it does."""
        if self.exit_status == -signal.SIGILL:
            return "it was stopped at an instruction that this processor does not have (SIGILL)"
        refused = re.search(r"^cannot run .*$", self.log(), re.MULTILINE) if self.exit_status == _NOT_RUN else None
        return refused and refused[0]

    def wait(self, limit_s: float) -> str | None:
        """How it ended, waiting for its end at most `limit_s`; None: it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(limit_s)
        return self.ended()

    def log(self, since: int = 0) -> str:
        """What it and its children have written from this byte on (server_log.py says how much of it)."""
        return server_log.read(self.log_path, since)

    def descendants(self) -> list[psutil.Process]:
        """Its living children and theirs, also those that left its session and whose parent has ended."""
        roots = [*_marked(self._mark), *self._adopted()]
        with contextlib.suppress(psutil.NoSuchProcess):
            roots.append(psutil.Process(self.pid))
        for root in roots:
            self._seen[root.pid] = root
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen.update({process.pid: process for process in root.children(recursive=True)})
        # `is_running` compares start times, so that a reused PID is never taken for ours.
        self._seen = {pid: process for pid, process in self._seen.items() if process.is_running() and pid != self.pid}
        return list(self._seen.values())

    def _adopted(self) -> list[psutil.Process]:
        """What was re-parented to us since it was started: children of ours that are not in our session, and that we
        did not start. The mark may be missing there: a program can be started with an empty environment."""
        found = []
        for process in psutil.Process().children():
            with contextlib.suppress(ProcessLookupError):
                if process not in self._before and process not in _STARTED and os.getsid(process.pid) != os.getsid(0):
                    found.append(process)
        return found

    def end(self, limit_s: float) -> None:
        """SIGTERM to it, SIGKILL to what is left of all of it after `limit_s`; returns when all of it is reaped.

        A user who interrupts waits HURRY_S for it. Raises EngineError if even a killed process does not end."""
        self.descendants()  # seen while their parents live
        began = time.monotonic()
        if self._popen.poll() is None:
            self._ended_by_us = True
            self._popen.terminate()
        while self._popen.poll() is None and time.monotonic() - began < (
                min(limit_s, HURRY_S) if interrupt.came() else limit_s):
            time.sleep(0.005)
        began = time.monotonic()
        while (below := self.descendants()) or self._popen.poll() is None:
            if time.monotonic() - began > KILLED_LIMIT_S:
                raise EngineError(f"Process {(below[0] if below else self).pid} was killed and has not ended in "
                                  f"{KILLED_LIMIT_S:g} s: the kernel holds it, since a disk or a driver does not "
                                  "answer (see dmesg).")
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._popen.kill()  # nothing where it has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(0.2)
            psutil.wait_procs(below, timeout=0.2)  # those that were re-parented to us are reaped by it
        server_log.cut(self.log_path)


def guarded() -> None:
    """What our servers leave is ended also if we are killed; call it before anything is measured."""
    guard.keep(_MARK)


def start(
    command: Sequence[str], *, environment: Mapping[str, str], log_path: Path, pass_fds: Collection[int] = (),
    death_signal: signal.Signals = signal.SIGKILL, cwd: Path | None = None,
) -> Child:
    """Start `command` (an absolute path first) in its own session, stdout and stderr appended to `log_path`.

    When the thread that calls this ends, the kernel sends `death_signal` to the program (prctl(2),
    PR_SET_PDEATHSIG): call from the main thread. Raises EngineError if the program cannot be started.
    """
    # Grandchildren whose parent died come to us instead of to init, so that they can be found and reaped.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guarded()
    before = frozenset(psutil.Process().children())
    # A first program arms the signal and then becomes `command`: a preexec_fn is unsafe where threads run.
    armed = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), str(int(death_signal)), *command]
    # Descendants inherit the environment, so that none of them can get lost, whatever session it moves to.
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    try:
        with log_path.open("ab") as log:
            popen = subprocess.Popen(
                armed, env={**environment, _MARK: mark}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=tuple(pass_fds), start_new_session=True,
            )
    except OSError as error:
        raise EngineError(f"{command[0]} could not be started: {error.strerror} ({error.filename}).") from error
    with contextlib.suppress(psutil.NoSuchProcess):
        _STARTED.add(psutil.Process(popen.pid))
    return Child(popen, log_path, mark, before)


def command_line(pid: int) -> list[str]:
    """Arguments of a process from /proc/PID/cmdline (proc(5)); empty if it is gone or not ours to read."""
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        return [os.fsdecode(part) for part in raw.split(b"\0")[:-1]]  # as our own words for a path are
    return []


def environment_of(pid: int) -> dict[str, str]:
    """Environment a process was started with, from /proc/PID/environ; empty if it is gone or not ours to read."""
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{pid}/environ").read_bytes()
        pairs = (part.decode(errors="surrogateescape").partition("=") for part in raw.split(b"\0") if part)
        return {name: value for name, _, value in pairs}
    return {}


def maps_file(pid: int, *paths: Path) -> bool | None:
    """Is one of these files mapped into the process (/proc/PID/maps, by inode and path)? None: not readable."""
    with contextlib.suppress(OSError):
        # The device number is left out: on overlay file systems maps shows another one than stat.
        wanted = [[str(path.stat().st_ino), str(path.resolve())] for path in paths]
        lines = os.fsdecode(Path(f"/proc/{pid}/maps").read_bytes()).split("\n")
        fields = [line.split(maxsplit=5) for line in lines]
        return any(field[4:] in wanted for field in fields)
    return None


def locked_bytes(pid: int) -> int | None:
    """VmLck from /proc/PID/status: what cannot be swapped out or dropped (mlock(2)). None: not readable."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("VmLck:"):
                return int(line.split()[1]) * 1024
    return None


def resident_bytes(pid: int) -> int:
    """Resident memory, only to see whether a load moves; 0 if the process is gone."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).memory_info().rss
    return 0


def _oom_kills() -> int | None:
    """The kernel's count of out-of-memory kills since boot (/proc/vmstat, oom_kill; since Linux 4.13)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text("utf-8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _marked(mark: str) -> Iterator[psutil.Process]:
    for pid in psutil.pids():
        if environment_of(pid).get(_MARK) == mark:
            with contextlib.suppress(psutil.NoSuchProcess):
                yield psutil.Process(pid)
