"""Limits for CI: "stabilized/tree_rss_mib > +2%" read strictly, and judged on a Change. Pure.

A signed number limits the change of B against A, in percent of A or in the metric's unit; one without a sign limits B.
A change is judged by its whole interval: what is undecided never passes.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.language import N_
from pipeline.stats.between import Change
from pipeline.stats.intervals import required_n
from pipeline.stats.measures import measure
from pipeline.stats.summary import EFFECT_METRICS, UNIFIED_METRICS

_GATE = re.compile(r"\s*(?P<metric>\S+)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[+\-−]?\d+(?:\.\d+)?)\s*"
                   r"(?P<unit>[^\d\s.]\S*)?\s*")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
FORM = ('METRIC > LIMIT, also <, >= and <=, with a limit such as +2% (more than A by 2 %), +5MiB (more by 5 MiB) or '
        '600MiB (B itself)')


Outcome = Literal["passed", "failed", "undecided"]

BOTH_SIDES = N_("the limit is inside the interval")
SAYS_NOTHING = N_("too few blocks to say anything")
NOTHING_IN_A = N_("A has no valid trial with it")
NOTHING_IN_B = N_("B has no valid trial with it")


@dataclass(frozen=True)
class Gate:
    """One limit. `unit` "%" with `is_change` is percent of A."""

    text: str
    metric: str
    sign: str
    limit: float
    unit: str
    is_change: bool


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A gate on one pair of cells. `outcome` decides; `tripped` and `certain` say how it came about."""

    gate: str
    metric: str
    cell_a: str
    cell_b: str
    outcome: Outcome
    tripped: bool
    """The estimate is beyond the limit."""
    value: float | None
    """What was held against the limit: the estimate of the change, or the median of B. None: not measured."""
    limit: float
    unit: str
    lo: float | None
    """The interval of the change, in the limit's unit; None for a limit of B itself."""
    hi: float | None
    certain: bool
    """The whole interval is on the same side of the limit as the estimate; True for a limit of B itself."""
    why: str = ""
    """outcome "undecided": the reason."""
    more_blocks: int | None = None
    """About how many more would decide it; None: decided, not known, or more than a thousand."""


def parse(text: str, metrics: Collection[str]) -> Gate:
    """The gate in words. Raises ConfigError: not of this form, a metric that was not measured, another unit."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--fail-if {text!r} is not understood. Expected {FORM}.")
    metric, number, unit = match["metric"], match["number"].replace("−", "-"), match["unit"] or ""
    if metric not in metrics:
        raise ConfigError(f"--fail-if {text!r}: {metric} was not measured on both sides. {_listing(metric, metrics)}")
    is_change = number[0] in "+-"
    own = measure(metric).unit
    level = "%" if own == "points" else own
    # the metric's name says the unit of a level; a bare +2 could be percent as well
    allowed = ("%", own) if is_change else (level, "")
    if unit not in allowed:
        hint = f" A change is written with its sign: +{number}%." if unit == "%" else ""
        raise ConfigError(f"--fail-if {text!r}: the unit of {'a change of ' * is_change}{metric} is "
                          f"{' or '.join(filter(None, allowed)) or 'none'}, not {unit or 'left out'}.{hint}")
    return Gate(text.strip(), metric, match["sign"], float(number), unit if is_change else level, is_change)


def _listing(metric: str, metrics: Collection[str]) -> str:
    close = difflib.get_close_matches(metric, metrics, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    usual = [name for name in (*EFFECT_METRICS, *UNIFIED_METRICS) if name in metrics]
    listed = "\n".join(f"  {name}" for name in dict.fromkeys(usual or sorted(metrics)[:12]))
    return f"{hint}The usual ones:\n{listed}\nAll {len(metrics)} are the columns of trials.csv in an export."


def overall(judged: Sequence[Judged]) -> Outcome | None:
    """Failed if one failed, undecided if one is undecided, else passed; None without a gate."""
    outcomes: tuple[Outcome, ...] = ("failed", "undecided", "passed")
    return next((outcome for outcome in outcomes if any(one.outcome == outcome for one in judged)), None)


def judge(gate: Gate, change: Change, apart: str = "") -> Judged:
    """Hold the whole interval of a change against the limit, or the median of B.

    `apart`: why the sides cannot be told apart by what is compared (two methods, two machines), which leaves a change
    undecided. Raises ConfigError for percent of an A that is zero."""
    stats, base = change.stats, change.a
    if gate.is_change and base == 0 and gate.unit == "%":
        cells = f"{change.cell_a} against {change.cell_b}" if change.cell_a != change.cell_b else change.cell_a
        raise ConfigError(f"--fail-if {gate.text!r} cannot be judged for {cells}: A is 0, and has no percent. "
                          f"Give a limit in {measure(gate.metric).unit or 'the unit of the metric'}.")
    value, lo, hi = change.b, None, None
    if gate.is_change:
        value, lo, hi = (None if number is None else _in_unit(number, change, gate.unit)
                         for number in (stats.estimate, stats.lo, stats.hi))
    exceeds = _SIGNS[gate.sign]
    tripped = value is not None and exceeds(value, gate.limit)
    certain = not gate.is_change or (
        lo is not None and hi is not None and exceeds(lo, gate.limit) == exceeds(hi, gate.limit) == tripped)
    why, more = "", None
    if change.b is None:
        why = NOTHING_IN_B
    elif gate.is_change and base is None:
        why = NOTHING_IN_A
    elif gate.is_change and apart:
        why = apart
    elif gate.is_change and (lo is None or hi is None):
        why, more = stats.verdict, stats.more_trials
    elif gate.is_change and not (certain and stats.informative):
        why, more = BOTH_SIDES if stats.informative else SAYS_NOTHING, _more_blocks(gate, change)
    outcome: Outcome = "undecided" if why else "failed" if tripped else "passed"
    return Judged(gate=gate.text, metric=gate.metric, cell_a=change.cell_a, cell_b=change.cell_b, outcome=outcome,
                  tripped=tripped, value=value, limit=gate.limit, unit=gate.unit, lo=lo, hi=hi,
                  certain=certain and not why, why=why, more_blocks=more)


def _more_blocks(gate: Gate, change: Change) -> int | None:
    """About how many more until the interval leaves the limit out, if the estimate is the truth."""
    stats, base = change.stats, change.a or 0.0
    if stats.estimate is None or stats.sd is None or stats.level is None:
        return None
    limit, centre = gate.limit, stats.estimate
    if stats.scale == "ratio":
        ratio = 1 + (limit / 100 if gate.unit == "%" else limit / base if base else -1.0)
        if ratio <= 0:
            return None
        limit, centre = math.log(ratio), math.log(centre)
    elif gate.unit == "%":
        limit *= abs(base) / 100
    needed = required_n(stats.sd, abs(limit - centre), stats.level)
    return None if needed is None else max(1, needed - stats.n_blocks)


def _in_unit(number: float, change: Change, unit: str) -> float | None:
    """An estimate or bound of a Comparison, as a change in percent of A or in the metric's unit."""
    if change.stats.scale == "ratio":
        return 100 * (number - 1) if unit == "%" else None if change.a is None else (number - 1) * change.a
    if unit != "%":
        return number
    return 100 * number / change.a if change.a else None
