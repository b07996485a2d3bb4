"""Does a server grow from turn to turn, and goes on to? MiB per turn of each cell.

One line per trial through its turns from the second on, then Student's t over the trials: turns of one trial follow
each other and are not independent readings; trials are. The first turn fills what is kept once and for all (one
prompt in the cache, buffers) and is not growth: with the same prompt every turn it was the whole rise but 0.1 MiB.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.language import N_, sentence
from pipeline.record.trial import TrialRecord
from pipeline.stats.arms import differing_keys
from pipeline.stats.comparison import Comparison, judged
from pipeline.stats.intervals import of_differences
from pipeline.stats.measures import HEADLINE, measure
from pipeline.stats.trials import valid, value

FIRST = 2
LEAST_TURNS = FIRST + 1
MARGIN_MIB = 0.1
"""Growth per turn below this is of no interest: a thousand turns would hold 100 MiB."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One cell's growth per turn; `stats.estimate`, `lo` and `hi` are MiB per turn."""

    cell: str
    mode: str
    infer_os: str
    where: Mapping[str, str]
    metric: str
    turns: int
    """The last one; the line begins at turn 2."""
    per_turn: float
    """Mean over the valid trials of each trial's slope, in the metric's unit per turn."""
    stats: Comparison


def growths(trials: Sequence[TrialRecord], metric: str = HEADLINE, level: float = 0.95) -> list[Growth]:
    """One Growth per cell whose trials have three turns or more, the fastest first."""
    how = measure(metric)
    slopes: dict[str, dict[int, float]] = defaultdict(dict)
    settled: dict[str, list[float]] = defaultdict(list)
    first: dict[str, TrialRecord] = {}
    turns: dict[str, int] = {}
    for trial in valid(trials):
        last = max(trial.turns.get(metric, {}), default=0)
        readings = [reading for turn in range(FIRST, last + 1) if (reading := value(trial, metric, turn)) is not None]
        if last < LEAST_TURNS or len(readings) < last + 1 - FIRST:
            continue
        slopes[trial.cell][trial.block or trial.repetition] = per_turn(readings)
        settled[trial.cell] += readings
        first.setdefault(trial.cell, trial)
        turns[trial.cell] = last
    differing = differing_keys(trials)
    found = []
    for cell, by_number in slopes.items():
        # one step of the meter at one end of the line is the least that a slope can show
        interval = of_differences(list(by_number.values()), step=how.step / (turns[cell] - FIRST), level=level,
                                  method=sentence(
                                      N_("line through each trial's turns from {turn} on, t over trials"), turn=FIRST))
        stats = judged(interval, unit=f"{how.unit} per turn", margin=MARGIN_MIB, n_blocks=len(by_number),
                       size=float(np.median(settled[cell])))
        found.append(Growth(
            cell=cell, mode=first[cell].mode, infer_os=first[cell].infer_os, where=differing[cell], metric=metric,
            turns=turns[cell], per_turn=float(np.mean(list(by_number.values()))), stats=stats))
    return sorted(found, key=lambda one: -one.per_turn)


def per_turn(readings: Sequence[float]) -> float:
    """Slope of a straight line through readings at even distances, shape (turns,): least squares."""
    turn = np.arange(len(readings)) - (len(readings) - 1) / 2
    return float(turn @ np.asarray(readings, dtype=np.float64) / (turn @ turn))
