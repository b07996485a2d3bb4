"""The orchestrator's side of the sampler: start it, say whom to follow, tail what it writes, stop it.

The sampler is a process of its own (sampler_program.py): a busy orchestrator cannot make it late, and its
memory is not in the measured tree. Phase metrics are computed in pipeline/phases.py, files in timeline.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.errors import MeterError
from pipeline.meter import sampler_program
from pipeline.phases import MIB, Int64Array, ProcessRows, Timeline, missed_ns

STILL_HZ = 20.0
"""How often a trial reads while nothing moves and no phase begins."""

_ANSWER_LIMIT_S = 10.0
_PROCESS_BYTES = 8 * len(sampler_program.PROCESS_FIELDS)


@dataclass(frozen=True)
class SamplerReport:
    """What the sampler did and what it cost; part of a trial's validity."""

    samples: int
    lost_slots: int
    """Deadlines missed by a whole period or more, for which there is no sample."""
    lateness_p50_ms: float
    lateness_p99_ms: float
    cpu_pct: float
    """Of one core, from ready to now."""
    rss_mib: float
    rate_hz: float
    realtime: bool = False
    """Was it started ahead of ordinary processes (SCHED_FIFO)? Else a machine with every core busy makes it late."""


def lost_slots(due_ns: Int64Array, rate_hz: float | Int64Array) -> int:
    """Deadlines without a sample between the first and the last one; from due_ns of shape (n,). See `missed_ns`."""
    return len(missed_ns(due_ns, rate_hz)) if len(due_ns) > 1 else 0


