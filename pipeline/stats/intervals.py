"""Intervals, tests and verdicts for a difference between two arms. Pure functions over numbers.

Which method for which situation was decided by simulation (`tests/bench/stats_calibration.py` repeats it): Student's
t on paired block differences; bootstraps and permutations cover too little, or nothing, at 3 to 10 blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.language import N_, sentence

FloatArray = npt.NDArray[np.float64]
Kind = Literal["less", "more", "no difference", "undecided", "identical", "not enough"]
Scale = Literal["difference", "ratio"]

_GRID = 2.0**-20
"""One byte in MiB. Floating-point MiB make equal differences unequal by 1e-16; on this grid they are exact."""
_MOST_TRIALS = 1000
WIDEST_RATIO = 100.0
"""An undecided ratio between bounds further apart than this factor says nothing: a tenth and tenfold are both in it."""
_LARGEST_LOG = 700.0
"""e to this is still a number."""


def t_quantile(level: float, df: float) -> float:
    """Two-sided Student t: the half-width of a `level` interval in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))


def _p_value(t: float, df: float) -> float:
    from scipy.special import stdtr

    return min(1.0, 2 * float(stdtr(df, -abs(t))))


@dataclass(frozen=True)
class Interval:
    """Where a difference lies. `estimate`, `lo`, `hi` are in the metric's unit, or a ratio if scale is "ratio"."""

    estimate: float
    lo: float
    hi: float
    level: float
    p: float
    """Two-sided, of no difference; the meter's step counts as noise."""
    n: int
    """Complete blocks (two sweeps: trials in the smaller one)."""
    method: str
    scale: Scale
    centre: float
    """The estimate on the working scale: the difference, or the logarithm of the ratio."""
    se: float
    """Standard error on the working scale, never so small that a 95 % half-width is below the meter's step."""
    sd: float
    """Standard deviation of one block's difference on the working scale, at least se·√n."""
    df: float
    step: float
    """The meter's step on the working scale."""
    identical: bool
    """Every block gave the same difference."""

    def bounds(self, level: float) -> tuple[float, float]:
        """(lo, hi) of another level, on the working scale."""
        half = t_quantile(level, self.df) * self.se
        return self.centre - half, self.centre + half

    @property
    def side(self) -> Literal["less", "more"] | None:
        """On which side of zero the whole interval lies; None if zero is in it. What is printed is what decides."""
        lo, hi = self.bounds(self.level)
        nothing = 1e-9 * (hi - lo)  # what floating point leaves of a bound that is zero
        return "more" if lo > nothing else "less" if hi < -nothing else None

    @property
    def largest(self) -> float:
        """x of "no difference larger than x" on the working scale: the further bound, never below the step."""
        return max(*map(abs, self.bounds(self.level)), self.step)

    def narrow(self, size: float | None) -> bool:
        """Does it say anything, undecided as it is? `size`: the larger of the two readings, for differences.

        Not if the bounds of a ratio are a factor of WIDEST_RATIO apart, and not if a difference may be more than all
        there is, one way and the other."""
        lo, hi = self.bounds(self.level)
        if self.scale == "ratio":
            return hi - lo <= math.log(WIDEST_RATIO)
        return size is None or lo >= -abs(size) or hi <= abs(size)


def interval_of(centre: float, sd: float, n: int, se: float, df: float, step: float, level: float, method: str,
                ratio: bool, identical: bool) -> Interval:
    """The Interval of an estimate on its working scale; the meter's step is the floor of a 95 % half-width."""
    # Constant readings have no variance, yet the meter cannot see below its step: half-width = max(t·se, q).
    floor = step / t_quantile(0.95, df)
    se = max(se, floor)
    half = t_quantile(level, df) * se
    lo, hi = centre - half, centre + half
    p = _p_value(centre / se, df) if se > 0 else float(centre == 0)

    def show(x: float) -> float:
        return math.exp(min(x, _LARGEST_LOG)) if ratio else x

    return Interval(show(centre), show(lo), show(hi), level, p, n, method, "ratio" if ratio else "difference",
                    centre, se, max(sd, se * math.sqrt(n)), df, step, identical)


def _on_grid(values: FloatArray) -> FloatArray:
    return np.asarray(np.rint(values / _GRID), dtype=np.float64)


