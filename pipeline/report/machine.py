"""The pages of `doctor` and `watch`: what this machine offers and spoils, and any process by our meters.

Looking and measuring is done in meter/; here it is drawn, or printed as one JSON document.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pipeline.engine import Here, engines
from pipeline.meter.base import Available
from pipeline.meter.doctor import Examination, examine
from pipeline.meter.sampler import Sampler
from pipeline.meter.watch import Second, Watch, document, find_process, watch
from pipeline.report.live import sparkline

SCHEMA_VERSION = 1


def doctor(as_json: bool) -> int:
    """Print what this machine offers and what would spoil a measurement; 0 only if a trustworthy run is possible."""
    examination, programs = examine(), engines()
    if as_json:
        print(json.dumps(_document(examination, programs), ensure_ascii=False, indent=2))
    else:
        _print(Console(highlight=False), examination, programs)
    return 0 if examination.trustworthy else 1


def _document(examination: Examination, programs: list[Here]) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION, "trustworthy": examination.trustworthy,
        "machine": {fact.name: fact.value for fact in examination.facts},
        "meters": [{"meter": found.name, "here": True, "note": found.note, "source": found.meter.source,
                    "checked": found.meter.checked} if isinstance(found, Available)
                   else {"meter": found.name, "here": False, "reason": found.reason} for found in examination.meters],
        "engines": [asdict(program) for program in programs],
        "neighbours": [{"pid": one.pid, "command": one.command, "rss_mib": one.rss / 2**20}
                       for one in examination.neighbours],
        "concerns": [asdict(concern) for concern in examination.concerns],
    }


def _print(console: Console, examination: Examination, programs: list[Here]) -> None:
    good = examination.trustworthy
    console.print(Text.assemble("This machine can be trusted for memory of a process tree: ",
                                ("yes", "bold green") if good else ("no", "bold red")))
    width = max(len(fact.name) for fact in examination.facts)
    for fact in examination.facts:
        console.print(Text(f"  {fact.name:<{width}}  {fact.value}"))
    console.print(Text("Meters", style="bold"))
    for found in examination.meters:
        if isinstance(found, Available):
            said = f"{found.note}; " if found.note else ""
            console.print(Text.assemble(("  ✓ ", "green"), f"{found.name:<11}", f"{said}{found.meter.source}"))
        else:
            console.print(Text.assemble(("  – ", "dim"), f"{found.name:<11}", f"absent: {found.reason}"))
    console.print(Text("Engines", style="bold"))
    for program in programs:
        mark = ("  ✓ ", "green") if program.here else ("  – ", "dim")
        console.print(Text.assemble(mark, f"{program.name:<17}", program.text))
    if examination.concerns:
        console.print(Text("Spoils it" if not good else "Good to know", style="bold"))
    for concern in examination.concerns:
        mark = ("  ✗ ", "bold red") if concern.level == "blocks" else ("  ! ", "yellow")
        console.print(Text.assemble(mark, concern.what))
        console.print(Text(f"      → {concern.remedy}", style="dim"))


def watch_process(wanted: str, seconds: float | None, as_json: bool) -> int:
    """Measure a running process: live until Ctrl-C, or for `seconds`; with `as_json` one document at the end.

    Raises ConfigError if there is no such process, MeterError if it cannot be measured."""
    pid = find_process(wanted)
    if as_json:
        print(json.dumps(watch(pid, seconds or 10.0), ensure_ascii=False, indent=2))
        return 0
    console = Console(highlight=False)
    spark: deque[float] = deque(maxlen=max(10, console.width - 20))
    with (tempfile.TemporaryDirectory(prefix="slackwater-") as folder, Sampler(Path(folder), 100.0, 0.2) as sampler):
        running = Watch(pid, sampler)
        begin = since = running.begin_ns
        console.print(Text(f"process {pid}   Ctrl-C ends it", style="dim"))
        with Live(console=console, refresh_per_second=2, auto_refresh=False) as shown:
            try:
                while seconds is None or time.monotonic_ns() - begin < seconds * 1e9:
                    time.sleep(1.0)
                    second = running.tick(since)
                    if second is None:
                        break
                    since = time.monotonic_ns()
                    spark.append(second.rss_mib)
                    shown.update(_second(second, spark, console.width), refresh=True)
            except KeyboardInterrupt:
                shown.stop()  # as asked: the summary follows
        for note in document(running)["notes"]:
            console.print(Text(f"note: {note}", style="dim"))
        _summary(console, running.whole())
    return 0


def _second(second: Second, spark: deque[float], width: int) -> Group:
    top = max(second.kernel_peak_mib, max(spark), 1e-9)
    bar = max(10, min(40, width - 40))
    anon = round(bar * second.anon_mib / top)
    other = min(bar - anon, round(bar * (second.file_mib + second.shmem_mib) / top))
    pss = "" if second.pss_mib is None else f"   PSS {second.pss_mib:.1f}"
    return Group(
        Text.assemble("anon ", ("▓" * anon, "cyan"), ("░" * other, "yellow"),
                      ("·" * (bar - anon - other), "bright_black"), f" file  {second.rss_mib:.1f} MiB"),
        Text(f"anon {second.anon_mib:.1f}   file {second.file_mib:.1f}   shared {second.shmem_mib:.1f}   "
             f"swap {second.swap_mib:.1f}{pss}   peak {_peak(second)}"),
        Text(sparkline([round(value) for value in spark], round(top)), style="cyan"),
    )


def _peak(second: Second) -> str:
    low, high = second.kernel_peak_mib, second.kernel_peak_bound_mib
    return f"{low:.1f} MiB" if high - low < 0.1 else f"between {low:.1f} and {high:.1f} MiB"


def _summary(console: Console, whole: Second) -> None:
    memory = (f"{whole.t_s:.0f} s: {whole.baseline_rss_mib:.1f} MiB at the start, median {whole.rss_mib:.1f}, "
              f"peak {_peak(whole)} by the kernel, {whole.sampled_peak_mib:.1f} sampled")
    cost = (f"{whole.samples} samples, {whole.lost_slots} lost, p99 {whole.lateness_p99_ms:.1f} ms late, "
            f"sampler {whole.sampler_cpu_pct:.1f} % of a core")
    console.print(Text(f"{memory}; {cost}"))
