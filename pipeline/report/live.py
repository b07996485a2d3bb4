"""What the user sees while a sweep runs: a live region on a terminal, one plain line per finished trial in a pipe.

Listens to `pipeline.progress` events and remembers what it needs to draw. It measures nothing and decides nothing.
"""

from __future__ import annotations

import copy
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.language import N_, _, harmless, worded
from pipeline.progress import (
    Event,
    Fetching,
    Notice,
    Reading,
    Stage,
    StageEntered,
    SweepFinished,
    SweepStarted,
    TokenCount,
    TrialFinished,
    TrialStarted,
    Waiting,
)
from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.region import EVERY_S, Region, can_redraw

_MIB = 1024 * 1024
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_POINTS = 60
_SPARK_EVERY_NS = 500_000_000
_STYLES = {"valid": "green", "suspect": "yellow", "failed": "red"}

STAGES: Mapping[Stage, str] = {
    "clear": N_("clear"), "start": N_("start"), "load": N_("load"), "measure": N_("measure"),
    "generate": N_("generate"), "settle": N_("settle"), "release": N_("release"),
}


FETCHING = (N_("fetching"), N_("unpacking"), N_("checking"))
"""What models/digest.py says is being done."""


class Waits:
    """A listener that says on stderr only what would else look like a program that hangs."""

    def __init__(self) -> None:
        self._fetched: set[tuple[str, str]] = set()

    def on_event(self, event: Event) -> None:
        """Take one event."""
        match event:
            case Waiting(text):
                self._say(text)
            case Fetching() if (event.model, event.what) not in self._fetched:
                self._fetched.add((event.model, event.what))
                self._say(_("{model}: {what} {of} MiB").format(
                    model=event.model, what=worded(event.what), of=f"{event.total / _MIB:.0f}"))

    @staticmethod
    def _say(text: str) -> None:
        print(f"slackwater: {text}", file=sys.stderr, flush=True)


