"""Sweeps and trials as records, read from any store. Statistics over them live in stats/, tables in report/."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.record.owner import is_dead
from pipeline.record.reason import with_codes_of
from pipeline.track.location import Location
from pipeline.track.names import decode_param, split_groups, split_lines
from pipeline.track.source import Run, Source

SETTINGS = "settings."
"""Params below this name are the server settings a cell resolved to; the others are the config."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the store has it."""

    run_id: str
    sweep_id: str
    cell: str
    repetition: int
    order: int
    block: int
    mode: str
    infer_os: str
    verdict: str
    """valid, suspect, failed or interrupted."""
    reasons: Sequence[str]
    """Each is a Reason, as notes and suspect phases are."""
    notes: Sequence[str]
    started_ms: int
    ended_ms: int | None
    params: Mapping[str, Any]
    """The resolved config, flattened; values as the config had them."""
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Metric → the last turn's value."""
    turns: Mapping[str, Mapping[int, float]]
    """Metric → turn → value; turn 0 for what belongs to the trial and not to a turn."""
    tags: Mapping[str, str]
    artifact_uri: str
    suspect_phases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Phase → why its values enter no comparison."""
    method: int = 1
    """How it was measured (result.METHOD)."""


@dataclass(frozen=True)
class SweepRecord:
    """One sweep as the store has it. `run_id` is None if its trials are there and its summary run is not."""

    run_id: str | None
    sweep_id: str
    experiment: str
    question: str
    command: str
    status: str
    """running, finished, failed or interrupted; unknown without a summary run."""
    planned_trials: int | None
    trials: Mapping[str, int]
    """Verdict → number of trials logged."""
    started_ms: int
    ended_ms: int | None
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifact_uri: str = ""
    experiment_id: str = ""
    """MLflow's experiment: the page that its runs stand on."""


_STATUS = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}


def read_sweeps(source: Source) -> list[SweepRecord]:
    """All sweeps, the oldest first. Raises StoreError."""
    counts = source.verdicts()
    records = [_sweep(run, counts.get(run.tags.get("sweep_id", ""), {})) for run in source.runs({"kind": "sweep"})]
    for sweep_id in counts.keys() - {record.sweep_id for record in records}:
        runs = source.runs({"kind": "trial", "sweep_id": sweep_id}, values=False)
        if runs:
            ended_ms = max(run.ended_ms or 0 for run in runs) or None
            records.append(SweepRecord(None, sweep_id, "", "", "", "unknown", None, counts[sweep_id],
                                       runs[0].started_ms, ended_ms, experiment_id=runs[0].experiment_id))
    return sorted(records, key=lambda record: (record.started_ms, record.sweep_id))


def read_trials(source: Source, sweep_id: str | None = None, metrics: Collection[str] | None = None,
                cell: str | None = None) -> list[TrialRecord]:
    """The trials of a sweep in the order they ran, or of all sweeps by their start; with these metrics only, and of
    this cell only, if given. Raises StoreError."""
    tags = {"kind": "trial"} | ({"sweep_id": sweep_id} if sweep_id is not None else {})
    tags |= {"cell": cell} if cell is not None else {}
    runs = source.runs(tags, metrics=metrics)
    # runs of one cell share their params, and so their records do
    decoded = {id(run.params): _decode(run.params) for run in {id(run.params): run for run in runs}.values()}
    records = [_trial(run, *decoded[id(run.params)]) for run in runs if "cell" in run.tags]
    return sorted(records, key=lambda record: record.order) if sweep_id is not None else records


def read_trial(source: Source, run_id: str) -> TrialRecord | None:
    """The trial that is this run; None if there is none. Raises StoreError."""
    found = [run for run in source.runs({"kind": "trial"}, run_id=run_id) if "cell" in run.tags]
    return _trial(found[0], *_decode(found[0].params)) if found else None


def choose_sweep(records: Sequence[SweepRecord], name: str, location: Location) -> SweepRecord:
    """The sweep called `name`: an id, a prefix only one of them has, or `last`. Raises ConfigError with candidates."""
    if not records:
        raise ConfigError(f"There is no sweep in {location.shown} yet. "
                          f"`slackwater run experiment=mode_gap{location.setting}` makes one.")
    if name == "last":
        return records[-1]
    exact = [record for record in records if record.sweep_id == name]
    found = exact or [record for record in records if record.sweep_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(_("No sweep in {store} has an id that begins with '{name}'. The latest are:\n{listed}\n"
                            "`slackwater runs{option}` lists all; `last` is the latest.").format(
                                store=location.shown, name=name, listed=_listing(records), option=location.option))
    raise ConfigError(f"{name!r} is the beginning of {len(found)} sweep ids. Give more of the id:\n{_listing(found)}")


def json_tag(tags: Mapping[str, str], name: str) -> Any:
    """What a tag of a sweep holds as JSON; None if it has none, or one that an earlier version has cut."""
    try:
        return json.loads(tags.get(name, "null"))
    except ValueError:
        return None


def _listing(records: Sequence[SweepRecord], limit: int = 8) -> str:
    lines = [f"  {record.sweep_id}  {datetime.fromtimestamp(record.started_ms / 1000):%Y-%m-%d %H:%M}  "
             f"{record.experiment or record.question}".rstrip() for record in records[::-1][:limit]]
    return "\n".join(lines + ([f"  and {len(records) - limit} more"] if len(records) > limit else []))


def _sweep(run: Run, trials: Mapping[str, int]) -> SweepRecord:
    tags = run.tags
    planned = tags.get("planned_trials", "")
    status = _STATUS.get(run.status, "unknown")
    if status == "running" and is_dead(tags, run.started_ms):
        status = "interrupted"  # killed: whoever opens the store for writing next writes it down
    return SweepRecord(run.run_id, tags.get("sweep_id", ""), tags.get("experiment", ""), tags.get("question", ""),
                       tags.get("command", ""), status,
                       int(planned) if planned.isdigit() else None, dict(trials), run.started_ms, run.ended_ms,
                       tags, run.metrics, run.artifact_uri, run.experiment_id)


def _decode(params: Mapping[str, str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The config and the server settings among a run's params."""
    values = {name: decode_param(text) for name, text in params.items()}
    return ({name: value for name, value in values.items() if not name.startswith(SETTINGS)},
            {name.removeprefix(SETTINGS): value for name, value in values.items() if name.startswith(SETTINGS)})


def _trial(run: Run, params: Mapping[str, Any], settings: Mapping[str, Any]) -> TrialRecord:
    tags = run.tags
    return TrialRecord(
        run_id=run.run_id, sweep_id=tags.get("sweep_id", ""), cell=tags["cell"], repetition=_whole(tags, "repetition"),
        order=_whole(tags, "order"), block=_whole(tags, "block"), mode=tags.get("mode", ""),
        infer_os=tags.get("infer_os", ""), verdict=tags.get("verdict", "interrupted"),
        started_ms=run.started_ms, ended_ms=run.ended_ms,
        params=params, settings=settings, metrics=run.metrics, turns=run.turns, tags=tags,
        artifact_uri=run.artifact_uri, method=_whole(tags, "method") or 1, **with_codes_of({
            "reasons": split_lines(tags.get("reasons", "")), "notes": split_lines(tags.get("notes", "")),
            "suspect_phases": split_groups(tags.get("suspect_phases", ""))}, json_tag(tags, "reason_codes")))


def _whole(tags: Mapping[str, str], name: str) -> int:
    return int(tags[name]) if tags.get(name, "").isdigit() else 0
