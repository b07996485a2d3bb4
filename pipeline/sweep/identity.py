"""What makes a sweep this sweep: its plan, and the environment its numbers hold for. Pure, but for the store it reads.

Resuming asks both: the same plan, or it is another sweep; the same environment, or its trials cannot be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import provenance
from pipeline.engine import load_engine
from pipeline.errors import ConfigError
from pipeline.outcome import flatten
from pipeline.sweep.cells import Cell
from pipeline.track.read import SweepRecord, TrialRecord
from pipeline.track.store import Store

ENVIRONMENT = ("host", "kernel", "architecture", "cpu", "cores_usable", "memory_total", "package.slackwater")
NOT_THE_PLAN = ("tracking.",)
FINAL = ("valid", "suspect")
"""Verdicts of trials that are not run again."""


def plan_of(cell: Cell) -> dict[str, Any]:
    """A cell's config without where its results go."""
    return {key: value for key, value in flatten(cell.config).items() if not key.startswith(NOT_THE_PLAN)}


def plan_hash(cells: Sequence[Cell], order: Sequence[Sequence[int]]) -> str:
    """The sweep's identity: SHA-256 over every cell's config and the order of the trials, 16 hex digits."""
    plan = {"cells": [[cell.name, plan_of(cell)] for cell in cells], "order": order}
    return hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()[:16]


def environment(cells: Sequence[Cell]) -> dict[str, str]:
    """What must not change between two trials of one sweep: machine, kernel, engine versions, model digests."""
    facts = {key: value for key, value in provenance.machine().items() if key in ENVIRONMENT}
    for cell in cells:
        provided = load_engine(cell.config).provenance()
        for key in ("engine_version", "model_digest"):
            name = cell.config.engine.name if key == "engine_version" else cell.config.model.name
            if key in provided:
                facts[f"{key} of {name}"] = provided[key]
    return facts


def changes(record: SweepRecord, trials: Sequence[TrialRecord], cells: Sequence[Cell],
            now: Mapping[str, str]) -> list[str]:
    """What differs between a stored sweep and its plan today, a line each; empty if nothing that matters."""
    found = []
    stored = {trial.cell: trial.params for trial in trials}
    names = {cell.name for cell in cells}
    found += [f"cell {name} is gone" for name in stored if name not in names]
    for cell in cells:
        was = stored.get(cell.name, {})
        found += [f"{key}: {was[key]} → {value} ({cell.name})" for key, value in plan_of(cell).items()
                  if key in was and _text(was[key]) != _text(value)]
    was_here: dict[str, str] = json.loads(record.tags.get("environment", "{}"))
    found += [f"{key}: {was} → {now.get(key, 'not known')}" for key, was in was_here.items() if was != now.get(key)]
    return list(dict.fromkeys(found))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def unfinished(store: Store, identity: str) -> SweepRecord | None:
    """The newest sweep of this plan, if it was interrupted; a finished one is no reason to go on."""
    same = [record for record in store.sweeps() if record.tags.get("plan_hash") == identity]
    return same[-1] if same and same[-1].status in ("interrupted", "unknown") else None


def require_same(record: SweepRecord, trials: Sequence[TrialRecord], cells: Sequence[Cell], identity: str,
                 now: Mapping[str, str], accept: bool) -> list[str]:
    """The changes since the sweep began, accepted. Raises ConfigError that lists them if they were not."""
    found = changes(record, trials, cells, now)
    if not found and record.tags.get("plan_hash") != identity:
        found = ["the plan: other cells, another order or another number of repetitions"]
    if found and not accept:
        lines = "\n".join(f"  {line}" for line in found[:12])
        raise ConfigError(f"{record.sweep_id} cannot go on as it began:\n{lines}\n--accept-change goes on and records "
                          "this; --fresh (of run) starts anew. What was measured is kept either way.")
    return found
