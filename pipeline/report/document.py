"""The JSON document of `runs --json` and `show --json`: stable names, numbers as numbers, null for not measured.

Also the analysis that every report shares, computed once. What the page looks like is defined in `sweep_page`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from statistics import median
from typing import Any

from pipeline.record.reason import codes_of
from pipeline.record.trial import TrialRecord
from pipeline.stats.arms import refused
from pipeline.stats.context import ContextUse, context_use
from pipeline.stats.drift import Drift, drift
from pipeline.stats.factorial import Factorial, factorials
from pipeline.stats.growth import Growth, growths
from pipeline.stats.measures import HEADLINE
from pipeline.stats.slope import Slope, slopes
from pipeline.stats.summary import CellSummary, EffectRow, Gap, cells, effects, gap, question_metrics
from pipeline.stats.trials import WARM_UP, counted, finite, methods, valid

SCHEMA_VERSION = 1
"""Of the document. Names are only added within a version, never changed or removed."""


NEIGHBOURS = "trial/neighbours_cores"
FACTORIAL_METRICS = (HEADLINE, "during_generation/tree_rss_peak_mib", "decode/tokens_per_s")


@dataclass(frozen=True)
class Sweep:
    """What is known of a sweep besides its trials. "" and None: not recorded."""

    sweep_id: str
    question: str = ""
    name: str = ""
    """The experiment's name; "" for a sweep typed by hand."""
    model: str = ""
    engine: str = ""
    engine_version: str = ""
    num_ctx: int | None = None
    status: str = "finished"
    """running, finished, failed (some trial did) or interrupted."""
    started_ms: int | None = None
    """Unix time, milliseconds."""
    ended_ms: int | None = None
    trials_planned: int | None = None
    trials_finished: int | None = None
    """Only for lists of sweeps, where the trials themselves are not read."""
    trials_valid: int | None = None
    run_id: str = ""
    """The summary run in MLflow."""
    command: str = ""
    """Runs it again."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the document (machine, seed, skipped cells with the reason, …)."""


@dataclass(frozen=True)
class Analysis:
    """Everything that is computed from a sweep's trials."""

    cells: Sequence[CellSummary]
    gap: Gap
    effects: Sequence[EffectRow]
    notes: Sequence[tuple[int, str]]
    """(order of the trial, note) of valid trials: what the user should know although it changes no number."""
    blocks: int
    factorial: Sequence[Factorial] = ()
    """FACTORIAL_METRICS per mode; empty unless the flags were varied in a factorial plan."""
    slopes: Sequence[Slope] = ()
    """Settled tree RSS against num_ctx; empty unless that was varied."""
    drift: Sequence[Drift] = ()
    refused: Sequence[str] = ()
    """Comparisons that are not made, since the arms did different work; a sentence each."""
    question: Sequence[str] = (HEADLINE,)
    """The metrics that answer the sweep's question; the rest is exploration."""
    growths: Sequence[Growth] = ()
    """Settled tree RSS from turn to turn, of the cells with three turns or more."""
    warm_ups: Sequence[tuple[int, str]] = ()
    """(order, cell) of the trials that only warmed caches and are in nothing above."""
    neighbours_cores: Sequence[float] = ()
    """Cores that other processes kept busy, of each valid trial, in the order they ran."""
    context: ContextUse | None = None
    """Of the cell that used least of its context; None: not known."""
    methods: Sequence[int] = ()
    """How the trials were measured (result.METHOD): more than one in a sweep that a later version went on with."""


def analyse(trials: Sequence[TrialRecord]) -> Analysis:
    """Everything of one sweep's trials. Works for none, one, or only failed ones."""
    notes = [(t.order, note) for t in sorted(trials, key=lambda t: t.order) if t.verdict == "valid" for note in t.notes]
    question = question_metrics(trials)
    blocks = len({t.block for t in counted(trials)})
    planned = [found for metric in dict.fromkeys((*question, *FACTORIAL_METRICS))
               for found in factorials(trials, metric)]
    return Analysis(cells(trials), gap(trials), effects(trials), notes, blocks, planned, slopes(trials), drift(trials),
                    refused(trials), question, growths(trials),
                    [(t.order, t.cell) for t in sorted(trials, key=lambda t: t.order) if t.verdict == WARM_UP],
                    [cores for t in sorted(valid(trials), key=lambda t: t.order)
                     if (cores := finite(t.metrics.get(NEIGHBOURS))) is not None], context_use(trials), methods(trials))


