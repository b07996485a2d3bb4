"""From a timeline and its marks to the metrics of each phase. Pure functions over values; no I/O.

Times are `time.monotonic_ns()`; memory is bytes inside and MiB in the names of metrics (DESIGN 3 and 4).
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.metrics import COMPONENTS, KINDS

Int64Array = npt.NDArray[np.int64]

MIB = 1024 * 1024

MOMENT_SAMPLES = 3
"""What the value at a moment needs: fewer, and one odd reading is the median."""
MEAN_SAMPLES = 10
"""What the mean of an interval needs; with fewer none is given. A peak needs none: it is the kernel's."""


@dataclass(frozen=True)
class Timeline:
    """All periodic readings of one trial, columnar: every array has shape (n_samples,), int64.

    `columns` are bytes unless the name says otherwise, summed over the measured tree:
    tree_anon, tree_file, tree_shmem, tree_swap, tree_hwm (sum of VmHWM), tree_processes (count);
    system_total, system_available, system_free, system_cached, system_swap_used; rate_hz, the rate of readings that
    held from each to the next (not in timelines of method 1, whose rate was one).
    Tree columns are 0 while no server runs.
    """

    due_ns: Int64Array
    """When the sample should have been taken."""
    t_ns: Int64Array
    """When it was taken; lateness is the difference."""
    columns: Mapping[str, Int64Array]

    @property
    def tree_rss(self) -> Int64Array:
        """Resident bytes of the tree: anonymous + file-mapped + shared (VmRSS, proc(5))."""
        return self.columns["tree_anon"] + self.columns["tree_file"] + self.columns["tree_shmem"]

    @property
    def missed_ns(self) -> Int64Array:
        """The deadlines for which there is no sample, ascending, shape (n_missed,)."""
        if len(self.due_ns) < 2:
            return np.zeros(0, dtype=np.int64)
        return missed_ns(self.due_ns, self.columns.get("rate_hz", 1e9 / float(np.diff(self.due_ns).min())))


def missed_ns(due_ns: Int64Array, rate_hz: float | Int64Array) -> Int64Array:
    """Deadlines between the first and the last of `due_ns` that are not among them; `rate_hz`: the rate that held from
    each reading to the next, or one for all."""
    period = 1e9 / np.broadcast_to(np.asarray(rate_hz, dtype=np.float64), due_ns.shape)[:-1]
    counts = np.maximum(np.floor(np.diff(due_ns) / period + 0.25).astype(np.int64) - 1, 0)
    gaps = np.flatnonzero(counts)
    return np.concatenate([np.zeros(0, dtype=np.int64), *(
        due_ns[i] + (period[i] * np.arange(1, counts[i] + 1)).astype(np.int64) for i in gaps)])


@dataclass(frozen=True)
class ProcessRows:
    """Each process of the tree in each sample: arrays of shape (n_rows,), int64, bytes except t_ns and pid."""

    t_ns: Int64Array
    """The sample's t_ns."""
    pid: Int64Array
    anon: Int64Array
    file: Int64Array
    shmem: Int64Array
    swap: Int64Array
    hwm: Int64Array


@dataclass(frozen=True)
class Mark:
    """A named instant of a trial. `turn` is 0 outside turns, else 1…N."""

    name: str
    t_ns: int
    turn: int = 0


@dataclass(frozen=True)
class ProcessReading:
    """One process of the tree at one instant, from /proc/PID/status and smaps_rollup; bytes. None: not readable."""

    pid: int
    command: str
    anon: int
    file: int
    shmem: int
    swap: int
    hwm: int
    pss: int | None
    uss: int | None
    file_model: int | None = None
    """Of `file`, what maps the model's files (smaps)."""

    @property
    def rss(self) -> int:
        """Resident bytes: anonymous + file + shared."""
        return self.anon + self.file + self.shmem


@dataclass(frozen=True)
class TreeReading:
    """The whole tree at one instant, process by process."""

    t_ns: int
    processes: Sequence[ProcessReading]
    duration_ns: int
    """What taking it cost."""

    @property
    def rss(self) -> int:
        """Resident bytes summed over processes (shared pages counted once per process)."""
        return sum(p.rss for p in self.processes)


