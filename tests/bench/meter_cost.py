"""What measuring costs: the sampler against psutil, its memory, its lateness, and what the workload feels of it.

`python -m tests.bench.meter_cost [--minutes M] [--streams N]` prints figures and whether each is within its limit.
All comparisons alternate within one run. The workload part wants a quiet machine with a core left free.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median

import numpy as np

from pipeline.engine.base import EventKind, Request, Server
from pipeline.meter.sampler import STILL_HZ, Sampler, process_cpu_ns
from pipeline.meter.system import disturbance, snapshot
from tests.bench.overhead import slackwater
from tests.truth.program import Program

TREE = 5
RATE_HZ = 100
STREAM_TOKENS = 600

PSUTIL_LOOP = """
import psutil, sys, time
root, period = psutil.Process(int(sys.argv[1])), 1 / float(sys.argv[2])
print("ready", flush=True)
due = system = time.monotonic()
while True:
    for process in [root, *root.children(recursive=True)]:
        try:
            process.memory_info()
        except psutil.NoSuchProcess:
            pass
    if due - system >= 1 / 26:    # the system as often as our sampler reads it
        psutil.virtual_memory()
        system = due
    due = max(due + period, time.monotonic() - period)
    time.sleep(max(due - time.monotonic(), 0))
"""


def verdict(held: bool) -> str:
    return "ok" if held else "MISSED"


@contextmanager
def psutil_loop(pid: int, rate_hz: float) -> Iterator[int]:
    """The same readings through psutil, in a process of its own; yields its id."""
    # a session of its own, as a server has: else the kernel's autogroups hold all loops together to one server's share
    process = subprocess.Popen([sys.executable, "-c", PSUTIL_LOOP, str(pid), str(rate_hz)], stdout=subprocess.PIPE,
                               start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def five_processes() -> Iterator[Program]:
    with Program() as program:
        for _ in range(TREE - 1):
            program.tell("child", mib=20)
        yield program


def cpu_pct(pid: int, seconds: float) -> float:
    """CPU of a process over the next seconds, in % of one core."""
    cpu, wall = process_cpu_ns(pid), time.monotonic_ns()
    time.sleep(seconds)
    return 100 * (process_cpu_ns(pid) - cpu) / (time.monotonic_ns() - wall)


def against_psutil(folder: Path, rounds: int = 6, seconds: float = 4) -> bool:
    """CPU of both, taking turns: the one that is not measured is stopped."""
    with (five_processes() as program, Sampler(folder, RATE_HZ, 0.2) as sampler,
          psutil_loop(program.pid, RATE_HZ) as other):
        sampler.follow(program.pid)
        costs: dict[int, list[float]] = {sampler.pid: [], other: []}
        for turn in range(2 * rounds):
            running, waiting = (sampler.pid, other) if turn % 2 == 0 else (other, sampler.pid)
            os.kill(waiting, signal.SIGSTOP)
            os.kill(running, signal.SIGCONT)
            time.sleep(0.3)
            costs[running].append(cpu_pct(running, seconds))
            os.kill(waiting, signal.SIGCONT)
        ours, theirs = costs[sampler.pid], costs[other]
    ratio = median(theirs) / median(ours)
    held = median(ours) <= 2 and ratio >= 8
    print(f"sampler, {RATE_HZ} Hz, {TREE} processes: {median(ours):.2f} % of a core [{min(ours):.2f}, {max(ours):.2f}] "
          f"(at most 2)  {verdict(median(ours) <= 2)}")
    print(f"the same through psutil: {median(theirs):.2f} % [{min(theirs):.2f}, {max(theirs):.2f}], {ratio:.1f} times "
          f"ours (at least 8)  {verdict(ratio >= 8)}")
    return held


def whole_trials(folder: Path, times: int = 5) -> bool:
    """The sampler's CPU over whole trials of the default cell: its rate follows what moves."""
    done = slackwater("run", "mode=oneshot", "infer_os=off", f"repetitions={times}", "--json",
                      f"tracking.uri=sqlite:///{folder}/mlflow.db", cwd=folder)
    assert done.stdout, done.stderr
    costs: list[float] = [trial["metrics"]["sampler/cpu_pct"] for trial in json.loads(done.stdout)["trials"]]
    held = median(costs) <= 1
    print(f"sampler over a whole default trial: {median(costs):.2f} % of a core [{min(costs):.2f}, {max(costs):.2f}], "
          f"{len(costs)} trials (at most 1)  {verdict(held)}")
    return held


def start_up(folder: Path, times: int = 9) -> bool:
    """From start() to the first sample on disk."""
    taken = []
    for _ in range(times):
        began = time.monotonic_ns()
        with Sampler(folder, RATE_HZ, 0.2):
            taken.append((time.monotonic_ns() - began) / 1e6)
    print(f"sampler ready after {median(taken):.0f} ms [{min(taken):.0f}, {max(taken):.0f}] (at most 50)  "
          f"{verdict(median(taken) <= 50)}")
    return median(taken) <= 50


