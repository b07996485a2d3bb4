"""One difference with everything that is said about it: interval, method, verdict. The value every table shows.

How intervals are computed is in `intervals`; which arms are compared is decided in `summary` and `factorial`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pipeline.stats.intervals import Interval, Kind, Scale, holm, may_deviate_pct, not_enough, paired, verdict
from pipeline.stats.measures import measure

LOOK_LEVEL = 0.97
"""Of an interval that is looked at after every block from the fifth on: it covers 95 % then (stopping.py)."""
LOOKED = "97 % because it was looked at after every block, which covers 95 %"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What statistics say about a difference; numbers are None with fewer than two complete blocks.

    `lo`, `hi` and `estimate` are differences in the metric's unit, or ratios if `scale` is "ratio". The estimate is
    the mean over complete blocks (geometric for ratios); `difference` of a row is between medians of valid trials.
    """

    unit: str
    n_blocks: int
    """Blocks in which both arms have a valid trial."""
    verdict: str
    kind: Kind
    estimate: float | None = None
    lo: float | None = None
    hi: float | None = None
    level: float | None = None
    scale: Scale | None = None
    method: str | None = None
    p: float | None = None
    """Holm-adjusted where `family` is above 1."""
    family: int = 1
    """Comparisons that were judged together; each interval is then at 1 − 0.05/family."""
    more_trials: int | None = None
    no_larger_than: float | None = None
    """kind "no difference": the bound, in the unit, or in percent for ratios."""
    may_deviate_pct: float | None = None
    """All n blocks alike: the share of deviating trials that n still permits."""


def judged(interval: Interval | None, *, unit: str, margin: float, n_blocks: int, adjusted_p: float | None = None,
           family: int = 1, alpha: float = 0.05) -> Comparison:
    """The Comparison of an interval, or of its absence. `margin` and `alpha` as in `intervals.verdict`."""
    if interval is None:
        words = not_enough(n_blocks)
        return Comparison(unit=unit, n_blocks=n_blocks, verdict=words.text, kind=words.kind,
                          more_trials=words.more_trials)
    p = interval.p if adjusted_p is None else adjusted_p
    words = verdict(interval, margin=margin, unit=unit, adjusted_p=p, family=family, alpha=alpha)
    return Comparison(
        unit=unit, n_blocks=interval.n, verdict=words.text, kind=words.kind, estimate=interval.estimate,
        lo=interval.lo, hi=interval.hi, level=interval.level, scale=interval.scale, p=p, family=family,
        method=interval.method + (f"; Holm over {family}" if family > 1 else ""), more_trials=words.more_trials,
        no_larger_than=words.no_larger_than,
        may_deviate_pct=may_deviate_pct(interval.n) if interval.identical else None)


def compare(arms: Sequence[Mapping[int, float]], reference: Mapping[int, float], metric: str,
            level: float = 0.95, looked: bool = False) -> list[Comparison]:
    """Each arm (block → value) minus the reference, over the blocks both have.

    The arms are one family: p values are adjusted together (Holm), intervals are at 1 − (1 − level)/k. `looked`:
    the width of this interval was looked at after every block and ended the sweep; 97 % then covers 95 %.
    """
    level = LOOK_LEVEL if looked else level
    how = measure(metric)
    shared = [sorted(arm.keys() & reference.keys()) for arm in arms]
    k = max(1, sum(len(blocks) > 1 for blocks in shared))
    intervals = [paired([arm[block] for block in blocks], [reference[block] for block in blocks], step=how.step,
                        level=1 - (1 - level) / k, ratio=how.ratio)
                 for arm, blocks in zip(arms, shared, strict=True)]
    adjusted = iter(holm([interval.p for interval in intervals if interval is not None]))
    if looked:
        intervals = [interval and replace(interval, method=f"{interval.method}, {LOOKED}") for interval in intervals]
    return [judged(interval, unit=how.unit, n_blocks=len(blocks), family=k, alpha=1 - level,
                   margin=how.margin_at(median_of(reference) or 0.0, interval.scale if interval else "difference"),
                   adjusted_p=next(adjusted) if interval is not None else None)
            for interval, blocks in zip(intervals, shared, strict=True)]


def median_of(blocks: Mapping[int, float]) -> float | None:
    """Median over blocks; None for none."""
    return median(blocks.values()) if blocks else None
