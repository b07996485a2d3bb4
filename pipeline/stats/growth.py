"""Does a server grow from turn to turn? MiB per turn of each cell, and whether two cells grow differently.

One line per trial through its turns, then Student's t over the trials: turns of one trial follow each other and are
no independent readings, trials are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.stats.arms import differing_keys
from pipeline.stats.comparison import Comparison, judged
from pipeline.stats.intervals import of_differences
from pipeline.stats.measures import HEADLINE, measure
from pipeline.stats.trials import Trial, valid, value

LEAST_TURNS = 3
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
    per_turn: float
    """Mean over the valid trials of each trial's slope, in the metric's unit per turn."""
    stats: Comparison


def growths(trials: Sequence[Trial], metric: str = HEADLINE, level: float = 0.95) -> list[Growth]:
    """One Growth per cell whose trials have three turns or more."""
    how = measure(metric)
    slopes: dict[str, dict[int, float]] = defaultdict(dict)
    first: dict[str, Trial] = {}
    turns: dict[str, int] = {}
    for trial in valid(trials):
        numbers = sorted(turn for turn in trial.turns.get(metric, {}) if turn > 0)
        readings = [reading for turn in numbers if (reading := value(trial, metric, turn)) is not None]
        if len(numbers) < LEAST_TURNS or len(readings) < len(numbers):
            continue
        slopes[trial.cell][trial.block or trial.repetition] = per_turn(readings)
        first.setdefault(trial.cell, trial)
        turns[trial.cell] = len(numbers)
    differing = differing_keys(trials)
    found = []
    for cell, by_number in slopes.items():
        # one step of the meter at one end of the line is the least that a slope can show
        interval = of_differences(list(by_number.values()), step=how.step / (turns[cell] - 1), level=level,
                                  method="line through each trial's turns, t over trials")
        stats = judged(interval, unit=f"{how.unit} per turn", margin=MARGIN_MIB, n_blocks=len(by_number))
        found.append(Growth(
            cell=cell, mode=first[cell].mode, infer_os=first[cell].infer_os, where=differing[cell], metric=metric,
            turns=turns[cell], per_turn=float(np.mean(list(by_number.values()))), stats=stats))
    return found


def per_turn(readings: Sequence[float]) -> float:
    """Slope of a straight line through the readings of turns 1…n, shape (turns,): least squares."""
    turn = np.arange(len(readings)) - (len(readings) - 1) / 2
    return float(turn @ np.asarray(readings, dtype=np.float64) / (turn @ turn))