class Progress:
    """A listener that shows the sweep on `console`. Use it as a context manager, so that the cursor comes back.

    `verbose` keeps a line for every trial above the live region. `clock` gives seconds and is for tests, as is
    `every_s`: None draws only when something is printed.
    """

    def __init__(self, console: Console | None = None, trials_total: int = 0, *, quiet: bool = False,
                 verbose: bool = False, clock: Callable[[], float] = time.monotonic,
                 every_s: float | None = EVERY_S) -> None:
        self._console = console or Console()
        self._quiet, self._verbose, self._every_s = quiet, verbose, every_s
        self._clock = clock
        self._started = SweepStarted("", "", (), trials_total, ())
        self._trial: TrialStarted | None = None
        self._trial_began = clock()
        self._stage = StageEntered("clear")
        self._tokens: TokenCount | None = None
        self._reading: Reading | None = None
        self._empty: int | None = None
        self._scale = 1
        self._spark: deque[int] = deque(maxlen=_SPARK_POINTS)
        self._spark_ns = 0
        self._step: tuple[str, str] | None = None
        self._finished = 0
        self._orders: set[int] = set()
        self._last: TrialRecord | None = None
        self._durations: dict[str, list[float]] = defaultdict(list)
        self._region: Region | None = None
        self._shown = self
        self._freeze()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the live region away. May be called twice."""
        if self._region is not None:
            self._region.close()
            self._region = None

    def on_event(self, event: Event) -> None:
        """Take one event; drawing happens a few times a second in the region's thread."""
        self._learn(event)
        self._freeze()

    def _freeze(self) -> None:
        """What is drawn from now on: a copy that nothing changes while another thread draws it."""
        shown = copy.copy(self)
        shown._shown, shown._spark = shown, self._spark.copy()
        shown._durations = defaultdict(list, {cell: [*taken] for cell, taken in self._durations.items()})
        self._shown = shown

    def _learn(self, event: Event) -> None:
        match event:
            case Fetching():
                self._fetch(event)
            case Notice(text) | Waiting(text):
                self._say(Text(text))
            case SweepStarted():
                self._started, self._finished = event, event.done
                self._freeze()
                if can_redraw(self._console) and not self._quiet:
                    self._region = Region(self._console, self.lines, self._every_s)
            case TrialStarted():
                self._trial, self._trial_began = event, self._clock()
                self._tokens = self._reading = self._empty = None
                self._spark.clear()
            case StageEntered():
                if (self._stage.stage, self._stage.turn) == ("measure", 0) and self._reading is not None:
                    self._empty = self._empty or _rss(self._reading)  # the server is up, without a model
                self._stage, self._tokens = event, None
            case Reading():
                self._take(event)
            case TokenCount():
                self._tokens = event
            case TrialFinished(result):
                self._finish(result)
            case SweepFinished():
                self.close()

    def _say(self, text: Text) -> None:
        """A line that stays: above the region, or plainly in a pipe, where it is not wrapped."""
        if self._quiet:
            return
        text.plain = harmless(text.plain)
        self._freeze()  # the lines below it are drawn with it
        self._console.print(text, highlight=False, soft_wrap=not self._console.is_terminal)

    def _fetch(self, event: Fetching) -> None:
        """One line that counts up on a terminal, one line per step in a pipe."""
        step, done = (event.model, event.what), event.done >= event.total
        redraws = can_redraw(self._console)
        if self._quiet or (step == self._step and not redraws):
            return
        what, of = worded(event.what), f"{event.total / _MIB:.0f}"
        if redraws:
            line = Text(_("{model}: {what} {done} of {of} MiB").format(
                model=event.model, what=what, done=f"{event.done / _MIB:.0f}", of=of))
            line.truncate(self._console.width - 1, overflow="ellipsis")
            self._console.file.write(f"\r{line.plain}\x1b[K" + "\n" * done)
            self._console.file.flush()
        else:
            self._say(Text(_("{model}: {what} {of} MiB").format(model=event.model, what=what, of=of)))
        self._step = step

    def _take(self, reading: Reading) -> None:
        self._reading = reading
        rss = _rss(reading)
        self._scale = max(self._scale, rss, reading.peak)
        if reading.t_ns - self._spark_ns >= _SPARK_EVERY_NS or not self._spark:
            self._spark.append(rss)
            self._spark_ns = reading.t_ns
        else:
            self._spark[-1] = max(self._spark[-1], rss)

    def _finish(self, result: TrialRecord) -> None:
        if result.order not in self._orders:  # a trial that failed may be run again
            self._orders.add(result.order)
            self._finished += 1
        before, self._last = self._last, result
        if self._trial is not None:  # trials run by other processes are only heard of when they are done
            self._durations[result.cell].append(self._clock() - self._trial_began)
        self._trial = None
        # On a terminal the region shows the last verdict; only what went wrong must stay readable above it.
        if self._region is None or self._verbose or result.verdict in ("suspect", "failed", "interrupted"):
            number = _("trial {n} of {of}").format(n=result.order, of=self._started.trials)
            self._say(Text.assemble(f"{number}  ", finished_line(result, before)))

    def left_s(self) -> float | None:
        """Seconds the remaining trials will take, each as long as its cell took so far; None: nothing to go by."""
        known = [seconds for taken in self._durations.values() for seconds in taken]
        typical = median(known) if known else self._started.expected_trial_s
        if typical is None:
            return None
        ahead = list(self._started.order[self._finished:])
        ahead += [""] * max(0, self._started.trials - self._finished - len(ahead))
        seconds = sum(median(self._durations[cell]) if self._durations.get(cell) else typical for cell in ahead)
        running = self._clock() - self._trial_began if self._trial is not None else 0.0
        return max(0.0, seconds - running)

    def lines(self, width: int) -> Sequence[Text]:
        """The region: four lines, whatever is known so far, made for so many columns."""
        shown = self._shown
        return [shown._line_sweep(width), shown._line_stage(), shown._line_memory(width), shown._line_last()]

    def _line_sweep(self, width: int) -> Text:
        sweep, trial, left = self._started, self._trial, self.left_s()
        n = self._finished if trial is None else trial.order
        of_blocks = trial is not None and sweep.blocks > 1 and trial.block > 0
        block = _("block {n} of {of}").format(n=trial.block, of=sweep.blocks) if trial and of_blocks else ""
        tail = _("trial {n} of {of}").format(n=n, of=sweep.trials) + "   " + (
            _("time left: –") if left is None else _("{time} left").format(time=_clock_text(left)))
        # what a narrow terminal has no room for goes: first the bar, then the block, then the name's end
        head, room = "", 0
        for head in ("  ".join(filter(None, (sweep.name, block))), sweep.name):
            room = width - cell_len(head) - cell_len(tail) - 3
            if room >= 0:
                break
        text = Text(head)
        text.truncate(max(0, width - cell_len(tail) - 2), overflow="ellipsis")
        if room >= 8:
            done = round(room * min(1.0, self._finished / max(1, sweep.trials)))
            text.append(" " * bool(text.plain))
            text.append("━" * done, style="cyan").append("─" * (room - done), style="bright_black")
        return text.append("  " * bool(text.plain) + tail)

    def _line_stage(self) -> Text:
        if self._trial is None:
            return Text(_("between trials"), style="dim")
        stage, tokens = self._stage, self._tokens
        turn = "" if not stage.turn or stage.turns == 1 else _("turn {turn} of {of}").format(
            turn=stage.turn, of=stage.turns)
        doing = _(STAGES[stage.stage])
        if stage.stage == "generate":
            doing = _("generate {n}/{of} tokens").format(n=tokens.n, of=tokens.of) if tokens else _(
                "generate, no token yet")
        return Text.assemble((self._trial.cell, "bold"), "   ", "   ".join(filter(None, (turn, doing))))

    def _line_memory(self, width: int) -> Text:
        reading = self._reading
        if reading is None:
            return Text(_("no server running"), style="dim")
        bar = 6 if width < 70 else 12 if width < 100 else 24
        anon = round(bar * reading.anon / self._scale)
        other = min(bar - anon, round(bar * (reading.file + reading.shmem) / self._scale))
        text = Text(_("anon") + " ")
        text.append("▓" * anon, style="cyan").append("░" * other, style="yellow")
        text.append("·" * (bar - anon - other), style="bright_black")
        text.append(f" {_('file')}  {reading.anon / _MIB:.0f} + {(reading.file + reading.shmem) / _MIB:.0f} MiB")
        if reading.swap:
            text.append(" + " + _("{n} swapped").format(n=f"{reading.swap / _MIB:.0f}"), style="red")
        text.append("   " + _("peak {size}").format(size=f"{reading.peak / _MIB:.0f}") + "   ")
        tail = "" if self._empty is None else "   " + _("empty {size}").format(size=f"{self._empty / _MIB:.0f}")
        points = min(_SPARK_POINTS, width - cell_len(text.plain) - cell_len(tail))
        if points >= 6:
            text.append(sparkline(list(self._spark)[-points:], self._scale), style="cyan")
        return text.append(tail)

    def _line_last(self) -> Text:
        if self._last is None:
            return Text(self._started.question, style="dim")
        return Text.assemble(_("last:"), " ", finished_line(self._last))


