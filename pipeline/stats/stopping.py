"""When a sweep has measured enough: the sequential 97 % rule.

After every block from the fifth on the intervals that the page will print are looked at, at 97 % (of a family of k at
1 − 0.03/k); the sweep stops when all are narrow enough, and they cover 95 % after repeated looks. Only their width may
decide: stopping when zero is excluded gives 23 to 26 % false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.record.trial import TrialRecord
from pipeline.stats.comparison import Comparison
from pipeline.stats.factorial import factorials
from pipeline.stats.intervals import required_n
from pipeline.stats.measures import HEADLINE, measure
from pipeline.stats.summary import effects, gap

LEAST_BLOCKS = 5


@dataclass(frozen=True)
class Precision:
    """Where a sweep stands on its way to a target."""

    reached: bool
    """Narrow enough after at least five blocks: stop."""
    n_blocks: int
    half_width: float | None
    """Of the interval as it is printed, in `unit`. None: fewer than two complete blocks."""
    target: float
    """What half_width is compared with, in the same unit."""
    unit: str
    more_blocks: int | None
    """About how many more; None: not known, or more than a thousand."""
    level: float | None
    """Of that interval."""


def effect_precision(trials: Sequence[TrialRecord], metric: str = HEADLINE, *, target: float | None = None,
                     target_pct: float | None = None) -> list[Precision]:
    """One Precision per effect that the page reports, of a factorial plan one per term; a sweep stops when all are
    reached."""
    planned = factorials(trials, metric, looked=True)
    of_plan = [(one.mode, one.where) for one in planned]
    found = [(term.stats, one.middle) for one in planned for term in one.terms]
    found += [(row.stats, row.off or 0.0) for row in effects(trials, (metric,), (), looked=metric)
              if (row.mode, row.where) not in of_plan]
    return [standing(stats, reference, metric, target, target_pct) for stats, reference in found]


def gap_precision(trials: Sequence[TrialRecord], metric: str = HEADLINE, *, target: float | None = None,
                  target_pct: float | None = None) -> list[Precision]:
    """One Precision per unified gap at turn 1."""
    return [standing(row.stats, row.interactive or 0.0, metric, target, target_pct)
            for row in gap(trials, looked=metric).unified if row.metric == metric and row.turn == 1]


def standing(stats: Comparison, reference: float, metric: str, target: float | None,
              target_pct: float | None) -> Precision:
    """The printed interval against the target; `reference` is what percent are of."""
    if (target is None) == (target_pct is None) or (target or target_pct or 0) <= 0:
        raise ValueError("exactly one of target and target_pct is needed, above 0")
    is_ratio, size = measure(metric).ratio, abs(reference)
    if target is not None:
        wanted, unit = target, stats.unit
    else:
        wanted, unit = (target_pct or 0.0, "%") if is_ratio else ((target_pct or 0.0) / 100 * size, stats.unit)
    if stats.estimate is None or stats.lo is None or stats.hi is None or stats.level is None or stats.sd is None:
        return Precision(False, stats.n_blocks, None, target or target_pct or 0.0, unit if target else "%", None, None)
    half, needed_half = (stats.hi - stats.lo) / 2, wanted
    if stats.scale == "ratio":
        scale = 100.0 if unit == "%" else size
        needed_half = wanted / scale / stats.estimate if scale else 0.0  # of the logarithm, about
        half *= scale
    elif unit == "%":  # a speed that was zero once is compared as a difference
        needed_half = wanted = wanted / 100 * size
        unit = stats.unit
    needed = required_n(stats.sd, needed_half, stats.level)
    more = None if needed is None else max(0, max(needed, LEAST_BLOCKS) - stats.n_blocks)
    return Precision(half <= wanted and stats.n_blocks >= LEAST_BLOCKS, stats.n_blocks, half, wanted, unit, more,
                     stats.level)
