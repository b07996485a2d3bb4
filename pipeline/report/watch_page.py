"""The page of `watch`: any process by our meters, live until Ctrl-C. Measuring is done in meter/watch.py."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack

from rich.console import Console
from rich.text import Text

from pipeline.interrupt import ended_by_ctrl_c
from pipeline.language import _, worded
from pipeline.meter.sampler import Sampler
from pipeline.meter.watch import Second, Watch, document, find_process, watch
from pipeline.report.answer import together
from pipeline.report.live import sparkline
from pipeline.report.region import Region, can_redraw
from pipeline.report.terminal_lines import paragraph, row
from pipeline.scratch import scratch
from pipeline.text import print_json


def watch_process(wanted: str, seconds: float | None, as_json: bool) -> int:
    """Measure a running process: live until Ctrl-C, or for `seconds`; with `as_json` one document at the end.

    Raises ConfigError if there is no such process, MeterError if it cannot be measured."""
    pid = find_process(wanted)
    if as_json:
        print_json(watch(pid, seconds or 10.0))
        return 0
    console = Console(highlight=False)
    spark: deque[float] = deque(maxlen=max(10, console.width - 20))
    with scratch() as folder, Sampler(folder, 100.0, 0.2) as sampler:
        running = Watch(pid, sampler)
        begin = since = running.begin_ns
        row(console, Text(_("process {pid}   Ctrl-C ends it").format(pid=pid), style="dim"))
        shown: list[Second] = []
        with ExitStack() as stack:
            region = None
            if can_redraw(console):
                region = Region(console, lambda width: _second(shown[-1], spark, width) if shown else [], every_s=None)
                stack.callback(region.close)
            stack.enter_context(ended_by_ctrl_c())  # the summary follows
            while seconds is None or time.monotonic_ns() - begin < seconds * 1e9:
                time.sleep(1.0)
                second = running.tick(since)
                if second is None:
                    break
                since = time.monotonic_ns()
                spark.append(second.rss_mib)
                shown[:] = [second]
                if region is not None:
                    region.refresh()
                else:
                    console.print(_second(second, spark, console.width)[1], soft_wrap=True)
        for note in document(running)["notes"]:
            paragraph(console, Text(_("note: {note}").format(note=worded(note)), style="dim"))
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