class Sampler:
    """One sampler process, writing into `folder` (which exists). Not thread-safe. It reads `rate_hz` times a second;
    with `still_hz` only about so often while the tree does not move and nothing asks it to `attend`.

    `follow`, `unfollow`, `since` and `stop` raise MeterError if the sampler has died; `timeline` and
    `processes` return what was recorded in any case, so that a failed trial keeps it."""

    def __init__(self, folder: Path, rate_hz: float, tree_refresh_s: float, still_hz: float | None = None) -> None:
        self.folder = folder
        self.rate_hz = rate_hz
        self._still_slots = max(round(rate_hz / still_hz), 1) if still_hz is not None else 1
        self.period_ns = round(1e9 / rate_hz)
        self._refresh_ns = round(tree_refresh_s * 1e9)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_ns = 0
        self._ready_cpu_ns = 0
        self._realtime = False
        self._report: SamplerReport | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The sampler's own process id. Raises MeterError before `start`."""
        return self._running().pid

    def start(self) -> Self:
        """Start sampling; returns once the first sample is on disk. Raises MeterError if that takes over 10 s."""
        program = Path(sampler_program.__file__)
        try:
            self._process = subprocess.Popen(
                # -I -S: it needs neither this environment's site packages nor the caller's variables.
                [sys.executable, "-I", "-S", str(program), str(self.folder), str(self.period_ns),
                 str(self._refresh_ns), str(self._still_slots), str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise MeterError(f"The sampler could not be started: {error.strerror} ({sys.executable}). "
                             "Expected to run this Python a second time.") from error
        try:
            self._realtime = self._expect("ready", "ready realtime") == "ready realtime"
        except MeterError:
            self.close()
            raise
        self._ready_ns = time.monotonic_ns()
        self._ready_cpu_ns = process_cpu_ns(self._process.pid)
        return self

    def follow(self, root_pid: int, reaper_pid: int | None = None, exclude: frozenset[int] = frozenset()) -> None:
        """Measure the tree below `root_pid` from the next sample on, and what is re-parented to `reaper_pid`.

        `exclude` are helpers of ours among the reaper's children; the sampler leaves itself out anyway.
        Raises MeterError if the root does not exist."""
        self._say("follow", root_pid, reaper_pid or 0, *sorted(exclude))
        if self._answer() == "gone":
            raise MeterError(f"Process {root_pid} cannot be followed: it does not exist. Expected a running server.")

    def unfollow(self) -> None:
        """Tree columns are 0 from the next sample on."""
        self._say("unfollow")
        self._expect("done")

    def attend(self, seconds: float = sampler_program.ATTENTIVE_NS / 1e9) -> None:
        """A phase begins: the full rate from now on, for so long at least."""
        self._say("attend", round(seconds * 1e9))

    def alive(self) -> bool:
        """Is the sampler process running?"""
        return self._process is not None and self._process.poll() is None

    def timeline(self) -> Timeline:
        """All samples so far, also after `stop` and after the sampler's death."""
        return _timeline(self._samples(0))

    def processes(self, skip: int = 0) -> ProcessRows:
        """All process rows so far but the first `skip`, also after `stop` and after the sampler's death.

        They reach the file with each refresh of the tree, and all of them with `unfollow` and `stop`."""
        rows = self._records(sampler_program.PROCESSES_FILE, _PROCESS_BYTES, skip)
        return ProcessRows(*(np.ascontiguousarray(rows[:, i]) for i in range(rows.shape[1])))

    def since(self, t_ns: int) -> Timeline:
        """The samples taken at `t_ns` or later; reads only the file's tail."""
        if self._report is None and not self.alive():
            raise self._death()
        wanted = max(time.monotonic_ns() - t_ns, 0) // self.period_ns + 2
        # A slot can be lost but never taken twice, so the tail cannot hold more records than that, and a chunk at most
        # is not written yet.
        size = (self.folder / sampler_program.SAMPLES_FILE).stat().st_size - sampler_program.SAMPLE_CHUNK
        rows = self._samples(max(size // sampler_program.SAMPLE_BYTES - wanted, 0))
        return _timeline(rows[rows[:, 1] >= t_ns])

    def report(self) -> SamplerReport:
        """Samples, lost slots, lateness and cost until now. Raises MeterError if the sampler has died."""
        return self._report or self._assess(*self._cost())

    def stop(self) -> SamplerReport:
        """End the sampler and say how it did; again returns the same. Raises MeterError if it had died."""
        if self._report is None:
            cost = self._cost()
            self._say("stop")
            try:
                self._running().wait(_ANSWER_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.close()
            self._report = self._assess(*cost)
        self.close()
        return self._report

    def _cost(self) -> tuple[float, float]:
        """(CPU % of one core since ready, resident MiB) of the sampler process."""
        process = self._running()
        if not self.alive():
            raise self._death()
        try:
            cpu_ns = process_cpu_ns(process.pid) - self._ready_cpu_ns
            status = Path("/proc", str(process.pid), "status").read_bytes()
        except OSError as error:
            raise self._death() from error
        wall_ns = max(time.monotonic_ns() - self._ready_ns, 1)
        return 100.0 * cpu_ns / wall_ns, max(sampler_program.field_kib(status, b"\nVmRSS:"), 0) / MIB

    def _assess(self, cpu_pct: float, rss_mib: float) -> SamplerReport:
        timeline = self.timeline()
        late_ms = (timeline.t_ns - timeline.due_ns) / 1e6
        return SamplerReport(
            samples=len(late_ms), lost_slots=len(timeline.missed_ns),
            lateness_p50_ms=float(np.percentile(late_ms, 50)), lateness_p99_ms=float(np.percentile(late_ms, 99)),
            cpu_pct=cpu_pct, rss_mib=rss_mib, rate_hz=self.rate_hz, realtime=self._realtime)

    def discard(self) -> None:
        """Remove the raw records, once a stopped sampler's timeline is kept elsewhere."""
        for name in (sampler_program.SAMPLES_FILE, sampler_program.PROCESSES_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """End the sampler whatever its state; never raises."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a disk that hangs keeps even a killed process
            process.wait(_ANSWER_LIMIT_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # an unsent command to a dead sampler

    def _samples(self, skip: int) -> Int64Array:
        """The records that are written, but for the first `skip`."""
        rows = self._records(sampler_program.SAMPLES_FILE, sampler_program.SAMPLE_BYTES, skip)
        return rows[rows[:, 1] > 0]

    def _records(self, name: str, size: int, skip: int) -> Int64Array:
        """Whole records of a file as an array of shape (n, fields); a record half written is left for later."""
        path = self.folder / name
        try:
            with path.open("rb") as file:
                file.seek(skip * size)
                data = file.read()
        except FileNotFoundError:
            data = b""
        whole = len(data) - len(data) % size
        return np.frombuffer(data[:whole], dtype=np.int64).reshape(-1, size // 8)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise MeterError("The sampler was not started. Expected start() first.")
        return self._process

    def _say(self, *words: object) -> None:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._death() from error

    def _answer(self) -> str:
        process = self._running()
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _ANSWER_LIMIT_S)
        if not ready:
            raise MeterError(f"The sampler (process {process.pid}) did not answer within {_ANSWER_LIMIT_S:g} s. "
                             "Expected an answer within one sampling period; is this machine out of memory or CPU?")
        line = process.stdout.readline()
        if not line:
            raise self._death()
        return line.decode().strip()

    def _expect(self, *words: str) -> str:
        answer = self._answer()
        if answer not in words:
            raise MeterError(f"The sampler answered {answer!r}. Expected {' or '.join(words)}.")
        return answer

    def _death(self) -> MeterError:
        """Why the sampler ended, as an error to raise."""
        process = self._running()
        try:
            status = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return MeterError(f"The sampler (process {process.pid}) closed its pipe but still runs.")
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        said = ""
        if process.stderr is not None and not process.stderr.closed:
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
            said = f": {lines[-1]}" if lines else ""
        return MeterError(f"The sampler (process {process.pid}) ended during the measurement, {how}{said}. "
                          f"Expected it to run to the end; is {self.folder} writable, is its disk full?")


def _timeline(rows: Int64Array) -> Timeline:
    columns = {name: np.ascontiguousarray(rows[:, 2 + i]) for i, name in enumerate(sampler_program.SAMPLE_COLUMNS)}
    return Timeline(np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1]), columns)


def process_cpu_ns(pid: int) -> int:
    """CPU time of another process in nanoseconds: its CPU clock's id is made from its pid (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns((~pid << 3) | 2)
