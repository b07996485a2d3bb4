"""What a sweep will take and ask for, said before its first trial: duration, memory, and what it does to the machine.

From earlier trials of the same cells in the same store; else from the model file's header; else it says unknown.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil

from pipeline import defaults, machine
from pipeline.config import Config
from pipeline.engine.waiting import NEVER, OuterLimit
from pipeline.language import _
from pipeline.outcome import flatten
from pipeline.phases import MIB
from pipeline.record.find import Sweeps
from pipeline.sweep.cells import ONE_PER_SWEEP, Cell

BETWEEN_S = 0.7
"""From the end of one trial to the next: keeping, sending, composing. Measured, 12 trials of mode_gap: 0.7 s each."""

OUTER_FACTOR = 10
"""A trial's outer limit in units of its forecast."""
OUTER_LEAST_S = 1800.0
OUTER_UNKNOWN_S = 4 * 3600.0
"""The same without a forecast, its waits not counted: a long prompt on a slow machine takes hours."""


@dataclass(frozen=True)
class Forecast:
    """All of it. None: not known."""

    trials: int
    """Still to be run, warm-ups among them."""
    trial_s: Mapping[str, float]
    """Cell → median seconds of its earlier trials, with what comes between two; only cells that have some."""
    earlier: int
    """Trials that this goes by."""
    seconds: float | None
    """Of the whole sweep; cells without earlier trials are taken to last as long as the others."""
    peak_mib: float | None
    peak_cell: str
    peak_measured: bool
    """From earlier trials; else from the model file's header."""
    available_mib: float
    asks: Sequence[str]
    trial_limit_s: float | None = None
    """When a trial is ended although its server is busy, the longest of them; None: one has no limit."""

    @property
    def short_of_memory(self) -> bool:
        """Would the largest cell not fit into what is available now?"""
        return self.peak_mib is not None and self.peak_mib > self.available_mib

    def lines(self) -> list[str]:
        """Duration, memory, demands: a line each."""
        if self.seconds is None:
            duration = _("duration: unknown until the first trials are done (no earlier trial of these cells here)")
        else:
            duration = _("duration: about {time}, by earlier trials of these cells: {n}").format(
                time=clock(self.seconds), n=self.earlier)
        if self.peak_mib is None:
            peak = _("peak: unknown until the first trial is done; {available} MiB are available")
        elif self.peak_measured:
            peak = _("peak: about {peak} MiB ({cell}, by earlier trials); {available} MiB are available")
        else:
            peak = _("peak: about {peak} MiB ({cell}; weights, KV cache and compute buffer by the model file, nothing "
                     "measured yet); {available} MiB are available")
        said = peak.format(peak=f"{self.peak_mib or 0:.0f}", cell=self.peak_cell, available=f"{self.available_mib:.0f}")
        if self.short_of_memory:
            said += " – " + _("this is too little: the machine will swap, or the kernel will end the server")
        asks = _("asks for: {demands}").format(demands="; ".join(self.asks))
        if self.trial_limit_s is None:
            return [duration, said, asks]
        longest = _("a trial is ended after {time} at the latest (engine.trial_limit_s)").format(
            time=clock(self.trial_limit_s))
        return [duration, said, asks, longest]


def clock(seconds: float) -> str:
    """"45 s", "2:10 min", "3:05 h": about, for a person to plan by."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 90 else f"{minutes // 60}:{minutes % 60:02} h"


def cell_digest(config: Config, settings: Mapping[str, Any]) -> str:
    """The same for trials that do the same with the same server, in whatever sweep: 16 hex digits of a SHA-256.

    A key at its default is left out, so that one that is new since does not make earlier trials unknown."""
    flat = flatten(config)
    unset = defaults.unset(flat)
    own = {key: value for key, value in flat.items() if key.split(".")[0] not in ONE_PER_SWEEP
           and not (key in unset and unset[key] == value)}
    text = json.dumps([own, dict(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def forecast(cells: Sequence[Cell], ahead: Sequence[int], sweeps: Sweeps) -> Forecast:
    """Of the trials still to be run: `ahead` are their cells, by index."""
    digests = {cell.name: cell_digest(cell.config, cell.plan.settings) for cell in cells}
    seconds, peaks = defaultdict(list), defaultdict(list)
    for one in sweeps.earlier(set(digests.values()), machine.facts()["host"]):
        seconds[one.digest].append(one.seconds)
        if one.peak_mib is not None:
            peaks[one.digest].append(one.peak_mib)
    trial_s = {name: median(seconds[digest]) + BETWEEN_S for name, digest in digests.items() if digest in seconds}
    typical = median(trial_s.values()) if trial_s else None
    total = None if typical is None else sum(trial_s.get(cells[index].name, typical) for index in ahead)
    measured = {name: max(peaks[digest]) for name, digest in digests.items() if digest in peaks}
    planned = {cell.name: sum(cell.plan.memory.values()) / MIB for cell in cells if cell.plan.memory}
    # a cell that was never measured may be the largest
    known = planned | measured
    largest = max(known, key=lambda name: known[name], default="")
    limit_s = max((_limit(cell.config, trial_s.get(cell.name))[0] for cell in cells), default=math.inf)
    return Forecast(len(ahead), trial_s, sum(map(len, seconds.values())), total, known.get(largest), largest,
                    largest in measured, psutil.virtual_memory().available / MIB, _demands(cells),
                    limit_s if math.isfinite(limit_s) else None)


def outer_limit(config: Config, expected_s: float | None) -> OuterLimit:
    """When a trial that begins now ends although its server is still busy: far above what it is expected to take.

    Never for a conversation, whose length is a user's."""
    limit_s, by = _limit(config, expected_s)
    return OuterLimit(time.monotonic() + limit_s, f"{clock(limit_s)} ({by})") if math.isfinite(limit_s) else NEVER


def _limit(config: Config, expected_s: float | None) -> tuple[float, str]:
    """Seconds, and by what."""
    mode, settle, given_s = config.mode, config.settle, config.engine.trial_limit_s
    if mode.source == "stdin":
        return math.inf, ""
    if given_s is not None:
        return given_s, "engine.trial_limit_s"
    if expected_s is not None:
        return (max(OUTER_FACTOR * expected_s, OUTER_LEAST_S),
                f"far above its forecast of {clock(expected_s)}; engine.trial_limit_s sets another")
    waits_s = mode.turns * max(mode.think_time_s, settle.limit_s, config.stabilization_delay_s)
    return OUTER_UNKNOWN_S + waits_s, "no forecast; engine.trial_limit_s sets another"


def _demands(cells: Sequence[Cell]) -> list[str]:
    """What the sweep does to the machine besides using memory."""
    lines = [line for cell in cells for line in cell.plan.asks]
    clears = [cell.config.clear for cell in cells]
    if any(clear.drop_caches for clear in clears):
        lines.append(_("all clean caches of this machine are dropped before every trial, which slows its neighbours"))
    elif any(clear.evict_model for clear in clears):
        lines.append(_("the model file leaves the page cache before every trial"))
    return [*dict.fromkeys(lines), _("no other sweep on this machine meanwhile")]


def remaining_s(cells: Sequence[str], taken: Sequence[tuple[str, float]]) -> float | None:
    """Seconds that trials of these cells will last, by those of this sweep (cell, seconds); None without any."""
    if not taken:
        return None
    by_cell = defaultdict(list)
    for cell, seconds in taken:
        by_cell[cell].append(seconds + BETWEEN_S)
    typical = median(seconds for several in by_cell.values() for seconds in several)
    return sum(median(by_cell[cell]) if cell in by_cell else typical for cell in cells)
