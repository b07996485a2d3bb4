"""What a person sees while a sweep runs: a live region on a terminal, one plain line per finished trial in a pipe.

Listens to `pipeline.progress` events and remembers what it needs to draw. It measures nothing and decides nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from statistics import median
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from pipeline.progress import (
    Event,
    Fetching,
    Notice,
    Reading,
    StageEntered,
    SweepFinished,
    SweepStarted,
    TokenCount,
    TrialFinished,
    TrialStarted,
)
from pipeline.result import TrialResult

_MIB = 1024 * 1024
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_POINTS = 60
_SPARK_EVERY_NS = 500_000_000
_STYLES = {"valid": "green", "suspect": "yellow", "failed": "red"}


class Progress:
    """A listener that shows the sweep on `console`. Use it as a context manager, so that the cursor comes back.

    `clock` gives seconds and is for tests.
    """

    def __init__(self, console: Console | None = None, trials_total: int = 0, *, quiet: bool = False,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console()
        self._quiet = quiet
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
        self._last: TrialResult | None = None
        self._durations: dict[str, list[float]] = defaultdict(list)
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the live region away. May be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_event(self, event: Event) -> None:
        """Take one event; drawing happens a few times a second in rich's thread, not here."""
        match event:
            case Fetching():
                self._fetch(event)
            case Notice(text):
                if not self._quiet:
                    self._console.print(text, highlight=False, markup=False, soft_wrap=not self._console.is_terminal)
            case SweepStarted():
                self._started, self._finished = event, event.done
                if self._console.is_terminal and not self._quiet:
                    # 4 redraws a second: enough to see movement, little enough not to disturb what is measured
                    self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)
                    self._live.start()
            case TrialStarted():
                self._trial, self._trial_began = event, self._clock()
                self._tokens = self._reading = self._empty = None
                self._spark.clear()
            case StageEntered():
                if self._stage.stage == "start" and event.stage != "start" and self._reading is not None:
                    self._empty = _rss(self._reading)
                self._stage, self._tokens = event, None
            case Reading():
                self._take(event)
            case TokenCount():
                self._tokens = event
            case TrialFinished(result):
                self._finish(result)
            case SweepFinished():
                self.close()

    def _fetch(self, event: Fetching) -> None:
        """One line that counts up on a terminal, one line per step in a pipe."""
        step, done = (event.model, event.what), event.done >= event.total
        if self._quiet or (step == self._step and not self._console.is_terminal):
            return
        if self._console.is_terminal:
            line = f"{event.model}: {event.what} {event.done / _MIB:.0f} of {event.total / _MIB:.0f} MiB"
            width = min(60, self._console.width - 1)
            self._console.print(f"\r{line:<{width}}", end="\n" if done else "", highlight=False, markup=False)
        else:
            self._console.print(f"{event.model}: {event.what} {event.total / _MIB:.0f} MiB", highlight=False,
                                markup=False)
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

    def _finish(self, result: TrialResult) -> None:
        self._finished += 1
        self._last = result
        if self._trial is not None:  # trials run by other processes are only heard of when they are done
            self._durations[result.cell].append(self._clock() - self._trial_began)
        self._trial = None
        if self._quiet:
            return
        # On a terminal the region shows the last verdict; only what went wrong must stay readable above it.
        if self._live is None or result.verdict in ("suspect", "failed"):
            line = Text.assemble(f"trial {self._finished} of {self._started.trials}  ", finished_line(result))
            self._console.print(line, soft_wrap=self._live is None, highlight=False)

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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        for line in (self._line_sweep(width), self._line_stage(), self._line_memory(width), self._line_last()):
            line.truncate(width, overflow="ellipsis")
            yield line

    def _line_sweep(self, width: int) -> Text:
        sweep, trial = self._started, self._trial
        n = min(self._finished + (trial is not None), sweep.trials)
        block = f"block {trial.block} of {sweep.blocks} " if trial is not None and sweep.blocks > 1 else ""
        head = f"{sweep.name}  {block}" if sweep.name else block
        left = self.left_s()
        tail = f"  trial {n} of {sweep.trials}   {'time left: –' if left is None else f'{_clock_text(left)} left'}"
        room = width - cell_len(head) - cell_len(tail)
        text = Text(head)
        if room >= 8:
            done = round(room * min(1.0, self._finished / max(1, sweep.trials)))
            text.append("━" * done, style="cyan")
            text.append("─" * (room - done), style="bright_black")
        return text.append(tail)

    def _line_stage(self) -> Text:
        if self._trial is None:
            return Text("between trials", style="dim")
        stage, tokens = self._stage, self._tokens
        turn = f"turn {stage.turn} of {stage.turns}   " if stage.turn and stage.turns > 1 else ""
        doing: str = stage.stage
        if stage.stage == "generate":
            doing = f"generate {tokens.n}/{tokens.of} tokens" if tokens else "generate, no token yet"
        return Text.assemble((self._trial.cell, "bold"), f"   {turn}{doing}")

    def _line_memory(self, width: int) -> Text:
        reading = self._reading
        if reading is None:
            return Text("no server running", style="dim")
        bar = 6 if width < 70 else 12 if width < 100 else 24
        anon = round(bar * reading.anon / self._scale)
        other = min(bar - anon, round(bar * (reading.file + reading.shmem) / self._scale))
        text = Text("anon ")
        text.append("▓" * anon, style="cyan").append("░" * other, style="yellow")
        text.append("·" * (bar - anon - other), style="bright_black")
        text.append(f" file  {reading.anon / _MIB:.0f} + {(reading.file + reading.shmem) / _MIB:.0f} MiB")
        if reading.swap:
            text.append(f" + {reading.swap / _MIB:.0f} swapped", style="red")
        text.append(f"   peak {reading.peak / _MIB:.0f}   ")
        tail = "" if self._empty is None else f"   empty {self._empty / _MIB:.0f}"
        points = min(_SPARK_POINTS, width - cell_len(text.plain) - cell_len(tail))
        if points >= 6:
            text.append(sparkline(list(self._spark)[-points:], self._scale), style="cyan")
        return text.append(tail)

    def _line_last(self) -> Text:
        if self._last is None:
            return Text(self._started.question, style="dim")
        return Text.assemble("last: ", finished_line(self._last))


def finished_line(result: TrialResult) -> Text:
    """"oneshot-off   valid   settled 194.3 MiB after 2.0 s, peak 198.1 MiB", or why it does not count."""
    text = Text.assemble(f"{result.cell}   ", (result.verdict, _STYLES.get(result.verdict, "")), "   ")
    facts = []
    settled, seconds = result.value("stabilized/tree_rss_mib"), result.value("stabilized/time_to_stable_s")
    peak = result.value("during_generation/tree_rss_peak_mib")
    if settled is not None:
        facts.append(f"settled {settled:.1f} MiB" + (f" after {seconds:.1f} s" if seconds is not None else ""))
    if peak is not None:
        facts.append(f"peak {peak:.1f} MiB")
    if result.verdict in ("suspect", "failed"):
        facts.insert(0, "; ".join(result.reasons) or "no reason recorded")
    return text.append(", ".join(facts) if facts else "nothing measured")


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
