"""What a person names on the command line: a sweep, a cell of one, a run, or an exported file. Found, not judged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.track.archive import Archive
from pipeline.track.artifacts import Artifacts
from pipeline.track.location import named
from pipeline.track.read import SweepRecord, TrialRecord
from pipeline.track.store import open_store

_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Subject:
    """Trials that were named together."""

    name: str
    """As it was typed."""
    sweep: SweepRecord
    """The sweep they are of."""
    trials: Sequence[TrialRecord]
    """Of the sweep, the cell or the run; at least one."""
    whole_sweep: Sequence[TrialRecord]
    plan: Mapping[str, Any]
    """plan.json of the sweep; empty if it was not kept."""
    cell: str = ""
    """The cell that was named, or the cell of the run; "" for a whole sweep."""
    run_id: str = ""
    """The run that was named."""
    source: str = ""
    """The store or file it was found in, for a person."""
    artifact: Callable[[TrialRecord, str], bytes | None] = field(default=lambda trial, name: None, repr=False)
    """A file of one of the trials, such as config.yaml; None if it was not kept. Raises StoreError, ConfigError."""
    option: str = ""
    """What a command needs behind a sweep's id to mean that store."""


def find(name: str, uri: str | None = None) -> Subject:
    """SWEEP, SWEEP:CELL, RUN, FILE or FILE:CELL, where SWEEP is an id, a prefix or `last` and RUN an MLflow run id.

    A file that is there wins. Raises ConfigError (nothing of that name, no trial in it) and StoreError."""
    for part, cell in [(name, ""), *((name[:at], name[at + 1:]) for at, sign in enumerate(name) if sign == ":")]:
        if Path(part).is_file():
            return _in_file(name, Path(part), cell)
    if "/" in name.partition("=")[0]:
        raise ConfigError(f"There is no file {name}. Expected a sweep, SWEEP:CELL, a run id, or a file that "
                          "`slackwater export` wrote.")
    store = open_store(named(uri), write=False)
    artifacts = Artifacts(store.location)

    def plan_of(sweep: SweepRecord) -> Mapping[str, Any]:
        if sweep.run_id is None:
            return {}
        return read_plan(artifacts.read(sweep.run_id, sweep.artifact_uri, "plan.json"))

    def of_trial(trial: TrialRecord, name: str) -> bytes | None:
        return artifacts.read(trial.run_id, trial.artifact_uri, name)

    sweeps = store.sweeps()
    if _RUN_ID.fullmatch(name):
        summary = next((sweep for sweep in sweeps if sweep.run_id == name), None)
        trial = store.find_trial(name) if summary is None else None
        if trial is not None:
            sweep = next(sweep for sweep in sweeps if sweep.sweep_id == trial.sweep_id)
            whole = store.trials(sweep.sweep_id)
            return Subject(name, sweep, [trial], whole, plan_of(sweep), trial.cell, name, store.location.shown,
                           of_trial, store.location.option)
        if summary is None:
            raise ConfigError(f"There is no slackwater run {name} in {store.location.shown}. "
                              f"`slackwater runs{store.location.option}` lists the sweeps.")
        sweep, cell = summary, ""
    else:
        sweep_name, _, cell = name.partition(":")
        sweep = store.find_sweep(sweep_name)
    trials = store.trials(sweep.sweep_id)
    return replace(_subject(name, sweep, trials, plan_of(sweep), cell, store.location.shown), artifact=of_trial,
                   option=store.location.option)


def _in_file(name: str, path: Path, cell: str) -> Subject:
    with Archive(path) as file:
        sweep, trials = file.records()
        found = _subject(name, sweep, trials, file.summary.plan, cell, str(path))

    def of_trial(trial: TrialRecord, name: str) -> bytes | None:
        with Archive(path) as again:
            return dict(again.artifacts(trial.order)).get(name)

    return replace(found, artifact=of_trial)


def _subject(name: str, sweep: SweepRecord, trials: Sequence[TrialRecord], plan: Mapping[str, Any], cell: str,
             source: str) -> Subject:
    if not trials:
        raise ConfigError(f"{sweep.sweep_id} has no trial: nothing was measured in it.")
    chosen = _cell(sweep, trials, cell) if cell else ""
    return Subject(name, sweep, [trial for trial in trials if chosen in ("", trial.cell)], trials, plan, chosen, "",
                   source)


def _cell(sweep: SweepRecord, trials: Sequence[TrialRecord], name: str) -> str:
    cells = list(dict.fromkeys(trial.cell for trial in trials))
    found = [cell for cell in cells if cell == name] or [cell for cell in cells if cell.startswith(name)]
    if len(found) == 1:
        return found[0]
    what = "has no cell" if not found else "has several cells"
    listing = "\n".join(f"  {sweep.sweep_id}:{cell}" for cell in sorted(found or cells))
    raise ConfigError(f"{sweep.sweep_id} {what} that begin{'s' * (not found)} with {name!r}. Name one of:\n{listing}")


def read_plan(text: bytes | str | None) -> Mapping[str, Any]:
    """plan.json of a sweep; empty if it was not kept, or is damaged."""
    try:
        plan = json.loads(text or b"{}")
    except ValueError:
        return {}
    return plan if isinstance(plan, dict) else {}