@dataclass(frozen=True)
class Span:
    """An interval of a trial, in `time.monotonic_ns()`."""

    name: str
    turn: int
    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / 1e9


def spans(marks: Sequence[Mark]) -> list[Span]:
    """The phases among the marks: each is a pair of marks `<phase>/start` and `<phase>/end` of one turn."""
    started: dict[tuple[str, int], int] = {}
    found = []
    for mark in marks:
        name, _, edge = mark.name.rpartition("/")
        if edge == "start":
            started[name, mark.turn] = mark.t_ns
        elif edge == "end" and (name, mark.turn) in started:
            found.append(Span(name, mark.turn, started.pop((name, mark.turn)), mark.t_ns))
    return found


@dataclass(frozen=True)
class Peaks:
    """Kernel high-water marks of one interval: reset at its start, read at its end (VmHWM, proc(5)); bytes by pid."""

    span: Span
    high_water: Mapping[int, int]
    at_start: Mapping[int, int]
    """Resident bytes of each process right after the reset."""
    not_reset: Collection[int] = ()
    """Processes whose mark could not be reset (another user's): it is the highest since their own start."""


def within(timeline: Timeline, span: Span) -> npt.NDArray[np.bool_]:
    """Mask, shape (n_samples,): the samples taken inside the span."""
    mask: npt.NDArray[np.bool_] = (timeline.t_ns >= span.start_ns) & (timeline.t_ns <= span.end_ns)
    return mask


def missed(timeline: Timeline, span: Span) -> int:
    """Samples that should have been taken inside the span and were not."""
    at = timeline.missed_ns
    return int(np.count_nonzero((at >= span.start_ns) & (at <= span.end_ns)))


def _tree_series(timeline: Timeline) -> dict[str, Int64Array]:
    series = {name: timeline.columns[f"tree_{name}"] for name in KINDS}
    return {"rss": timeline.tree_rss, **series}


def _system_series(timeline: Timeline) -> dict[str, npt.NDArray[np.float64]]:
    columns = timeline.columns
    used = columns["system_total"] - columns["system_available"]
    return {
        # psutil 7: used = total - available, percent = used / total
        "system_used_pct": 100.0 * used / np.maximum(columns["system_total"], 1),
        "system_used_mib": used / MIB,
        "system_available_mib": columns["system_available"] / MIB,
        "system_free_mib": columns["system_free"] / MIB,
        "system_cached_mib": columns["system_cached"] / MIB,
        "system_swap_used_mib": columns["system_swap_used"] / MIB,
    }


def moment_metrics(timeline: Timeline, span: Span, tree: bool = True) -> dict[str, float]:
    """The value at a moment: the median of the readings in the span, per meter. Only counts if there were none."""
    mask = within(timeline, span)
    samples = int(mask.sum())
    metrics: dict[str, float] = {f"{span.name}/samples": samples, f"{span.name}/lost_samples": missed(timeline, span)}
    if not samples:
        return metrics
    for name, levels in _system_series(timeline).items():
        metrics[f"{span.name}/{name}"] = float(np.median(levels[mask]))
    if tree:
        for name, sizes in _tree_series(timeline).items():
            metrics[f"{span.name}/tree_{name}_mib"] = float(np.median(sizes[mask])) / MIB
        metrics[f"{span.name}/tree_processes"] = float(np.median(timeline.columns["tree_processes"][mask]))
    return metrics


def minima(rows: ProcessRows, instants: int, span: Span) -> dict[int, int]:
    """What no sample saw a process below inside the span, bytes by pid. `instants`: how many samples there were.

    A process that is not in all of them came or went meanwhile: it held nothing at some instant, and is left out."""
    inside = (rows.t_ns >= span.start_ns) & (rows.t_ns <= span.end_ns)
    pids, sizes = rows.pid[inside], (rows.anon + rows.file + rows.shmem)[inside]
    return {int(pid): int(sizes[pids == pid].min()) for pid in np.unique(pids)
            if np.count_nonzero(pids == pid) == instants}


