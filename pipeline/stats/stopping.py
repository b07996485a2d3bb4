"""When a sweep has measured enough: the sequential 97 % rule.

After every block from the fifth on a 97 % t interval is looked at; the sweep stops when it is narrow enough, and
that interval is reported as 95 % after repeated looks. Only its width may decide: stopping when zero is excluded
gives 23 to 26 % false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.stats.arms import flag_groups, mode_pairs
from pipeline.stats.comparison import LOOK_LEVEL
from pipeline.stats.intervals import Interval, paired, required_n
from pipeline.stats.measures import HEADLINE, measure
from pipeline.stats.trials import Trial, by_block

LEAST_BLOCKS = 5


@dataclass(frozen=True)
class Precision:
    """Where a sweep stands on its way to a target."""

    reached: bool
    """Narrow enough after at least five blocks: stop."""
    n_blocks: int
    half_width: float | None
    """Of the 97 % interval: in the metric's unit, or percent for ratios. None: fewer than two complete blocks."""
    target: float
    """What half_width is compared with, in the same unit."""
    unit: str
    more_blocks: int | None
    """About how many more; None: not known, or more than a thousand."""
    interval: Interval | None
    """To be reported as 95 % after repeated looks."""


def precision(a: Sequence[float], b: Sequence[float], metric: str = HEADLINE, *, target: float | None = None,
              target_pct: float | None = None) -> Precision:
    """How precisely a − b is known from complete blocks; shapes (n_blocks,).

    `target` is a half-width in the metric's unit, `target_pct` one in percent of the mean of b (of the ratio, for
    speeds and times). Raises ValueError unless exactly one of them is given and above 0.
    """
    if (target is None) == (target_pct is None) or (target or target_pct or 0) <= 0:
        raise ValueError("exactly one of target and target_pct is needed, above 0")
    how = measure(metric)
    ratio = how.ratio and target_pct is not None
    interval = paired(a, b, step=how.step, level=LOOK_LEVEL, ratio=ratio)
    n = len(a)
    if interval is None:
        return Precision(False, n, None, target or target_pct or 0.0, how.unit if target else "%", None, None)
    lo, hi = interval.bounds(LOOK_LEVEL)
    half = (hi - lo) / 2
    if interval.scale == "ratio":
        wanted = math.log1p((target_pct or 0.0) / 100)
        shown_half, shown_target, unit = 100 * math.expm1(half), target_pct or 0.0, "%"
    else:
        wanted = target if target is not None else (target_pct or 0.0) / 100 * abs(sum(b) / len(b))
        shown_half, shown_target, unit = half, wanted, how.unit
    needed = required_n(interval.sd, wanted, LOOK_LEVEL)
    more = None if needed is None else max(0, max(needed, LEAST_BLOCKS) - n)
    return Precision(half <= wanted and n >= LEAST_BLOCKS, n, shown_half, shown_target, unit, more, interval)


def effect_precision(trials: Sequence[Trial], metric: str = HEADLINE, *, mode: str | None = None,
                     flag: str | None = None, target: float | None = None,
                     target_pct: float | None = None) -> list[Precision]:
    """One Precision per on − off comparison (of this mode and flag, if named); a sweep stops when all are reached."""
    found = []
    for group in flag_groups(trials):
        off = by_block(group.off, metric)
        for name, arm in group.arms:
            if (mode is None or group.mode == mode) and (flag is None or name == flag):
                on = by_block(arm, metric)
                blocks = sorted(on.keys() & off.keys())
                found.append(precision([on[b] for b in blocks], [off[b] for b in blocks], metric, target=target,
                                       target_pct=target_pct))
    return found


def gap_precision(trials: Sequence[Trial], metric: str = HEADLINE, *, target: float | None = None,
                  target_pct: float | None = None) -> list[Precision]:
    """One Precision per unified gap at turn 1."""
    found = []
    for pair in mode_pairs(trials):
        one, many = by_block(pair.oneshot, metric, 1), by_block(pair.interactive, metric, 1)
        blocks = sorted(one.keys() & many.keys())
        found.append(precision([one[b] for b in blocks], [many[b] for b in blocks], metric, target=target,
                               target_pct=target_pct))
    return found
