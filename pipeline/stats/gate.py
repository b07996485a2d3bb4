"""Limits for CI: "stabilized/tree_rss_mib > +2%" read strictly, and judged on a Change. Pure.

A signed number limits the change of B against A, in percent of A or in the metric's unit; one without a sign limits B.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.stats.between import Change
from pipeline.stats.measures import measure
from pipeline.stats.summary import EFFECT_METRICS, UNIFIED_METRICS

_GATE = re.compile(r"\s*(?P<metric>\S+)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[+\-−]?\d+(?:\.\d+)?)\s*"
                   r"(?P<unit>[^\d\s.]\S*)?\s*")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
FORM = ('METRIC > LIMIT, also <, >= and <=, with a limit such as +2% (more than A by 2 %), +5MiB (more by 5 MiB) or '
        '600MiB (B itself)')


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
    """A gate on one pair of cells."""

    gate: str
    metric: str
    cell_a: str
    cell_b: str
    tripped: bool
    value: float
    """What was held against the limit: the estimate of the change, or the median of B."""
    limit: float
    unit: str
    lo: float | None
    """The interval of the change, in the limit's unit; None for a limit of B itself."""
    hi: float | None
    certain: bool
    """The whole interval is on the same side of the limit as the estimate; True where there is none."""


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


def judge(gate: Gate, change: Change) -> Judged:
    """Hold the estimate against the limit: chance is not excluded, `certain` says whether the interval does so.

    Raises ConfigError where a change has no interval: one trial says nothing about the next."""
    cells = f"{change.cell_a} against {change.cell_b}" if change.cell_a != change.cell_b else change.cell_a
    lo = hi = None
    if not gate.is_change:
        value = change.b
    else:
        stats, base = change.stats, change.a
        if stats.estimate is None or stats.lo is None or stats.hi is None:
            raise ConfigError(f"--fail-if {gate.text!r} cannot be judged for {cells}: {stats.verdict} (valid trials: "
                              f"{change.n_a} and {change.n_b}). Measure again with repetitions=2 or more.")
        value, lo, hi = (_in_unit(number, change, gate.unit) for number in (stats.estimate, stats.lo, stats.hi))
        if base is None or value is None:
            raise ConfigError(f"--fail-if {gate.text!r} cannot be judged for {cells}: A is {base}, and has no percent. "
                              f"Give a limit in {measure(gate.metric).unit or 'the unit of the metric'}.")
    if value is None:
        raise ConfigError(f"--fail-if {gate.text!r} cannot be judged for {cells}: B has no valid trial with it.")
    exceeds = _SIGNS[gate.sign]
    tripped = exceeds(value, gate.limit)
    certain = lo is None or hi is None or exceeds(lo, gate.limit) == exceeds(hi, gate.limit) == tripped
    return Judged(gate=gate.text, metric=gate.metric, cell_a=change.cell_a, cell_b=change.cell_b, tripped=tripped,
                  value=value, limit=gate.limit, unit=gate.unit, lo=lo, hi=hi, certain=certain)


def _in_unit(number: float, change: Change, unit: str) -> float | None:
    """An estimate or bound of a Comparison, as a change in percent of A or in the metric's unit."""
    if change.stats.scale == "ratio":
        return 100 * (number - 1) if unit == "%" else None if change.a is None else (number - 1) * change.a
    if unit != "%":
        return number
    return 100 * number / change.a if change.a else None