def document(sweep: Sweep, trials: Sequence[TrialRecord], analysis: Analysis, superseded: Sequence[TrialRecord] = (),
             deleted: Collection[str] = ()) -> dict[str, Any]:
    """One sweep as a JSON-ready value: schema_version, sweep, trials, cells, gap, effects.

    `superseded`: attempts that do not count, since a further one does or the user deleted them (`deleted`: names)."""
    facts = asdict(sweep)
    facts.update(facts.pop("extra"))
    found: dict[str, Any] = plain({
        "schema_version": SCHEMA_VERSION,
        "sweep": facts,
        "trials": [],
        "cells": [{**asdict(cell), "n_left_out": cell.n_left_out} for cell in analysis.cells],
        "gap": {"as_found": [_row(row) for row in analysis.gap.as_found],
                "unified": [_row(row) for row in analysis.gap.unified]},
        "question_metrics": list(analysis.question),
        "methods": list(analysis.methods),
        "effects": [_row(row) for row in analysis.effects],
        "refused": list(analysis.refused),
        "factorial": [_factorial(one) for one in analysis.factorial],
        "slopes": [asdict(slope) for slope in analysis.slopes],
        "growth": [_row(growth) for growth in analysis.growths],
        "neighbours": {"trials": len(analysis.neighbours_cores),
                       "median_cores": median(analysis.neighbours_cores) if analysis.neighbours_cores else None,
                       "most_cores": max(analysis.neighbours_cores, default=None)},
        "context": {**asdict(context), "used_pct": context.pct, "note": context.note} if (
            context := analysis.context) else None,
        "drift": [{**asdict(test), "text": test.text} for test in analysis.drift],
    })
    # not through plain(): ten thousand trials hold millions of numbers, and _trial gives plain ones
    found["trials"] = [_trial(trial) for trial in sorted(trials, key=lambda t: t.order)]
    found["superseded"] = [{**_trial(trial), "attempt": trial.attempt, "deleted": trial.name in deleted}
                           for trial in superseded]
    return found


def runs_document(sweeps: Sequence[Sweep], last: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The list of sweeps, newest first, as `sweeps`; beside it the document of the newest one, if given."""
    listed = [{**{k: v for k, v in asdict(sweep).items() if k != "extra"}, **sweep.extra} for sweep in sweeps]
    empty = {"sweep": {}, "trials": [], "cells": [], "gap": {"as_found": [], "unified": []}, "effects": [],
             "factorial": [], "slopes": [], "drift": []}
    found: dict[str, Any] = plain({"schema_version": SCHEMA_VERSION, "sweeps": listed, **empty, **(last or {})})
    return found


def _trial(trial: TrialRecord) -> dict[str, Any]:
    return {"run_id": trial.run_id, "cell": trial.cell, "repetition": trial.repetition, "order": trial.order,
            "block": trial.block, "mode": trial.mode, "infer_os": trial.infer_os, "verdict": trial.verdict,
            "method": trial.method,
            "started_ms": trial.started_ms, "ended_ms": trial.ended_ms,
            "reasons": list(trial.reasons), "notes": list(trial.notes),
            "suspect_phases": {phase: list(why) for phase, why in trial.suspect_phases.items()},
            "reason_codes": codes_of(trial),
            "params": plain(trial.params),
            "metrics": {name: finite(number) for name, number in trial.metrics.items()},
            "turns": {name: {str(turn): finite(number) for turn, number in by_turn.items()}
                      for name, by_turn in trial.turns.items() if any(turn > 1 for turn in by_turn)}}


def _row(row: Any) -> dict[str, Any]:
    """A row of a comparison with its statistics on the same level."""
    fields = asdict(row)
    stats = fields.pop("stats")
    return {**fields, **stats}


def _factorial(found: Factorial) -> dict[str, Any]:
    terms = [{"name": term.name, "flags": term.flags,
              "aliased_with": [" × ".join(alias) for alias in term.aliased_with], **asdict(term.stats),
              "estimate": term.estimate}
             for term in found.terms]
    return {**asdict(found), "terms": terms}


def plain(value: Any) -> Any:
    """The value as JSON knows it: mappings, lists, text, numbers; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return str(value)
