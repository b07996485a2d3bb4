"""One difference with everything that is said about it: interval, method, verdict. The value every table shows.

How intervals are computed is in `intervals`; which arms are compared is decided in `summary` and `factorial`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.language import N_, Sentence, sentence
from pipeline.stats.intervals import Interval, Kind, Scale, may_deviate_pct, not_enough, paired, verdict
from pipeline.stats.measures import measure

LOOK_LEVEL = 0.97
"""Of an interval that is looked at after every block from the fifth on: it covers 95 % then (stopping.py)."""
COVERED = 0.95
_OF_FAMILY = N_("{method}; Bonferroni over {n}")


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
    """Times `family` (Bonferroni). Decides nothing; the interval does."""
    family: int = 1
    """Comparisons that were judged together; each interval is then at 1 − 0.05/family."""
    informative: bool = False
    """The interval says something, and is printed. Else `lo` and `hi` say nothing: see `Interval.narrow`."""
    sd: float | None = None
    """One block's standard deviation, in the unit; of the logarithm for ratios."""
    more_trials: int | None = None
    no_larger_than: float | None = None
    """kind "no difference": the bound, in the unit, or in percent for ratios."""
    may_deviate_pct: float | None = None
    """All n blocks alike: the share of deviating trials that n still permits."""


def judged(interval: Interval | None, *, unit: str, margin: float, n_blocks: int, family: int = 1,
           looked: bool = False, size: float | None = None) -> Comparison:
    """The Comparison of an interval, or of its absence. `margin` as in `intervals.verdict`, `size` as in
    `Interval.narrow`; `looked` as in `compare`."""
    if interval is None:
        words = not_enough(n_blocks)
        return Comparison(unit=unit, n_blocks=n_blocks, verdict=words.text, kind=words.kind,
                          more_trials=words.more_trials)
    words = verdict(interval, margin=margin, unit=unit)
    return Comparison(
        unit=unit, n_blocks=interval.n, verdict=words.text, kind=words.kind, estimate=interval.estimate,
        lo=interval.lo, hi=interval.hi, level=interval.level, scale=interval.scale, p=min(1.0, family * interval.p),
        family=family, informative=words.kind != "undecided" or interval.narrow(size), sd=interval.sd,
        method=method_of(interval.method, interval.level, family, looked), more_trials=words.more_trials,
        no_larger_than=words.no_larger_than,
        may_deviate_pct=may_deviate_pct(interval.n) if interval.identical else None)


def level_of(family: int, level: float = COVERED, looked: bool = False) -> float:
    """Of each interval of a family: Bonferroni, so that all of them hold together at `level`."""
    return 1 - (1 - (LOOK_LEVEL if looked else level)) / family


def method_of(method: str, level: float, family: int, looked: bool) -> str:
    """The method in words, with what made the level another one than 95 %."""
    if looked:
        method = sentence(
            N_("{method}, {level} % because it was looked at after every block, which covers {covered} %"),
            method=method, level=f"{100 * level:.3g}", covered=f"{100 * level_of(family):.3g}")
    return sentence(_OF_FAMILY, method=method, n=family) if family > 1 else method


def without_family(method: str) -> str:
    """The method in words, without how many comparisons were judged together."""
    if isinstance(method, Sentence) and method.template == _OF_FAMILY:
        alone = method.values["method"]
        assert isinstance(alone, str)
        return alone
    return method


def compare(arms: Sequence[Mapping[int, float]], reference: Mapping[int, float], metric: str,
            level: float = COVERED, looked: bool = False) -> list[Comparison]:
    """Each arm (block → value) minus the reference, over the blocks both have.

    The arms are one family, each interval at 1 − (1 − level)/k. `looked`: the width of these intervals was looked at
    after every block and ended the sweep; 97 % then covers 95 %.
    """
    how, base = measure(metric), median_of(reference)
    shared = [sorted(arm.keys() & reference.keys()) for arm in arms]
    k = max(1, sum(len(blocks) > 1 for blocks in shared))
    intervals = [paired([arm[block] for block in blocks], [reference[block] for block in blocks], step=how.step,
                        level=level_of(k, level, looked), ratio=how.ratio)
                 for arm, blocks in zip(arms, shared, strict=True)]
    return [judged(interval, unit=how.unit, n_blocks=len(blocks), family=k, looked=looked,
                   margin=how.margin_at(base or 0.0, interval.scale if interval else "difference"),
                   size=max(abs(base or 0.0), abs(median_of(arm) or 0.0)))
            for interval, blocks, arm in zip(intervals, shared, arms, strict=True)]


def median_of(blocks: Mapping[int, float]) -> float | None:
    """Median over blocks; None for none."""
    return median(blocks.values()) if blocks else None
