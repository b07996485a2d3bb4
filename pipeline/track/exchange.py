"""A sweep from a store into a file, and from a file into any store. The file itself is archive.py's business."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pipeline.errors import ConfigError
from pipeline.record.reason import INTERRUPTED, Reason, as_reason
from pipeline.result import ARTIFACTS, TrialResult, Verdict
from pipeline.track import archive
from pipeline.track.archive import Archive
from pipeline.track.artifacts import Artifacts
from pipeline.track.read import SweepRecord, TrialRecord
from pipeline.track.source import PARAMS_DIGEST
from pipeline.track.store import Store
from pipeline.track.subject import read_plan
from pipeline.track.summary import SweepStatus, SweepSummary

_OF_THE_STORE = frozenset((
    "kind", "sweep_id", "cell", "repetition", "order", "block", "mode", "infer_os", "verdict", "reasons", "notes",
    "suspect_phases", "reason_codes", "method", "trial_uuid", PARAMS_DIGEST, "experiment", "question", "command",
    "planned_trials", "pid", "pid_start",
))
"""Tags that logging writes anew."""

_SHARED = frozenset(("config.yaml", "provenance.json", "server.log"))
_PASSWORD = re.compile(r"(?<=://)([^/@:\s\"']*):[^/@\s\"']*@")
"""In an address: a file that is passed on must not carry it."""


@dataclass(frozen=True)
class Moved:
    """What an export or import did."""

    sweep_id: str
    path: str
    trials: int
    """In the file."""
    new: int
    """Import: trials that the store did not have."""
    status: SweepStatus


def export_sweep(store: Store, name: str, path: Path) -> Moved:
    """Write the sweep into one file. Raises ConfigError (no such sweep, file cannot be written) and StoreError."""
    record = store.find_sweep(name)
    artifacts = Artifacts(store.location)
    # a trial that was run again has taken the place of the one before it
    trials = list({trial.order: trial for trial in sorted(store.trials(record.sweep_id),
                                                          key=lambda trial: (trial.order, trial.started_ms))}.values())
    summary = _summary(record, artifacts, len(trials))

    def read() -> Iterator[tuple[TrialResult, Mapping[str, bytes]]]:
        for trial in trials:
            kept = {}
            for artifact in ARTIFACTS:
                content = artifacts.read(trial.run_id, trial.artifact_uri, artifact)
                if content is not None:
                    kept[artifact] = _private(content) if artifact in _SHARED else content
            yield _result(trial, store), kept

    written = archive.write(path, summary, read())
    return Moved(record.sweep_id, str(path), written, 0, summary.status)


def import_sweep(path: Path, store: Store) -> Moved:
    """Log what the file holds, with the times and the machine it was measured on; a second time changes nothing.

    Raises ConfigError before anything is logged (damaged file, another sweep of that id); StoreError if the store fails
    on the way: importing again goes on."""
    with Archive(path) as file:
        summary = file.summary
        _refuse_namesake(summary, store)
        there = len(store.trials(summary.sweep_id))
        for result in file.results:
            with tempfile.TemporaryDirectory(prefix="slackwater-") as folder:
                for name, content in file.artifacts(result.order):
                    (Path(folder) / name).write_bytes(content)
                store.log_trial(dataclasses.replace(result, folder=folder))
        store.log_sweep(summary)
        return Moved(summary.sweep_id, str(path), len(file.results), len(store.trials(summary.sweep_id)) - there,
                     summary.status)


def _refuse_namesake(summary: SweepSummary, store: Store) -> None:
    for record in store.sweeps():
        if record.sweep_id == summary.sweep_id and record.run_id and record.started_ms != summary.started_ms:
            hosts = record.tags.get("host", "unknown"), summary.tags.get("host", "unknown")
            raise ConfigError(f"{store.location.shown} has another sweep {summary.sweep_id}, of host {hosts[0]}; the "
                              f"file's is of host {hosts[1]}. Import it into a store of its own: --store "
                              "sqlite:////absolute/path/mlflow.db. `slackwater compare` reads the file as it is.")


def _summary(record: SweepRecord, artifacts: Artifacts, trials: int) -> SweepSummary:
    texts = {}
    if record.run_id is not None:
        for name in artifacts.names(record.run_id, record.artifact_uri):
            content = artifacts.read(record.run_id, record.artifact_uri, name)
            if content is not None:
                texts[name] = _private(content).decode(errors="replace")
    plan = read_plan(texts.pop("plan.json", None))
    # a sweep that still runs, or whose owner died, is in the file as far as it came
    status: SweepStatus = record.status if record.status in ("finished", "failed") else "interrupted"  # type: ignore[assignment]
    return SweepSummary(
        sweep_id=record.sweep_id, experiment=record.experiment, question=record.question,
        command=_PASSWORD.sub(r"\1:***@", record.command), planned_trials=record.planned_trials or trials, plan=plan,
        started_ms=record.started_ms, status=status, ended_ms=record.ended_ms or record.started_ms, texts=texts,
        metrics=record.metrics, tags={key: _PASSWORD.sub(r"\1:***@", text) for key, text in _own(record.tags).items()})


def _result(trial: TrialRecord, store: Store) -> TrialResult:
    verdict: Verdict = trial.verdict if trial.verdict in get_args(Verdict) else "failed"  # type: ignore[assignment]
    interrupted = trial.verdict == "interrupted" or any(as_reason(text).code == INTERRUPTED for text in trial.reasons)
    return TrialResult(
        sweep_id=trial.sweep_id, cell=trial.cell, repetition=trial.repetition, block=trial.block, order=trial.order,
        mode=trial.mode, infer_os=trial.infer_os, verdict=verdict,
        reasons=trial.reasons or ([Reason(INTERRUPTED)] if interrupted else []), notes=trial.notes,
        started_ms=trial.started_ms, ended_ms=trial.ended_ms or trial.started_ms, params=trial.params,
        settings=trial.settings, metrics=trial.turns, series=store.series(trial.run_id), tags=_own(trial.tags),
        folder="", extra={"interrupted": interrupted}, suspect_phases=trial.suspect_phases, method=trial.method)


def _own(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in tags.items() if key not in _OF_THE_STORE and not key.startswith("mlflow.")}


def _private(content: bytes) -> bytes:
    return _PASSWORD.sub(r"\1:***@", content.decode(errors="surrogateescape")).encode(errors="surrogateescape")
