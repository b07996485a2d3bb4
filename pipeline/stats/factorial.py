"""Factorial plans: the effect of each flag over all settings of the others, and two-way interactions.

Contrasts with the pooled residual of block + saturated cell, all of them one family. Pure functions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from pipeline.language import N_, sentence
from pipeline.record.trial import TrialRecord
from pipeline.stats.arms import differing_keys
from pipeline.stats.comparison import Comparison, judged, level_of, method_of
from pipeline.stats.intervals import Interval, interval_of
from pipeline.stats.measures import HEADLINE, measure
from pipeline.stats.trials import by_block, flags_on, looked_at, valid

FloatArray = npt.NDArray[np.float64]
LEAST_CELLS = 4


@dataclass(frozen=True)
class Term:
    """A main effect (one flag) or a two-way interaction (two flags; half the difference of the two effects)."""

    flags: tuple[str, ...]
    aliased_with: tuple[tuple[str, ...], ...]
    """Terms that this plan cannot tell from it."""
    estimate: float
    """In the metric's unit, or a ratio for speeds and times."""
    stats: Comparison

    @property
    def name(self) -> str:
        """"quantization", "quantization × cpu_optimization"."""
        return " × ".join(self.flags)


@dataclass(frozen=True)
class Factorial:
    """A factorial analysis of one mode; `terms` are ranked by size, largest first (the data of a ranked plot)."""

    metric: str
    mode: str
    where: Mapping[str, str]
    flags: tuple[str, ...]
    cells: int
    blocks: int
    df: int
    method: str
    unit: str
    terms: tuple[Term, ...]
    level: float
    """Of every term's interval."""
    middle: float
    """Median of all readings."""