def finished_line(result: TrialRecord, before: TrialRecord | None = None) -> Text:
    """"oneshot-off   valid   settled 194.3 MiB after 2.0 s, peak 198.1 MiB", or why it does not count, once for trials
    that follow each other (`before`)."""
    text = Text.assemble(f"{result.cell}   ", (wording.verdict_name(result.verdict), _STYLES.get(result.verdict, "")),
                         "   ")
    facts = []
    settled, seconds = result.value("stabilized/tree_rss_mib"), result.value("stabilized/time_to_stable_s")
    peak = result.value("during_generation/tree_rss_peak_mib")
    if settled is not None:
        facts.append(_("settled {size} MiB").format(size=f"{settled:.1f}") if seconds is None else _(
            "settled {size} MiB after {seconds} s").format(size=f"{settled:.1f}", seconds=f"{seconds:.1f}"))
    if peak is not None:
        facts.append(_("peak {size}").format(size=f"{peak:.1f} MiB"))
    if result.verdict in ("suspect", "failed", "interrupted"):
        same = before is not None and result.reasons and list(before.reasons) == list(result.reasons)
        facts.insert(0, _("for the same reason as trial {n}").format(n=before.order) if before is not None and same
                     else "; ".join(map(worded, result.reasons)) or _("no reason recorded"))
    return text.append(_(", ").join(facts) if facts else _("nothing measured"))


def sparkline(values: list[int], top: int) -> str:
    """One block character per value; zero is the lowest, `top` the highest."""
    last = len(_BLOCKS) - 1
    return "".join(_BLOCKS[max(0, min(last, round(last * value / max(1, top))))] for value in values)


def _rss(reading: Reading) -> int:
    return reading.anon + reading.file + reading.shmem


def _clock_text(seconds: float) -> str:
    """"1:12", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
