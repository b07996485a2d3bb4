"""What statistics need of a trial, and which trials may be compared with which.

Values only: where trials are stored is defined in `track`, what is computed from them in the other modules here.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from pipeline.record.trial import TrialRecord
from pipeline.stats.measures import phase_of

SWEPT_KNOBS = "swept_knobs"
"""The tag of a trial that says which knobs its sweep varies, and over which values (JSON)."""
KNOBS = ("knob.", "engine.knobs.")
"""What the config keys of a knob begin with."""
WARM_UP = "warm-up"
"""The verdict of a trial that only warmed caches."""
_MOST_BLOCKS = 2**20
MLFLOW_INF = 1.7e308
"""MLflow stores ±inf as ±1.797e308."""


def finite(value: float | None) -> float | None:
    """The value, or None for what was not measured (absent, NaN, ±inf, or MLflow's stand-in for inf)."""
    if value is None or not math.isfinite(value) or abs(value) > MLFLOW_INF:
        return None
    return value


def sound(trial: TrialRecord, metric: str) -> bool:
    """Is this metric's phase one that counts in this trial?"""
    return phase_of(metric) not in trial.suspect_phases


def sound_metrics(trial: TrialRecord) -> Mapping[str, float]:
    """Metric → the last turn's value, those of suspect phases left out."""
    if not trial.suspect_phases:
        return trial.metrics
    return {name: number for name, number in trial.metrics.items() if sound(trial, name)}


def value(trial: TrialRecord, metric: str, turn: int | None = None) -> float | None:
    """The metric of a trial at a turn; `turn=None`: the run's value. None: not measured, or of a suspect phase."""
    if not sound(trial, metric):
        return None
    if turn is None:
        return finite(trial.metrics.get(metric))
    by_turn = trial.turns.get(metric, {})
    if turn in by_turn:
        return finite(by_turn[turn])
    # A metric logged without turns, or with one only, has but one value, and turn 1 is where it belongs.
    if turn == 1 and not any(t > 1 for t in by_turn):
        return finite(trial.metrics.get(metric))
    return None


def last_turn(trials: Iterable[TrialRecord]) -> int:
    """The highest turn any of these trials logged; at least 1."""
    return max((turn for trial in trials for by_turn in trial.turns.values() for turn in by_turn), default=1) or 1


Given = TypeVar("Given", bound=TrialRecord)


def valid(trials: Iterable[Given]) -> list[Given]:
    """Those that may enter a comparison."""
    return [trial for trial in trials if trial.verdict == "valid"]


def looked_at(trials: Iterable[TrialRecord], of: str) -> str:
    """The metric whose interval ended the sweep (stop=precision) among the `effects` or the `gap`; "" if none did."""
    params = next((trial.params for trial in trials), {})
    stopped = params.get("stop.name") == "precision" and params.get("stop.of") == of
    return str(params.get("stop.metric", "")) if stopped else ""


def counted(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Those that are of the sweep proper: all but warm-ups, whose whole purpose is to be run first."""
    return [trial for trial in trials if trial.verdict != WARM_UP]


def methods(trials: Iterable[TrialRecord]) -> list[int]:
    """The methods (record/trial.py METHOD) that the valid trials were measured by."""
    return sorted({trial.method for trial in valid(trials)})


def flags_on(trial: TrialRecord) -> frozenset[str]:
    """Names of the infer_os flags that are on, from the config; from the label if the config was not logged."""
    flags = {key.removeprefix("infer_os."): text for key, text in trial.params.items() if key.startswith("infer_os.")}
    if flags:
        return frozenset(name for name, text in flags.items() if str(text).lower() in ("true", "1", "on"))
    return frozenset() if trial.infer_os == "off" else frozenset(trial.infer_os.split("+"))


def varied(trials: Sequence[TrialRecord], ignore: Sequence[str]) -> dict[str, dict[str, str]]:
    """Cell → {config key: value} for the keys in which cells differ, keys with a prefix in `ignore` left out.

    Keys that change from trial to trial inside a cell say nothing about the cell and are dropped. Of several
    keys that always change together (a config group brings many) one stands for all: the group's name if it has one.
    """
    by_cell: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        by_cell[trial.cell].append(trial)
    cells = sorted(by_cell)
    ignored = (*ignore, "place.")
    first = {cell: {key: str(text) for key, text in by_cell[cell][0].params.items() if not key.startswith(ignored)}
             for cell in cells}
    partitions: dict[tuple[int, ...], str] = {}
    for key in sorted({key for params in first.values() for key in params},
                      key=lambda key: (not key.endswith(".name"), key.count("."), key)):
        texts = [first[cell].get(key, "") for cell in cells]
        if len(set(texts)) > 1 and all(str(trial.params.get(key, "")) == text
                                       for cell, text in zip(cells, texts, strict=True) for trial in by_cell[cell]):
            partitions.setdefault(tuple(texts.index(text) for text in texts), key)
    keys = sorted(partitions.values())
    return {cell: {key: first[cell].get(key, "") for key in keys} for cell in cells}


def swept_knobs(trials: Iterable[TrialRecord]) -> dict[str, list[str]]:
    """The knobs that the sweep varies, by config key → their values as they were written, the reference first, as the
    trials are tagged; empty for sweeps of before that."""
    for trial in trials:
        if text := getattr(trial, "tags", {}).get(SWEPT_KNOBS):
            return {str(key): [str(value) for value in values] for key, values in json.loads(text).items()}
    return {}


def block_of(trial: TrialRecord) -> int:
    """The block that pairs it with others. What one version began and a later one continued is not a pair: trials of
    two methods stand in blocks of their own."""
    return (trial.block or trial.repetition) + (trial.method - 1) * _MOST_BLOCKS


def by_block(trials: Iterable[TrialRecord], metric: str, turn: int | None = None) -> dict[int, float]:
    """Block → value of the valid trials (their mean, should a block hold the cell twice); left out is what was not
    measured, and what belongs to a suspect phase."""
    blocks: dict[int, float] = {}
    again: dict[int, list[float]] = {}
    for trial in trials:
        if trial.verdict != "valid":
            continue
        number = value(trial, metric, turn)
        if number is None:
            continue
        block = block_of(trial)
        if block in blocks:
            again.setdefault(block, [blocks[block]]).append(number)
        else:
            blocks[block] = number
    blocks.update({block: sum(numbers) / len(numbers) for block, numbers in again.items()})
    return dict(sorted(blocks.items()))