def of_differences(differences: Sequence[float] | FloatArray, *, step: float = 0.0, level: float = 0.95,
                   ratio: bool = False, method: str = N_("t on paired block differences")) -> Interval | None:
    """Student's t interval of the mean of n differences (logarithms of ratios if `ratio`); None for n < 2."""
    d = np.asarray(differences, dtype=np.float64)
    n = d.size
    if n < 2:
        return None
    if ratio:
        centre, sd, identical = float(d.mean()), float(d.std(ddof=1)), bool(np.ptp(d) == 0)
    else:
        ticks = _on_grid(d)
        centre, sd = float(ticks.mean()) * _GRID, float(ticks.std(ddof=1)) * _GRID
        identical = bool(np.ptp(ticks) == 0)
    if identical:
        sd = 0.0
    return interval_of(centre, sd, n, sd / math.sqrt(n), n - 1, step, level, method, ratio, identical)


def paired(a: Sequence[float], b: Sequence[float], *, step: float = 0.0, level: float = 0.95,
           ratio: bool = False) -> Interval | None:
    """a − b (or a / b), block by block; `a` and `b` have shape (n_blocks,). None for fewer than two blocks.

    Ratios need positive readings; where one is not, the plain difference is taken and the method says so.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if ratio and x.size and min(x.min(), y.min()) > 0:
        # The meter's step as a step of the logarithm, at the smaller of the readings.
        log_step = math.log1p(step / float(min(x.min(), y.min())))
        return of_differences(np.log(x) - np.log(y), step=log_step, level=level, ratio=True,
                              method=N_("t on paired log ratios"))
    return of_differences(x - y, step=step, level=level)


def welch(a: Sequence[float], b: Sequence[float], *, step: float = 0.0, level: float = 0.95, ratio: bool = False,
          method: str = N_("Welch's t, days not covered")) -> Interval | None:
    """a − b (or a / b) of two unpaired samples, such as two sweeps; None if either has fewer than two values.

    What differs between the days of the two sweeps is in the difference and not in the interval.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(x.size, y.size) < 2:
        return None
    ratio = ratio and min(x.min(), y.min()) > 0
    if ratio:
        step = math.log1p(step / float(min(x.min(), y.min())))
        x, y = np.log(x), np.log(y)
    va = 0.0 if np.ptp(x) == 0 else float(x.var(ddof=1)) / x.size
    vb = 0.0 if np.ptp(y) == 0 else float(y.var(ddof=1)) / y.size
    se = math.sqrt(va + vb)
    # Welch–Satterthwaite; with no variance at all every df gives the same interval, the step's.
    df = (va + vb) ** 2 / (va**2 / (x.size - 1) + vb**2 / (y.size - 1)) if se > 0 else x.size + y.size - 2
    n = min(x.size, y.size)
    return interval_of(float(x.mean() - y.mean()), se * math.sqrt(n), n, se, df, step, level, method, ratio,
                     identical=se == 0)


def welch_against_reference(a: Sequence[float], a_reference: Sequence[float], b: Sequence[float],
                            b_reference: Sequence[float], *, step: float = 0.0, level: float = 0.95,
                            ratio: bool = False) -> Interval | None:
    """Two sweeps that share a cell: Welch on (cell − reference) of each block, which takes the days out.

    Shapes: (blocks of sweep A,) twice, (blocks of sweep B,) twice; each pair in block order.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in (a, a_reference, b, b_reference)]
    if min(array.size for array in arrays) < 2:
        return None
    if ratio and min(array.min() for array in arrays) > 0:
        x, xr, y, yr = (np.log(array) for array in arrays)
        log_step = math.log1p(step / float(min(array.min() for array in arrays)))
        found = welch(list(x - xr), list(y - yr), step=log_step, level=level,
                      method=N_("Welch's t on differences to the shared reference cell, log ratios"))
        return None if found is None else interval_of(found.centre, found.sd, found.n, found.se, found.df, found.step,
                                                    level, found.method, True, found.identical)
    x, xr, y, yr = arrays
    return welch(list(x - xr), list(y - yr), step=step, level=level,
                 method=N_("Welch's t on differences to the shared reference cell"))


def line_through(x: Sequence[float] | FloatArray, y: Sequence[float] | FloatArray) -> tuple[float, float, float, float]:
    """(slope, intercept, standard error of the slope, two-sided p of no slope) by least squares; shapes (n,), n ≥ 2.

    What scipy.stats.linregress gives; that module takes half a second to import, which `show` would pay every time."""
    u, v = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    du, df = u - u.mean(), u.size - 2
    square = float(du @ du)
    slope = float(du @ v) / square
    intercept = float(v.mean() - slope * u.mean())
    residual = v - intercept - slope * u
    se = math.sqrt(float(residual @ residual) / df / square) if df > 0 else 0.0
    p = _p_value(slope / se, df) if se > 0 else float(slope == 0 or df <= 0)
    return slope, intercept, se, p


def required_n(sd: float, half_width: float, level: float = 0.95) -> int | None:
    """Smallest n with t(n−1)·sd/√n ≤ half_width; None if more than a thousand. A rough figure at small n."""
    if half_width <= 0:
        return None
    n = max(2, math.floor((1.6 * sd / half_width) ** 2))
    while n <= _MOST_TRIALS:
        if t_quantile(level, n - 1) * sd / math.sqrt(n) <= half_width:
            return n
        n += 1
    return None


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p values of a family, in the order given (Holm 1979)."""
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def may_deviate_pct(n: int) -> float:
    """n identical trials still permit this share of deviating ones (95 %): 100·(1 − 0.05^(1/n))."""
    return 100 * (1 - math.pow(0.05, 1 / n))