def joint_peak(peaks: Peaks, sampled: int, floor: Mapping[int, int]) -> tuple[int, int | None]:
    """Bounds (lower, upper) of the tree's highest joint resident size in the interval, bytes.

    The sum of the high-water marks is an upper bound: processes may have peaked at different instants. There is
    none (None) if a process ended meanwhile, since the kernel's mark ends with it. The lower one is the larger of
    the sampled joint maximum and, for each process whose mark was reset, its own mark plus the others' `floor`:
    what they never went below (`minima`), nothing where it is not known. One process: both are its mark (or the
    sampled maximum, since the kernel's marks are updated from per-CPU batched counters and may fall some pages
    short)."""
    marks = peaks.high_water
    lower = sampled
    for pid in marks.keys() - set(peaks.not_reset):
        others = sum(min(floor.get(other, 0), marks[other]) for other in marks if other != pid)
        lower = max(lower, marks[pid] + others)
    return lower, max(lower, sum(marks.values())) if peaks.at_start.keys() <= marks.keys() else None


def interval_metrics(timeline: Timeline, span: Span, peaks: Sequence[Peaks],
                     rows: ProcessRows | None = None) -> dict[str, float]:
    """Peak, mean (from MEAN_SAMPLES on) and number of samples over an interval; `peaks` are the high-water marks of its
    parts, `rows` the samples process by process (they raise the lower bound of a tree of several).

    `tree_rss_peak_mib` is the lower bound of `joint_peak`, `tree_rss_peak_bound_mib` the upper one. Neither is there
    if a mark of any part could not be reset: a peak since some earlier time is not the peak of this interval."""
    mask = within(timeline, span)
    samples = int(mask.sum())
    name = span.name
    metrics: dict[str, float] = {f"{name}/samples": samples, f"{name}/lost_samples": missed(timeline, span),
                                 f"{name}/duration_s": span.seconds}
    tree = _tree_series(timeline)
    if samples:
        system = _system_series(timeline)
        for quantity, values in tree.items():
            metrics[f"{name}/tree_{quantity}_sampled_peak_mib"] = float(np.max(values[mask])) / MIB
        for stem, unit in (("system_used", "pct"), ("system_used", "mib")):
            metrics[f"{name}/{stem}_peak_{unit}"] = float(np.max(system[f"{stem}_{unit}"][mask]))
        if samples >= MEAN_SAMPLES:
            # each reading counts for as long as it stood: the rate follows what moves
            held = np.diff(timeline.t_ns[mask], append=span.end_ns).astype(np.float64)
            for quantity, values in tree.items():
                metrics[f"{name}/tree_{quantity}_mean_mib"] = float(np.average(values[mask], weights=held)) / MIB
            for stem, unit in (("system_used", "pct"), ("system_used", "mib")):
                metrics[f"{name}/{stem}_mean_{unit}"] = float(np.average(system[f"{stem}_{unit}"][mask], weights=held))
    if any(part.not_reset for part in peaks):
        return metrics
    lower, upper = [], []
    for part in peaks:
        inside = within(timeline, part.span)
        sampled = int(tree["rss"][inside].max()) if inside.any() else 0
        floor = minima(rows, int(inside.sum()), part.span) if rows is not None else {}
        low, high = joint_peak(part, sampled, floor)
        lower.append(low)
        upper.append(high)
    if lower:
        metrics[f"{name}/tree_rss_peak_mib"] = max(lower) / MIB
        known = [high for high in upper if high is not None]
        if len(known) == len(upper):
            metrics[f"{name}/tree_rss_peak_bound_mib"] = max(known) / MIB
    return metrics


CLOCKS_S, CLOCKS_SHARE = 0.5, 0.1
"""What two clocks may differ by over a part of the answer: both of these, and its speed is not known."""


def apart(ours_s: float | None, servers_s: float | None) -> bool:
    """Do our clock and the server's disagree on how long a part took? One of us stood still meanwhile."""
    if ours_s is None or servers_s is None:
        return False
    return abs(ours_s - servers_s) > max(CLOCKS_S, CLOCKS_SHARE * max(ours_s, servers_s))


def pause_s(tokens_ns: Sequence[int]) -> float | None:
    """The longest time between two tokens, if it was a pause: over CLOCKS_S, over CLOCKS_SHARE of the whole, and ten
    times what is usual between two. The server stood still, which its own clock does not show."""
    gaps = np.diff(np.asarray(tokens_ns, dtype=np.int64)) / 1e9
    if len(gaps) < 3:
        return None
    longest = float(gaps.max())
    pause = longest > max(CLOCKS_S, CLOCKS_SHARE * float(gaps.sum()), 10 * float(np.median(gaps)))
    return longest if pause else None


