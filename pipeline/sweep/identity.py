"""What makes a sweep this sweep: its plan, and the environment its numbers hold for. Pure, but for records it reads.

Resuming asks both: the same plan, or it is another sweep; the same environment, or its trials cannot be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import defaults, provenance
from pipeline.engine import load_engine
from pipeline.errors import ConfigError
from pipeline.model.files import as_path
from pipeline.outcome import flatten
from pipeline.prompts import file_digest
from pipeline.record.find import Sweeps
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.sweep.cells import Cell
from pipeline.track.names import shown_param

ENVIRONMENT = ("host", "kernel", "architecture", "cpu", "cores_usable", "memory_total", "package.slackwater")
NOT_THE_PLAN = ("tracking.",)
_BY_WHAT_IS_SET = "set-"


def plan_of(cell: Cell) -> dict[str, Any]:
    """A cell's config without where its results go."""
    return {key: value for key, value in flatten(cell.config).items() if not key.startswith(NOT_THE_PLAN)}


def set_in(cell: Cell) -> dict[str, Any]:
    """What of a cell's plan is not what it would be if nobody had set it (see `defaults`)."""
    unset = defaults.unset(flatten(cell.config))
    return {key: value for key, value in plan_of(cell).items() if key not in unset or not _same(unset[key], value)}


def plan_hash(cells: Sequence[Cell], order: Sequence[Sequence[int]]) -> str:
    """The sweep's identity: SHA-256 over what is set in every cell and the order of the trials, 16 hex digits.

    A key that a later version has at its default changes nothing in it. Sweeps until 3c8a73e have a hash over every
    key, without the "set-" before it; those are told by what they stored (`changes`)."""
    plan = {"cells": [[cell.name, set_in(cell)] for cell in cells], "order": order}
    return _BY_WHAT_IS_SET + hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()[:16]


def environment(cells: Sequence[Cell]) -> dict[str, str]:
    """What must not change between two trials of one sweep: machine, kernel, engine versions, digests of models and
    of files with prompts."""
    facts = {key: value for key, value in provenance.facts().items() if key in ENVIRONMENT}
    for cell in cells:
        if (file := cell.config.prompt.file) is not None:
            facts[f"prompt.file {file}"] = f"sha256:{file_digest(file)}"
        provided = load_engine(cell.config).provenance()
        names = {"engine_version": cell.config.engine.name, "model_digest": _whose(cell)}
        facts |= {f"{key} of {name}": provided[key] for key, name in names.items() if key in provided}
    return facts


def _whose(cell: Cell) -> str:
    """Whose digest it is: a file's, by its path, since two files may be called the same; else a name's."""
    model = cell.config.model
    return str(as_path(model.path)) if model.kind == "file" and model.path else model.name


def _as_before(cells: Sequence[Cell], now: Mapping[str, str], was_here: Mapping[str, str]) -> dict[str, str]:
    """The environment under the keys of sweeps until 3c8a73e, where all files had one: the name of their config."""
    found = dict(now)
    for cell in (cell for cell in cells if cell.config.model.kind == "file"):
        digest = now.get(f"model_digest of {_whose(cell)}")
        for key in (f"model_digest of {name}" for name in ("gguf", cell.config.model.name)):
            if digest is not None and found.get(key) != was_here.get(key):
                found[key] = digest  # the one that was recorded, if any of them still has it
    return found


def changes(trials: Sequence[TrialRecord], kept: Mapping[str, Any], cells: Sequence[Cell],
            order: Sequence[Sequence[int]]) -> list[str]:
    """What differs between the plan of a stored sweep and its plan today, a line each.

    `kept`: the sweep's plan.json, empty where it cannot be read; its trials then speak for it."""
    found = []
    stored = {trial.cell: trial.params for trial in trials}
    names = {cell.name for cell in cells}
    before = [str(cell["cell"]) for cell in kept.get("cells", ())] or list(stored)
    found += [f"cell {name} is gone" for name in before if name not in names]
    if kept:
        found += [f"cell {cell.name} is new" for cell in cells if cell.name not in before]
    for cell in (cell for cell in cells if cell.name in stored):
        was, is_set = stored[cell.name], set_in(cell)
        for key, value in plan_of(cell).items():
            if key == "model.name" and cell.config.model.kind == "file":
                continue  # what a file is called
            if key in was:
                found += [f"{key}: {was[key]} → {value} ({cell.name})"] if not _same(was[key], value) else []
            elif key in is_set:  # a key that is new since, and not at its default
                found.append(f"{key}: not set → {value} ({cell.name})")
    ahead = [cells[index].name for block in order for index in block]
    if not found and kept.get("order", ahead) != ahead:
        found.append("the order of the trials, or their number")
    elif not found and not kept and not any(cell.config.design.warmup for cell in cells):
        found += [f"trial {trial.order} was {trial.cell}" for trial in trials
                  if not 0 < trial.order <= len(ahead) or ahead[trial.order - 1] != trial.cell]
    return list(dict.fromkeys(found))


def _same(was: Any, now: Any) -> bool:
    # stores until 3c8a73e have long text as it is shown: cut, with a digest of what is missing
    return shown_param(was) == shown_param(now)


def unfinished(sweeps: Sweeps, cells: Sequence[Cell], order: Sequence[Sequence[int]]) -> SweepRecord | None:
    """The newest sweep of this plan, if it was interrupted; a finished one is no reason to go on. Raises StoreError."""
    identity = plan_hash(cells, order)
    newest = {record.tags.get("plan_hash", ""): record for record in sweeps.all() if not record.is_foreign}
    if identity in newest:
        return newest[identity] if newest[identity].status == "interrupted" else None
    for known, record in reversed(newest.items()):
        if known and not known.startswith(_BY_WHAT_IS_SET) and record.status == "interrupted":
            record = sweeps.sweep(record.sweep_id)  # whose trials come here now, if an earlier version has measured it
            trials = sweeps.trials(record.sweep_id)
            if trials and not changes(trials, sweeps.folder(record.sweep_id).plan(), cells, order):
                return record
    return None


def require_same(record: SweepRecord, trials: Sequence[TrialRecord], kept: Mapping[str, Any], cells: Sequence[Cell],
                 order: Sequence[Sequence[int]], now: Mapping[str, str], accept: bool) -> list[str]:
    """The changes since the sweep began, accepted. Raises ConfigError that lists them if they were not."""
    found = changes(trials, kept, cells, order)
    known = record.tags.get("plan_hash", "")
    if not found and known.startswith(_BY_WHAT_IS_SET) and known != plan_hash(cells, order):
        found = ["the plan: a cell that had no trial yet is set differently"]
    was_here: dict[str, str] = record.tag("environment") or {}
    now = _as_before(cells, now, was_here)
    found += [f"{key}: {was} → {now.get(key, 'not known')}" for key, was in was_here.items() if was != now.get(key)]
    if found and not accept:
        lines = "\n".join(f"  {line}" for line in found[:12])
        raise ConfigError(f"{record.sweep_id} cannot be continued unchanged:\n{lines}\n--accept-change goes on and "
                          "records this; --fresh (of run) starts anew. What was measured is kept either way.")
    return found