@dataclass(frozen=True)
class Verdict:
    """A comparison in words. `kind` for programs, `text` for users."""

    kind: Kind
    text: str
    more_trials: int | None = None
    """Further trials per cell that would about decide it; None if decided, or beyond a thousand."""
    no_larger_than: float | None = None
    """kind "no difference": the bound, in the metric's unit, in percent for ratios."""


def not_enough(n_blocks: int) -> Verdict:
    """The verdict without an interval: an interval needs two complete blocks."""
    return Verdict("not enough", sentence(N_("not enough trials: {n} more needed"), n=2 - n_blocks), 2 - n_blocks)


def verdict(interval: Interval, *, margin: float, unit: str) -> Verdict:
    """What the interval says, at its own level. `margin` is the difference of no practical interest (a fraction for
    ratios).

    Less or more only if it leaves zero out, no difference only if all of it is inside the margin. A p value decides
    nothing: Holm's beside Bonferroni's intervals contradicted 1,479 of 4,000 sweeps near the threshold, and a 90 %
    interval inside the margin (TOST) the 95 % one beside it.
    """
    if interval.identical and interval.centre == 0:
        return Verdict("identical", sentence(N_("identical ({n} of {of})"), n=interval.n, of=interval.n))
    if interval.side is not None:
        return Verdict(interval.side, interval.side)
    limit = math.log1p(margin) if interval.scale == "ratio" else margin
    largest = interval.largest
    if largest <= max(limit, interval.step):
        bound = 100 * math.expm1(largest) if interval.scale == "ratio" else largest
        unit = "%" if interval.scale == "ratio" else unit
        text = sentence(N_("no difference larger than {size}"), size=f"{rounded_up(bound)} {unit}".rstrip())
        if unit == "points":
            text = sentence(N_("no difference larger than {size} points"), size=rounded_up(bound))
        return Verdict("no difference", text, no_larger_than=bound)
    # Decided by whichever comes first: zero leaves the interval, or the interval fits inside the margin.
    ways = [required_n(interval.sd, distance, interval.level)
            for distance in (abs(interval.centre), limit - abs(interval.centre))]
    needed = min((n for n in ways if n is not None), default=None)
    if needed is None:
        return Verdict("undecided", sentence(N_("undecided: more than {n} more trials"), n=_MOST_TRIALS))
    more = max(1, needed - interval.n)
    return Verdict("undecided", sentence(
        N_("undecided: about {n} more trials") if more > 1 else N_("undecided: about {n} more trial"), n=more), more)


def rounded_up(x: float) -> str:
    """Two significant digits, rounded up so that "no larger than" stays true; "0.21", "3.4", "18"."""
    if x <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(x))
    scale = math.pow(10, digits)
    raised = math.ceil(x * scale - 1e-9) / scale
    return f"{raised:.{max(0, digits)}f}".rstrip("0").rstrip(".") if digits > 0 else f"{raised:.0f}"