def read_back(timeline: Timeline, since_ns: int, until_ns: int, faults: int) -> int:
    """Of the tree's major faults in this time, those that brought back pages which had been taken away from it.

    A fault that brings a page for the first time (cold code, weights that are mapped on demand) makes the tree's file
    pages grow by at least that page; one that brings back what the kernel had reclaimed or swapped out does not."""
    inside = (timeline.t_ns >= since_ns) & (timeline.t_ns <= until_ns)
    held = timeline.columns["tree_file"][inside]
    grown = int(held.max() - held[0]) if len(held) else 0
    return max(faults - grown // mmap.PAGESIZE, 0)


def reading_metrics(phase: str, reading: TreeReading) -> dict[str, float]:
    """PSS and USS of the tree at a phase boundary, and its file pages as the model's and the program's (libraries,
    executables): each only if every process could be read."""
    metrics = {f"{phase}/tree_pss_cost_ms": reading.duration_ns / 1e6}
    for name in ("pss", "uss"):
        values = [getattr(process, name) for process in reading.processes]
        if values and all(value is not None for value in values):
            metrics[f"{phase}/tree_{name}_mib"] = sum(values) / MIB
    model = [process.file_model for process in reading.processes if process.file_model is not None]
    if model and len(model) == len(reading.processes):
        metrics[f"{phase}/tree_file_model_mib"] = sum(model) / MIB
        metrics[f"{phase}/tree_file_program_mib"] = (sum(process.file for process in reading.processes)
                                                     - sum(model)) / MIB
    return metrics


def release_metrics(timeline: Timeline, unload_ns: int, before: Span, after: Span) -> dict[str, float]:
    """How much the tree gave back, and how fast: medians before the unload and in the `released` phase.

    `released/half_life_s` and `released/time_to_99pct_s` run from the request to unload to the first sample
    at or below half (1 %) of what was to come back; their resolution is the sampling period."""
    rss = timeline.tree_rss
    in_before, in_after = within(timeline, before), within(timeline, after)
    if not in_before.any() or not in_after.any():
        return {}
    high, low = float(np.median(rss[in_before])), float(np.median(rss[in_after]))
    metrics = {
        "released/returned_mib": (high - low) / MIB,
        "released/returned_pct": 100.0 * (high - low) / high if high else 0.0,
        "released/residual_mib": low / MIB,
    }
    if high - low > 0.02 * high:
        during = (timeline.t_ns >= unload_ns) & (timeline.t_ns <= after.end_ns)
        for name, share in (("half_life_s", 0.5), ("time_to_99pct_s", 0.01)):
            reached = during & (rss <= low + share * (high - low))
            if reached.any():
                metrics[f"released/{name}"] = float(timeline.t_ns[reached][0] - unload_ns) / 1e9
    return metrics


def as_found_metrics(mode: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The original comparison's reading, from the same trial: interactive while idle, oneshot straight after."""
    phase = "initialization" if mode == "interactive" else "post_generation"
    found = {name: metrics.get(f"{phase}/{name}") for name in ("system_used_pct", "tree_rss_mib")}
    return {f"as_found/{name}": value for name, value in found.items() if value is not None}


def account(stated: Mapping[str, int], empty: float | None, settled: float | None) -> dict[str, float]:
    """Where each MiB of the settled tree is: the empty server, what the engine states, and what neither explains.

    `stated`: component → host bytes by the engine's own account; `empty` and `settled`: tree RSS in MiB at
    `initialization` and `stabilized`. The unexplained rest is threads, heap and library pages; it is negative
    where the engine states memory that is not resident (mapped weights that were never touched)."""
    metrics = {f"engine/{name}_mib": stated[name] / MIB for name in COMPONENTS if name in stated}
    if metrics:
        metrics["engine/stated_mib"] = sum(stated.values()) / MIB
        if empty is not None and settled is not None:
            metrics["engine/unexplained_mib"] = settled - empty - metrics["engine/stated_mib"]
    return metrics
