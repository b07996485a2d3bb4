"""From trials to what the user asks: the cells, the gap between modes, the effect of the flags.

Only valid trials enter; what is left out is listed. Drift, slopes and factorial plans have modules of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.record.trial import TrialRecord
from pipeline.stats.arms import differing_keys, effect_groups, mode_pairs, natural
from pipeline.stats.comparison import Comparison, compare, median_of
from pipeline.stats.measures import HEADLINE, measure, phase_of
from pipeline.stats.trials import MLFLOW_INF, by_block, counted, last_turn, looked_at, sound_metrics, valid

AS_FOUND_METRICS = ("as_found/system_used_pct", "as_found/tree_rss_mib")
UNIFIED_METRICS = (
    HEADLINE, "stabilized/system_used_pct",
    "post_generation/tree_rss_mib", "post_generation/system_used_pct",
    "during_generation/tree_rss_peak_mib", "during_generation/system_used_peak_pct",
)
"""The gap between modes; never `pre_generation`, where one mode has loaded its model and the other has not."""
EFFECT_METRICS = (
    HEADLINE, "during_generation/tree_rss_peak_mib", "post_generation/tree_rss_mib", "released/tree_rss_mib",
    "stabilized/system_used_pct", "during_generation/system_used_peak_pct", "stabilized/tree_anon_mib",
    "stabilized/tree_pss_mib", "released/half_life_s", "decode/tokens_per_s",
    "during_generation/time_to_first_token_s", "load/duration_s",
)
"""What an optimisation saves, and what it costs."""


@dataclass(frozen=True)
class LeftOut:
    """A trial that was measured and does not count."""

    run_id: str
    order: int
    repetition: int
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class CellSummary:
    """One cell over its valid trials. `median`, `mad` and `jumped_share`: metric → value of the run (last turn)."""

    cell: str
    mode: str
    infer_os: str
    where: Mapping[str, str]
    """Config keys besides mode and flags in which this sweep's cells differ."""
    n: int
    n_valid: int
    left_out: tuple[LeftOut, ...]
    median: Mapping[str, float]
    mad: Mapping[str, float]
    """Median absolute deviation, not scaled."""
    jumped_share: Mapping[str, float]
    """Share of valid trials far from the median; above 0, intervals cover less than they say."""

    @property
    def n_left_out(self) -> int:
        """Trials measured and not counted."""
        return len(self.left_out)


@dataclass(frozen=True, kw_only=True)
class GapRow:
    """oneshot − interactive for one arm of the flags."""

    infer_os: str
    metric: str
    phase: str
    turn: int
    """The interactive turn that is compared; a oneshot trial has turn 1 only. 0 for as found."""
    interactive: float | None
    oneshot: float | None
    difference: float | None
    where: Mapping[str, str]
    stats: Comparison


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The difference between modes, read twice from the same trials."""

    as_found: tuple[GapRow, ...]
    unified: tuple[GapRow, ...]


@dataclass(frozen=True, kw_only=True)
class EffectRow:
    """on − off within one mode; of a knob, its value − its first one."""

    metric: str
    mode: str
    flag: str
    """What is on in one arm and off in the other: "on" for the preset, else the flags, joined by +; of a knob its
    value, "cache_type=q8_0"."""
    on: float | None
    off: float | None
    difference: float | None
    relative_pct: float | None
    n_on: int
    n_off: int
    question: bool
    """Is this the sweep's question? The rest is exploration."""
    where: Mapping[str, str]
    stats: Comparison
    knob: str = ""
    """The knob whose effect this is; "" for flags."""
    against: str = ""
    """The knob's value in the arm that it is compared with."""


def cells(trials: Sequence[TrialRecord]) -> list[CellSummary]:
    """One summary per cell, in the order of modes and flags. Cells without a valid trial are there, without medians."""
    by_cell: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in counted(trials):
        by_cell[trial.cell].append(trial)
    differing = differing_keys(trials)
    found = []
    for cell, members in by_cell.items():
        good = valid(members)
        middle, mad, jumped = _spread(good)
        found.append(CellSummary(
            cell, members[0].mode, members[0].infer_os, differing[cell], len(members), len(good),
            tuple(LeftOut(t.run_id, t.order, t.repetition, t.verdict, tuple(t.reasons))
                  for t in sorted(members, key=lambda t: t.order) if t.verdict != "valid"),
            middle, mad, jumped))
    return sorted(found, key=lambda c: (c.mode != "oneshot", c.mode, [natural(v) for v in c.where.values()],
                                        c.infer_os != "off", c.infer_os != "on", c.infer_os, c.cell))


