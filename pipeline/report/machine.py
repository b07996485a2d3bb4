"""The pages of `doctor` and `watch`: what this machine offers and spoils, and any process by our meters.

Looking and measuring is done in meter/; here it is drawn, or printed as one JSON document.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.engine import Here, engines
from pipeline.language import N_, _
from pipeline.meter.base import Available
from pipeline.meter.doctor import Examination, examine
from pipeline.meter.sampler import Sampler
from pipeline.meter.watch import Second, Watch, document, find_process, watch
from pipeline.report.answer import together
from pipeline.report.lines import pad, paragraph, row, wrap
from pipeline.report.live import sparkline
from pipeline.report.region import Region, can_redraw
from pipeline.report.told import told
from pipeline.text import print_json

SCHEMA_VERSION = 1

FACTS = (
    N_("machine"), N_("memory"), N_("kernel"), N_("cgroup"), N_("swap"), N_("transparent huge pages"), N_("zswap"),
    N_("overcommit"), N_("page size"), N_("user"), N_("sampler"))
"""The names that meter/doctor.py gives its facts."""
_CALLED = {"load": N_("load average")}
"""Facts whose name alone could be another thing."""


def doctor(as_json: bool, sweep: str = "") -> int:
    """Print what this machine offers and what would spoil a measurement; 0 only if a trustworthy run is possible.

    `sweep`: the process whose sweep holds this machine, "" if none does."""
    examination, programs = examine(sweep=sweep), engines()
    if as_json:
        print_json(_document(examination, programs))
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
    paragraph(console, Text.assemble(_("This machine can be trusted for memory of a process tree:"), " ",
                                     (_("yes"), "bold green") if good else (_("no"), "bold red")))
    names = {fact.name: _(_CALLED.get(fact.name, fact.name)) for fact in examination.facts}
    width = 4 + max(map(cell_len, names.values()))
    for fact in examination.facts:
        paragraph(console, Text(told(fact.value)), width, f"  {names[fact.name]}")
    row(console, Text(_("Meters"), style="bold"))
    for found in examination.meters:
        if isinstance(found, Available):
            said = f"{told(found.note)}; " if found.note else ""
            _marked(console, ("✓", "green"), found.name, 11, f"{said}{found.meter.source}")
        else:
            _marked(console, ("–", "dim"), found.name, 11, _("absent: {why}").format(why=told(found.reason)))
    row(console, Text(_("Engines"), style="bold"))
    for program in programs:
        _marked(console, ("✓", "green") if program.here else ("–", "dim"), program.name, 17, told(program.text))
    if examination.concerns:
        row(console, Text(_("Good to know") if good else _("Spoils it"), style="bold"))
    for concern in examination.concerns:
        _marked(console, ("✗", "bold red") if concern.level == "blocks" else ("!", "yellow"), "", 0,
                told(concern.what))
        paragraph(console, Text(f"→ {told(concern.remedy)}", style="dim"), 6)


def _marked(console: Console, mark: tuple[str, str], name: str, width: int, said: str) -> None:
    """A mark in colour, a name in its column, and words beside it, wrapped."""
    indent = 4 + width
    for number, line in enumerate(wrap(Text(said), console.width - indent)):
        lead = Text.assemble("  ", mark, " ", pad(name, width)) if number == 0 else Text(" " * indent)
        row(console, lead.append_text(line))


def watch_process(wanted: str, seconds: float | None, as_json: bool) -> int:
    """Measure a running process: live until Ctrl-C, or for `seconds`; with `as_json` one document at the end.

    Raises ConfigError if there is no such process, MeterError if it cannot be measured."""
    pid = find_process(wanted)
    if as_json:
        print_json(watch(pid, seconds or 10.0))
        return 0
    console = Console(highlight=False)
    spark: deque[float] = deque(maxlen=max(10, console.width - 20))
    with (tempfile.TemporaryDirectory(prefix="slackwater-") as folder, Sampler(Path(folder), 100.0, 0.2) as sampler):
        running = Watch(pid, sampler)
        begin = since = running.begin_ns
        row(console, Text(_("process {pid}   Ctrl-C ends it").format(pid=pid), style="dim"))
        shown: list[Second] = []
        with ExitStack() as stack:
            region = None
            if can_redraw(console):
                region = Region(console, lambda width: _second(shown[-1], spark, width) if shown else [], every_s=None)
                stack.callback(region.close)
            stack.enter_context(suppress(KeyboardInterrupt))  # as asked: the summary follows
            while seconds is None or time.monotonic_ns() - begin < seconds * 1e9:
                time.sleep(1.0)
                second = running.tick(since)
                if second is None:
                    break
                since = time.monotonic_ns()
                spark.append(second.rss_mib)
                shown[:] = [second]
                if region is not None:
                    region.draw()
                else:
                    console.print(_second(second, spark, console.width)[1], soft_wrap=True)
        for note in document(running)["notes"]:
            paragraph(console, Text(_("note: {note}").format(note=told(note)), style="dim"))
        _summary(console, running.whole())
    return 0


def _second(second: Second, spark: deque[float], width: int) -> list[Text]:
    top = max(second.kernel_peak_mib, max(spark), 1e-9)
    bar = max(10, min(40, width - 40))
    anon = round(bar * second.anon_mib / top)
    other = min(bar - anon, round(bar * (second.file_mib + second.shmem_mib) / top))
    words = [_("anonymous {n}").format(n=f"{second.anon_mib:.1f}"), _("file {n}").format(n=f"{second.file_mib:.1f}"),
             _("shared {n}").format(n=f"{second.shmem_mib:.1f}"), _("swap {n}").format(n=f"{second.swap_mib:.1f}"),
             *([] if second.pss_mib is None else [f"PSS {second.pss_mib:.1f}"]),
             _("peak {size}").format(size=_peak(second))]
    return [
        Text.assemble(_("anon"), " ", ("▓" * anon, "cyan"), ("░" * other, "yellow"),
                      ("·" * (bar - anon - other), "bright_black"), " ", _("file"), f"  {second.rss_mib:.1f} MiB"),
        Text("   ".join(words)),
        Text(sparkline([round(value) for value in spark], round(top)), style="cyan"),
    ]


def _peak(second: Second) -> str:
    low, high = second.kernel_peak_mib, second.kernel_peak_bound_mib
    return f"{low:.1f} MiB" if high - low < 0.1 else _("between {low} and {high} MiB").format(
        low=f"{low:.1f}", high=f"{high:.1f}")


def _summary(console: Console, whole: Second) -> None:
    paragraph(console, Text(together([
        _("{seconds} s: {start} MiB at the start, median {median}, peak {peak} by the kernel, {sampled} sampled."
          ).format(seconds=f"{whole.t_s:.0f}", start=f"{whole.baseline_rss_mib:.1f}", median=f"{whole.rss_mib:.1f}",
            peak=_peak(whole), sampled=f"{whole.sampled_peak_mib:.1f}"),
        _("{n} samples, {lost} lost, p99 {ms} ms late, sampler {share} % of a core.").format(
            n=whole.samples, lost=whole.lost_slots, ms=f"{whole.lateness_p99_ms:.1f}",
            share=f"{whole.sampler_cpu_pct:.1f}")])))