def factorials(trials: Sequence[TrialRecord], metric: str = HEADLINE, level: float = 0.95,
               looked: bool | None = None) -> list[Factorial]:
    """One analysis per mode and further keys, for flags that were varied in a factorial plan; else none.

    `looked`: did the width of these intervals end the sweep? None: as its config says."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], dict[frozenset[str], list[TrialRecord]]] = defaultdict(
        lambda: defaultdict(list))
    flags_of = {trial.cell: flags_on(trial) for trial in {trial.cell: trial for trial in trials}.values()}
    if len(set(flags_of.values())) < LEAST_CELLS:
        return []
    differing = differing_keys(trials)
    for trial in valid(trials):
        groups[trial.mode, tuple(differing[trial.cell].items())][flags_of[trial.cell]].append(trial)
    how = measure(metric)
    looked = metric == looked_at(trials, "effects") if looked is None else looked
    found = []
    for (mode, where), cells in groups.items():
        values = {flags: by_block(members, metric) for flags, members in cells.items()}
        values = {flags: blocks for flags, blocks in values.items() if blocks}
        flags = sorted(frozenset().union(*values) - frozenset(values).intersection(*values)) if values else []
        if len(flags) < 2:
            continue
        x, block, y = [], [], []
        for on, by_number in values.items():
            for number, reading in by_number.items():
                x.append([1.0 if flag in on else -1.0 for flag in flags])
                block.append(number)
                y.append(reading)
        ratio = how.ratio and min(y) > 0
        margin = how.margin_at(float(np.median(y)), "ratio" if ratio else "difference")
        analysis = analyse(np.array(x), np.array(block), np.array(y), flags, step=how.step, ratio=ratio, level=level,
                           margin=margin, unit=how.unit, looked=looked)
        if analysis is not None:
            terms, df, method = analysis
            found.append(Factorial(metric, mode, dict(where), tuple(flags), len(values), len(set(block)), df, method,
                                   how.unit, tuple(terms), level_of(len(terms), level, looked), float(np.median(y))))
    return found


def analyse(x: FloatArray, block: npt.NDArray[np.int64], y: FloatArray, flags: Sequence[str], *, step: float,
            ratio: bool, level: float, margin: float, unit: str,
            looked: bool = False) -> tuple[list[Term], int, str] | None:
    """Terms ranked by size, residual df, method; None if the plan is not factorial.

    `x` has shape (n, k) with −1 (off) and 1 (on), `block` and `y` shape (n,). An effect is the mean of the cells with
    the flag on minus the mean of those with it off. Each interval is at 1 − (1 − level)/terms.
    """
    points, cell = np.unique(x, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    gram = points.T @ points
    # main effects must be orthogonal, else one flag's effect leaks into another's (one flag at a time is not factorial)
    if len(points) < LEAST_CELLS or np.any(points.sum(axis=0) != 0) or np.any(gram - np.diag(np.diag(gram))):
        return None
    names, columns, aliases = _columns(points, flags)
    design = np.column_stack([np.ones(len(points)), columns])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    contrasts = 2 * np.linalg.pinv(design)[1:]
    working = np.log(y) if ratio else np.rint(y * 2**20) / 2**20
    blocks, block_index = np.unique(block, return_inverse=True)
    block_index = block_index.reshape(-1)
    saturated = np.column_stack([np.eye(len(points))[cell], np.eye(len(blocks))[block_index][:, 1:]])
    beta, _, rank, _ = np.linalg.lstsq(saturated, working, rcond=None)
    levels = beta[:len(points)]
    df = int(len(y) - rank)
    # the cells' part of (X'X)⁻¹; contrasts sum to zero, so the block effects drop out
    spread = np.linalg.pinv(saturated.T @ saturated)[:len(points), :len(points)]
    residual = working - saturated @ beta
    method = sentence(N_("t on pooled residual of block and cell, df {n}"), n=df)
    if df <= 0:
        df = len(points) - design.shape[1]
        residual = levels - design @ np.linalg.lstsq(design, levels, rcond=None)[0]
        method = sentence(N_("t on pooled higher-order interactions (one block), df {n}"), n=df)
    variance = float(residual @ residual) / df if df > 0 else 0.0
    if variance < (2**-19) ** 2 and not ratio:
        variance = 0.0  # what floating point leaves of nothing
    smallest = float(y.min())
    floor = math.log1p(step / smallest) if ratio else step
    estimates = contrasts @ levels
    within, size = level_of(len(names), level, looked), float(np.median(np.abs(y)))
    intervals: list[Interval | None] = []
    for contrast, estimate in zip(contrasts, estimates, strict=True):
        if df <= 0:
            intervals.append(None)
            continue
        se = math.sqrt(max(0.0, variance * float(contrast @ spread @ contrast)))
        centre = float(estimate) if ratio else round(float(estimate) * 2**20) / 2**20
        intervals.append(interval_of(centre, se * math.sqrt(len(blocks)), len(blocks), se, df, floor, within,
                                     method, ratio, identical=variance == 0))
    terms = [Term(name, alias, math.exp(estimate) if ratio else float(estimate),
                  judged(interval, unit=unit, margin=margin, n_blocks=1, family=len(names) if interval else 1,
                         looked=looked, size=size))
             for name, alias, interval, estimate in zip(names, aliases, intervals, estimates, strict=True)]
    order = np.argsort(-np.abs(estimates), kind="stable")
    words = method_of(method, within, len(names), looked) if df > 0 else (
        N_("no interval: one block and no term to spare"))
    return [terms[i] for i in order], max(df, 0), words


def _columns(points: FloatArray, flags: Sequence[str]) -> tuple[list[tuple[str, ...]], FloatArray,
                                                                list[tuple[tuple[str, ...], ...]]]:
    """Names, columns of shape (cells, terms) and aliases of the terms this plan can tell apart, main effects first."""
    terms = [(i,) for i in range(len(flags))] + list(combinations(range(len(flags)), 2))
    names: list[tuple[str, ...]] = []
    columns: list[FloatArray] = []
    aliases: list[list[tuple[str, ...]]] = []
    for term in terms:
        column = np.prod(points[:, list(term)], axis=1)
        name = tuple(flags[i] for i in term)
        if abs(column.sum()) == len(column):
            continue
        for known, alias in zip(columns, aliases, strict=True):
            if abs(float(known @ column)) == len(column):
                alias.append(name)
                break
        else:
            names.append(name)
            columns.append(column)
            aliases.append([])
    return names, np.column_stack(columns), [tuple(alias) for alias in aliases]