def _spread(trials: Sequence[TrialRecord]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Metric → median, MAD, share of trials that jumped; metrics that no trial has are absent.

    A trial has jumped if it is further from the median than 6 scaled MADs, 1 % of the median and the meter's step.
    """
    measured_of = [sound_metrics(trial) for trial in trials]
    names = sorted({name for metrics in measured_of for name in metrics})
    nan = float("nan")
    table = np.array([[metrics.get(name, nan) for name in names] for metrics in measured_of], dtype=np.float64)
    table = table.reshape(len(trials), len(names))
    table[~np.isfinite(table) | (np.abs(table) > MLFLOW_INF)] = nan
    measured = np.flatnonzero(np.isfinite(table).sum(axis=0))
    names, table = [names[i] for i in measured], table[:, measured]
    middle = np.nanmedian(table, axis=0)
    distance = np.abs(table - middle)
    mad = np.nanmedian(distance, axis=0)
    steps = np.array([measure(name).step for name in names])
    limit = np.maximum(np.maximum(6 * 1.4826 * mad, 0.01 * np.abs(middle)), steps)
    count = np.isfinite(table).sum(axis=0)
    jumped = np.where(count >= 3, (distance > limit).sum(axis=0) / np.maximum(count, 1), 0.0)
    return (dict(zip(names, middle.tolist(), strict=True)), dict(zip(names, mad.tolist(), strict=True)),
            dict(zip(names, jumped.tolist(), strict=True)))


def gap(trials: Sequence[TrialRecord], level: float = 0.95, looked: str | None = None) -> Gap:
    """oneshot − interactive for every arm of the flags that was run in both modes, as found and unified.

    Unified rows compare turn 1, and beside it the interactive mode's last turn. Metrics that neither mode has
    are left out; one that is missing on one side gives a row with None. `looked`: the metric whose gap ended the sweep
    by its width, "" for none; None: as the config says.
    """
    as_found: list[GapRow] = []
    unified: list[GapRow] = []
    looked = looked_at(trials, "gap") if looked is None else looked
    for infer_os, where, oneshot, interactive in mode_pairs(trials):
        last = last_turn(interactive)
        for metric in AS_FOUND_METRICS:
            as_found += _gap_row(oneshot, interactive, infer_os, where, metric, None, level, False)
        for metric in dict.fromkeys((*UNIFIED_METRICS, *filter(None, [looked]))):
            for turn in sorted({1, last}):
                unified += _gap_row(oneshot, interactive, infer_os, where, metric, turn, level,
                                    metric == looked and turn == 1)
    return Gap(as_found=tuple(as_found), unified=tuple(unified))


def question_metrics(trials: Sequence[TrialRecord]) -> tuple[str, ...]:
    """What the sweep asks about, as its config says; settled tree RSS where it says nothing."""
    said = next((trial.params["question_metrics"] for trial in trials if trial.params.get("question_metrics")), None)
    return tuple(map(str, said)) if isinstance(said, list | tuple) else (HEADLINE,)


def effects(trials: Sequence[TrialRecord], metrics: Sequence[str] = EFFECT_METRICS,
            question: Sequence[str] | None = None, level: float = 0.95, looked: str | None = None) -> list[EffectRow]:
    """on − off within each mode, and each value of a knob against its first; k arms against the same reference are a
    family (Bonferroni).

    `question`: the metrics that the sweep asks about, which come first; None: as its config says. Cells that also
    differ in another key are only compared where that key is the same. No off arm: the arm with the fewest flags
    stands in for it, and the flags that come on top are named. `looked` as in `gap`.
    """
    asked = question_metrics(trials) if question is None else question
    found: list[EffectRow] = []
    groups, looked = effect_groups(trials), looked_at(trials, "effects") if looked is None else looked
    for metric in dict.fromkeys((*asked, *metrics, *filter(None, [looked]))):
        for group in groups:
            off_values = by_block(group.off, metric)
            measured = [(flag, values) for flag, values in ((flag, by_block(arm, metric)) for flag, arm in group.arms)
                        if values or off_values]
            reference = median_of(off_values)
            compared = compare([values for _, values in measured], off_values, metric, level, metric == looked)
            for (flag, on_values), stats in zip(measured, compared, strict=True):
                on = median_of(on_values)
                difference = None if on is None or reference is None else on - reference
                found.append(EffectRow(
                    metric=metric, mode=group.mode, flag=f"{group.knob}={flag}" if group.knob else flag, on=on,
                    off=reference, difference=difference,
                    relative_pct=100 * difference / reference if difference is not None and reference else None,
                    n_on=len(on_values), n_off=len(off_values), question=metric in asked, where=group.where,
                    stats=stats, knob=group.knob, against=group.against))
    return found


def _gap_row(oneshot: Sequence[TrialRecord], interactive: Sequence[TrialRecord], infer_os: str,
             where: Mapping[str, str], metric: str, turn: int | None, level: float, looked: bool) -> list[GapRow]:
    one = by_block(oneshot, metric, None if turn is None else 1)
    many = by_block(interactive, metric, turn)
    if not one and not many:
        return []
    a, b = median_of(one), median_of(many)
    return [GapRow(infer_os=infer_os, metric=metric, phase=phase_of(metric), turn=turn or 0, interactive=b, oneshot=a,
                   difference=None if a is None or b is None else a - b, where=where,
                   stats=compare([one], many, metric, level, looked)[0])]