def busy_orchestrator(folder: Path, seconds: float) -> bool:
    """Lateness while this program computes in Python, and the sampler's memory from start to end."""
    with five_processes() as program, Sampler(folder, RATE_HZ, 0.2) as sampler:
        sampler.follow(program.pid)
        time.sleep(0.5)
        first = sampler.report().rss_mib
        until = time.monotonic() + seconds
        count = 0
        while time.monotonic() < until:
            count += 1
        report = sampler.stop()
    on_time = report.lost_slots == 0 and report.lateness_p99_ms <= 2
    small = report.rss_mib <= 40 and report.rss_mib - first <= 1
    slots = report.samples + report.lost_slots
    print(f"busy orchestrator for {seconds:.0f} s: {report.lost_slots} of {slots} slots lost (0), lateness p50 "
          f"{report.lateness_p50_ms:.2f} ms, p99 {report.lateness_p99_ms:.2f} ms (at most 2), "
          f"{'real-time' if report.realtime else 'ordinary'} priority  {verdict(on_time)}")
    print(f"memory of the sampler: {first:.1f} MiB, after {seconds:.0f} s {report.rss_mib:.1f} MiB (at most 40, flat)  "
          f"{verdict(small)}")
    return on_time and small


class Switch:
    """Stops and continues processes by the clock, from the callback of a stream's tokens."""

    def __init__(self, pids: list[int], period_s: float) -> None:
        self.pids = pids
        self.period_ns = round(period_s * 1e9)
        self.tokens: list[int] = []
        self.edges: list[tuple[int, bool]] = []

    def on_event(self, kind: EventKind, t_ns: int) -> None:
        if kind not in ("token", "first_token"):
            return
        self.tokens.append(t_ns)
        if not self.edges or t_ns - self.edges[-1][0] >= self.period_ns:
            on = not self.edges[-1][1] if self.edges else False
            for pid in self.pids:
                os.kill(pid, signal.SIGCONT if on else signal.SIGSTOP)
            self.edges.append((t_ns, on))

    def ratios(self) -> list[float]:
        """tokens/s of each window that was on, over the mean of the two beside it that were off."""
        times = np.array(self.tokens)
        rates = [(on, float(((times >= begin) & (times < end)).sum()) / (end - begin))
                 for (begin, on), (end, _) in zip(self.edges, self.edges[1:], strict=False)]
        return [rate / mean((rates[i - 1][1], rates[i + 1][1]))
                for i, (on, rate) in enumerate(rates) if on and 0 < i < len(rates) - 1]


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(1).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def effect_on_workload(folder: Path, streams: int) -> bool:
    """tokens/s with and without, toggled every 0.5 s inside each stream; a null, and a control that must be seen."""
    found: dict[str, list[float]] = {"null (nothing toggled)": [], "sampler, as in a trial": [],
                                     "control (psutil, every core)": []}
    server = start_server(folder)
    try:
        server.load(lambda kind, t_ns: None)
        with ExitStack() as running:
            sampler = running.enter_context(Sampler(folder, RATE_HZ, 0.2, STILL_HZ))
            sampler.follow(server.pid)
            heavy = [running.enter_context(psutil_loop(server.pid, 1e4)) for _ in range(2 * (os.cpu_count() or 1))]
            arms = dict(zip(found, ([], [sampler.pid], heavy), strict=True))
            for pid in [sampler.pid, *heavy]:
                os.kill(pid, signal.SIGSTOP)
            for _ in range(streams):
                for name, pids in arms.items():
                    switch = Switch(pids, 0.5)
                    server.generate(Request("Once upon a time", STREAM_TOKENS, 1), switch.on_event)
                    for pid in pids:
                        os.kill(pid, signal.SIGSTOP)
                    found[name] += switch.ratios()
            for pid in [sampler.pid, *heavy]:
                os.kill(pid, signal.SIGCONT)
    finally:
        server.stop()
    print("\ntokens/s with / without, toggled inside one stream, one core left free:")
    results = {name: interval(ratios) for name, ratios in found.items()}
    null, ours, control = results.values()
    checks = [("half-width at most 0.02", (null[2] - null[1]) / 2 <= 0.02),
              ("median at least 0.98, of 30 pairs or more",
               ours[0] >= 0.98 and len(found["sampler, as in a trial"]) >= 30),
              ("seen: upper end below 0.97", control[2] < 0.97)]
    for (name, (middle, low, high)), (wanted, held) in zip(results.items(), checks, strict=True):
        pairs = len(found[name])
        print(f"  {name:<30} {middle:.3f} [{low:.3f}, {high:.3f}], {pairs} pairs ({wanted})  {verdict(held)}")
    return all(held for _, held in checks)


def start_server(folder: Path) -> Server:
    """The embedded engine on the default model, as the default cell has it: all cores but one."""
    from pipeline.engine.llamacpp import Engine
    from pipeline.sweep.composed import typed
    from pipeline.sweep.hydra_app import compose

    return Engine(typed(compose([]))).start(folder / "server.log")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.25, help="length of the busy part (10 to see memory flat)")
    parser.add_argument("--streams", type=int, default=10, help="streams of each arm, 6 s or so each; 0: left out")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is stopped here does not stay so for ever
    load = " ".join(Path("/proc/loadavg").read_text().split()[:3])
    print(f"kernel {os.uname().release}, {os.cpu_count()} cores, load {load}")
    with tempfile.TemporaryDirectory(prefix="slackwater-") as name:
        folder = Path(name)
        before = snapshot(own_pids=())
        held = [start_up(folder), whole_trials(folder), against_psutil(folder),
                busy_orchestrator(folder, 60 * arguments.minutes)]
        if arguments.streams:
            held.append(effect_on_workload(folder, arguments.streams))
        else:
            print("effect on the workload: not measured (--streams 0)")
        seen = disturbance(before, snapshot(own_pids=()))
        print(f"meanwhile the host of a virtual machine took {seen.stolen_cpu_cores:.3f} of a core away (steal): lost "
              "slots and lateness are its doing too")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
