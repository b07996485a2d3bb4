"""Records of runs that an earlier version, or a colleague's machine, left in an MLflow store or in a spool.

Reads with MLflow's client and alters nothing there; deleted runs stay away. A run with a result.json gives its record
as it was; of one without, the record is made from params, tags, metrics and files.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.record.folder import PLAN, SWEEP, SWEEPS, TEXTS, TRIALS, SweepFolder
from pipeline.record.owner import is_alive, is_dead
from pipeline.record.reason import Reason
from pipeline.record.sweep import Origin, SweepRecord, SweepStatus
from pipeline.record.trial import ARTIFACTS, RESULT, TrialRecord, Verdict
from pipeline.text import to_json
from pipeline.track import names
from pipeline.track.location import Location, address_of, folder_of, locate

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_OF_THE_RUN = frozenset((
    "kind", "sweep_id", "cell", "repetition", "order", "block", "mode", "infer_os", "verdict", "reasons", "notes",
    "suspect_phases", "method", "trial_uuid", "params_digest", "experiment", "question", "command", "planned_trials",
    "pid", "pid_start",
))
"""Tags that pushing writes anew."""
_SETTINGS, _TIMELINE = "settings.", "timeline/"
_STATUS: Mapping[str, SweepStatus] = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed"}
_PART = re.compile(r"(.+)/part (\d+) of (\d+)")


class Runs:
    """The runs of one store, as records."""

    def __init__(self, location: Location, client: MlflowClient, origin: Origin) -> None:
        self.location, self.client, self.origin = location, client, origin

    def sweeps(self) -> Iterator[tuple[SweepRecord, Run]]:
        """By their summary runs: none of their trials yet (`fetched` is False)."""
        experiments = {each.experiment_id: each.name for each in self.client.search_experiments(max_results=1000)}
        for run in self._search(list(experiments), "tags.kind = 'sweep'"):
            tags = whole(run.data.tags)
            if "sweep_id" not in tags or "command" not in tags:
                continue
            planned = tags.get("planned_trials", "")
            owner = {key: text for key, text in tags.items() if key in ("host", "boot_id", "pid", "pid_start")}
            found = SweepRecord(
                tags["sweep_id"], tags.get("experiment", ""), tags.get("question", ""), tags["command"],
                int(planned) if planned.isdigit() else None, run.info.start_time,
                _STATUS.get(run.info.status, "interrupted"), run.info.end_time, metrics=run.data.metrics,
                tags={**_own(tags), "tracking_uri": self.location.shown,
                      "tracking_experiment": experiments[run.info.experiment_id]},
                owner=owner if run.info.status == "RUNNING" else {}, origin=self.origin, fetched=False)
            with contextlib.suppress(ValueError):  # a run that is no sweep's, whatever its tags say
                yield SweepRecord.from_json(found.to_json()), run

    def trials(self, sweep_id: str, experiment_id: str) -> list[Run]:
        """The runs of a sweep's trials that are over, in the order they began."""
        found = self._search([experiment_id], f"tags.sweep_id = '{sweep_id}'")
        return sorted((run for run in found if run.data.tags.get("kind") in ("trial", "superseded")
                       and "cell" in run.data.tags
                       and (run.info.status != "RUNNING" or is_dead(run.data.tags, run.info.start_time))),
                      key=lambda run: int(run.info.start_time))

    def record(self, run: Run, folder: Path) -> TrialRecord:
        """The trial of that run; its files come into `folder`."""
        self.files(run, folder)
        try:
            return TrialRecord.from_json((folder / RESULT).read_bytes())
        except (OSError, ValueError):
            return self._made(run)

    def files(self, run: Run, folder: Path) -> None:
        """The run's artifacts: from this machine's disk where they lie there, else over MLflow."""
        here = folder_of(str(run.info.artifact_uri))
        if self.location.artifacts is not None:
            # a store that was moved or copied has its files beside it, whatever address was written down
            beside = self.location.artifacts / run.info.run_id / "artifacts"
            here = beside if beside.is_dir() else here
        if here is None:
            self.client.download_artifacts(run.info.run_id, "", str(folder))
        elif here.is_dir():
            for name in (RESULT, *ARTIFACTS, PLAN, SWEEP, *TEXTS):
                if (here / name).is_file():
                    shutil.copyfile(here / name, folder / name)

    def _made(self, run: Run) -> TrialRecord:
        """From params, tags and metrics."""
        tags = whole(run.data.tags)
        values = {name: names.decode_param(text) for name, text in whole(run.data.params).items()}
        reasons = [Reason.from_dict(line) for line in tags.get("reasons", "").splitlines()]
        verdict: Verdict = tags.get("verdict", "interrupted")  # type: ignore[assignment]
        if run.info.status in ("KILLED", "RUNNING"):
            verdict = "interrupted"
        turns: dict[str, dict[int, float]] = {}
        for last in run.data._metric_objs:
            if not last.key.startswith(_TIMELINE):
                points = self.client.get_metric_history(run.info.run_id, last.key) if last.step > 1 else [last]
                turns[last.key] = {point.step: point.value for point in points}
        suspect: dict[str, list[Reason]] = {}
        for line in tags.get("suspect_phases", "").splitlines():
            phase, _, said = line.partition(": ")
            suspect.setdefault(phase, []).append(Reason.from_dict(said))

        def number(name: str) -> int:
            return int(tags[name]) if tags.get(name, "").isdigit() else 0

        made = TrialRecord(
            tags["sweep_id"], tags["cell"], number("repetition"), number("block"), number("order"),
            tags.get("mode", ""), tags.get("infer_os", ""), verdict, run.info.start_time,
            run.info.end_time or run.info.start_time, reasons,
            [Reason.from_dict(line) for line in tags.get("notes", "").splitlines()], suspect,
            {name: value for name, value in values.items() if not name.startswith(_SETTINGS)},
            {name.removeprefix(_SETTINGS): value for name, value in values.items() if name.startswith(_SETTINGS)},
            turns, _own(tags), number("method") or 1)
        return TrialRecord.from_json(made.to_json())

    def _search(self, experiments: list[str], terms: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while experiments:
            page = self.client.search_runs(experiments, terms, max_results=1000, page_token=token)
            found += page
            if not (token := page.token):
                break
        return found


def _own(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in tags.items() if key not in _OF_THE_RUN and not key.startswith("mlflow.")}


def whole(texts: Mapping[str, str]) -> dict[str, str]:
    """Tags or params, of which those until 3c8a73e that were too long stand whole in parts, as JSON."""
    found = {name: text for name, text in texts.items() if not _PART.fullmatch(name)}
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for name, text in texts.items():
        if part := _PART.fullmatch(name):
            parts.setdefault((part[1], int(part[3])), {})[int(part[2])] = text
    for (name, count), by_number in parts.items():
        try:
            text = str(json.loads("".join(by_number[number] for number in range(1, count + 1))))
        except (KeyError, ValueError):
            continue
        # parts of a text that has since been replaced fit no more with what is shown of it
        if names.shown(text, names.TAG_LIMIT) == found.get(name) or names.shown(
                text, names.PARAM_LIMIT) == found.get(name):
            found[name] = text
    return found


def waiting(location: Location) -> list[Path]:
    """The sweeps in the spool of an earlier version that no process works on."""
    spool = location.home / "spool"
    return sorted(path for path in spool.iterdir() if path.is_dir() and not _is_claimed(path)) if spool.is_dir() else []


def take_waiting(location: Location) -> None:
    """What waits in the spool of an earlier version becomes records, each beside the store it was measured for, and is
    pushed as any other then. What cannot be understood stays. Raises StoreError."""
    for spooled in waiting(location):
        store, _pid, _ticks, experiment = _owner(spooled)
        address = address_of(store)
        meant = locate(Tracking(uri=address)) if address else location
        folder = SweepFolder(meant.records / SWEEPS / spooled.name)
        trials, summary = {}, {}
        for path in sorted(spooled.glob(f"*/{RESULT}")):
            with contextlib.suppress(OSError, ValueError):
                trials[path.parent] = TrialRecord.from_json(path.read_bytes())
        with contextlib.suppress(OSError, ValueError):
            summary = json.loads((spooled / SWEEP).read_bytes())
        began = min((trial.started_ms for trial in trials.values()), default=0)
        sweep = SweepRecord(spooled.name, "", "", "", None, began, "interrupted")
        with contextlib.suppress(ValueError):
            sweep = SweepRecord.from_json(json.dumps(summary))
        there = folder.bare() if (folder.path / SWEEP).is_file() else None
        if (trials or sweep.command) and (there is None or (there.origin == "taken over" and sweep.command)):
            put_sweep(folder, replace(
                sweep, origin="taken over", status="interrupted" if sweep.status == "running" else sweep.status,
                tags={**sweep.tags, "tracking_uri": store or location.shown,
                      "tracking_experiment": experiment or Tracking.experiment},
                fetched=meant.database is None or not meant.database.exists()), summary.get("plan", {}))
            for name in TEXTS:
                if name in summary.get("texts", {}):
                    folder.write_text(name, summary["texts"][name])
        known = {(trial.order, trial.started_ms) for trial in folder.attempts()}
        for path, trial in trials.items():
            if (trial.order, trial.started_ms) not in known:
                folder.put(trial, path)
            shutil.rmtree(path)
        if sweep.command:
            (spooled / SWEEP).unlink()
        if not any(spooled.glob(f"*/{RESULT}")) and not (spooled / SWEEP).exists():
            shutil.rmtree(spooled)


def put_sweep(folder: SweepFolder, sweep: SweepRecord, plan: Mapping[str, Any] | None) -> None:
    """sweep.json, also of a sweep that is there; its plan where there is none yet. Raises StoreError."""
    try:
        (folder.path / TRIALS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder.path} cannot be written: {error.strerror}.") from error
    if plan is not None and not (folder.path / PLAN).is_file():
        folder.write_once(PLAN, to_json({"schema_version": 1, **plan}, indent=1))
    folder.write(sweep)


def _owner(sweep: Path) -> tuple[str, str, str, str]:
    """Store, pid and start time of the process that works here, MLflow's experiment; empty if none has."""
    path = sweep / "owner.txt"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    lines += [""] * 4
    return lines[0], lines[1], lines[2], lines[3]


def _is_claimed(sweep: Path) -> bool:
    _store, pid, ticks, _experiment = _owner(sweep)
    return pid.isdigit() and is_alive(int(pid), ticks)
