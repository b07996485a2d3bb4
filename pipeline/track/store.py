"""The store: where trials and sweeps are logged and read again. One MLflow experiment, flat runs.

Opened with `open_store`. A result goes to the spool first and leaves it when the store has it, so that a store
that fails costs no trial. How runs are named is names.py's, what is read back read.py's business.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import language
from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.language import _
from pipeline.provenance import without_password
from pipeline.record.folder import SWEEPS, SweepFolder
from pipeline.record.owner import is_dead, owner_tags
from pipeline.record.reason import codes_of
from pipeline.record.sweep import SweepRecord as KeptSweep
from pipeline.record.trial import TrialRecord as KeptTrial
from pipeline.result import ARTIFACTS, TrialResult
from pipeline.stats.trials import Measured, Trial
from pipeline.text import printable, to_json
from pipeline.track import names, rows, view
from pipeline.track.check import check, connect_sqlite
from pipeline.track.client import first_use, make_client, store_errors
from pipeline.track.describe import describe_sweep, describe_trial
from pipeline.track.inputs import dataset
from pipeline.track.location import VARIABLE, Location, folder_of, local, locate
from pipeline.track.read import SETTINGS, SweepRecord, TrialRecord, choose_sweep, read_sweeps, read_trial, read_trials
from pipeline.track.rows import Point
from pipeline.track.source import PARAMS_DIGEST, TIMELINE, ClientSource, Earlier, Nothing, Run, Source, SqlSource
from pipeline.track.spool import Pending, Spool
from pipeline.track.summary import SweepSummary

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_OURS = "slackwater.artifacts"
"""Tag of an experiment whose artifacts we put beside the database: they move when it moves."""

_BATCH = 1000
"""Points per call that MLflow takes."""


@dataclass(frozen=True)
class Recorded:
    """What became of a result: its run, or None when it waits in the spool, with a note for the person the first time
    and at the sweep's end."""

    run_id: str | None
    note: str | None = None


@dataclass(frozen=True)
class Synced:
    """What `sync` did. `notes`: why something stayed in the spool."""

    sent: int
    notes: Sequence[str]


class Store:
    """One store. Reading works on any; logging needs one opened with `write=True`. Not thread-safe."""

    def __init__(self, location: Location, source: Source, client: MlflowClient | None, experiment_id: str,
                 experiment: str = "") -> None:
        self.location = location
        self.spool = Spool(location.spool, location.shown, experiment)
        self._source = source
        self._mlflow = client
        self.experiment_id = experiment_id
        self._failed = False

    # Reading

    def sweeps(self) -> list[SweepRecord]:
        """All sweeps, the oldest first. Raises StoreError."""
        return read_sweeps(self._source)

    def trials(self, sweep_id: str | None = None, metrics: Collection[str] | None = None,
               cell: str | None = None) -> list[TrialRecord]:
        """Trials of one sweep in the order they ran, or of all; with these metrics only, and of this cell only, which
        is faster, if given. Raises StoreError."""
        return read_trials(self._source, sweep_id, metrics, cell)

    def trials_and(self, sweep_id: str, results: Sequence[TrialResult], run_ids: Mapping[int, str],
                   metrics: Collection[str] | None = None, cell: str | None = None) -> list[Trial]:
        """The sweep's trials as the store has them, and from memory those of `results` that it does not have.

        `run_ids`: order of a trial → its run, where it has one. `metrics` and `cell` narrow what the store is asked.
        Does not raise for a store that is away."""
        try:
            found: dict[int, Trial] = {trial.order: trial for trial in self.trials(sweep_id, metrics, cell)}
        except StoreError:
            found = {}
        for result in results:
            found.setdefault(result.order, Measured(result, run_ids.get(result.order, "")))
        return [found[order] for order in sorted(found)]

    def find_sweep(self, name: str = "last") -> SweepRecord:
        """By id, unambiguous prefix or `last`. Raises ConfigError that lists the candidates."""
        return choose_sweep(self.sweeps(), name, self.location)

    def find_trial(self, run_id: str) -> TrialRecord | None:
        """The trial that is this run; None if there is no such run, or it is no trial. Raises StoreError."""
        return read_trial(self._source, run_id)

    def earlier(self, digests: Collection[str]) -> Sequence[Earlier]:
        """What trials of these cells took and needed on this machine. Raises StoreError."""
        return self._source.earlier(digests, self._owner()["host"])

    def series(self, run_id: str) -> Mapping[str, Sequence[tuple[int, float]]]:
        """The charts of a trial: name → (milliseconds since it began, value). Raises StoreError."""
        return self._source.series(run_id)

    # Logging

    @functools.cached_property
    def _rows(self) -> Path | None:
        """The database whose rows we write ourselves; None: MLflow writes them."""
        database = self.location.database
        return database if database is not None and rows.writable(database) else None

    def record(self, result: TrialResult) -> Recorded:
        """Spool the result, log it, take it out of the spool. A store that fails is a note and costs nothing.

        Raises StoreError only if the spool itself cannot be written."""
        kept = self.spool.put(result)
        folder = self._folder(result.sweep_id)
        name = folder.put(_as_record(kept), kept.path).name
        try:
            self._answers_again()
            with self.spool.locked():
                run_id = self.log_trial(kept)
                self.spool.remove(kept.path)
                folder.write_pushed(self.location.shown, {**folder.pushed(self.location.shown), name: run_id},
                                     experiment_id=self.experiment_id)
        except StoreError as error:
            first, self._failed = not self._failed, True
            return Recorded(None, f"{error} The trial waits in {kept.folder}; `slackwater sync` sends it."
                            if first else None)
        return Recorded(run_id, self._catch_up())

    def record_sweep(self, summary: SweepSummary) -> Recorded:
        """The same for the summary of a sweep, at its start (status running) and at its end."""
        path = self.spool.put_sweep(summary)
        folder = self._folder(summary.sweep_id)
        if not folder.path.is_dir():
            folder.begin(kept_sweep(summary), summary.plan)
        folder.write(kept_sweep(summary))
        for name, text in summary.texts.items():
            folder.write_text(name, text)
        try:
            self._answers_again()
            with self.spool.locked():
                run_id = self.log_sweep(summary)
                self.spool.remove(path)
                folder.write_pushed(self.location.shown, {**folder.pushed(self.location.shown), "": run_id},
                                     experiment_id=self.experiment_id)
        except StoreError as error:
            self._failed = True
            trials = sum(item.is_trial and item.path.parent == path.parent for item in self.spool.pending())
            return Recorded(None, f"{error} The sweep's summary and {trials} of its trials wait in {path.parent}; "
                                  "`slackwater sync` sends them.")
        note = self._catch_up()
        if summary.status != "running":
            self.spool.discard(summary.sweep_id)
        return Recorded(run_id, note)

    def pending(self) -> list[Pending]:
        """What waits in this machine's spool for this store and this experiment of it."""
        return [item for item in self.spool.pending()
                if item.store in ("", self.location.shown) and item.experiment in ("", self.spool.experiment)]

    def sync(self) -> Synced:
        """Log what waits for this store, with the times it was measured; idempotent. For every store: sync.py."""
        sent, notes = 0, []
        for item in self.pending():
            try:
                with self.spool.locked():
                    if not item.path.exists():
                        continue
                    if item.is_trial:
                        self.log_trial(self.spool.take(item))
                    else:
                        self.log_sweep(self.spool.take_sweep(item))
                    self.spool.remove(item.path)
                sent += 1
                self.spool.discard(item.sweep_id)
            except StoreError as error:
                notes.append(str(error))
        return Synced(sent, notes)

    def log_trial(self, result: TrialResult) -> str:
        """One flat run; returns its id. The same trial is always the same run. Raises StoreError."""
        with store_errors(self.location, f"logging trial {result.order}"):
            uuid = names.trial_uuid(result)
            found = self._source.runs({"kind": "trial", "trial_uuid": uuid}, values=False)
            if found and found[0].status != "RUNNING" and found[0].tags.get("verdict") != "interrupted":
                return found[0].run_id
            # an imported trial names the machine that measured it
            tags = {
                **self._owner(), **result.tags, "kind": "trial", "sweep_id": result.sweep_id, "cell": result.cell,
                "repetition": str(result.repetition), "order": str(result.order), "block": str(result.block),
                "mode": result.mode, "infer_os": result.infer_os, "verdict": result.verdict,
                "reasons": names.join_lines(list(result.reasons)), "notes": names.join_lines(list(result.notes)),
                "suspect_phases": names.join_groups(result.suspect_phases), "reason_codes": to_json(codes_of(result)),
                "method": str(result.method),
                "trial_uuid": uuid, "mlflow.note.content": describe_trial(_as_record(result)),
            }
            run_id, files = self._run(found, names.run_name(result), result.started_ms, tags)
            self._keep(run_id, files, [result.path / name for name in ARTIFACTS if (result.path / name).is_file()])
            if (prompts := dataset(result.params, result.tags)) is not None:
                self._client.log_inputs(run_id, [prompts])
            interrupted = bool(result.extra.get("interrupted"))
            status = "KILLED" if interrupted else "FAILED" if result.verdict == "failed" else "FINISHED"
            self._log_values(run_id, _params(result), _points(result), status, result.ended_ms)
            return run_id

    def log_sweep(self, summary: SweepSummary) -> str:
        """The sweep's summary run, made or brought up to date; returns its id. Raises StoreError."""
        with store_errors(self.location, "logging the sweep"):
            found = self._source.runs({"kind": "sweep", "sweep_id": summary.sweep_id}, values=False)
            tags = {
                **self._owner(), **summary.tags, "kind": "sweep", "sweep_id": summary.sweep_id,
                "experiment": summary.experiment, "question": summary.question, "command": summary.command,
                "planned_trials": str(summary.planned_trials),
                # MLflow's own words for it, so that its columns Source and Version are not empty
                "mlflow.source.type": "LOCAL", "mlflow.source.name": "slackwater",
                "mlflow.source.git.commit": summary.tags.get("revision", ""),
                "mlflow.note.content": describe_sweep(
                    kept_sweep(summary), summary.texts.get("summary.txt"),
                    next((name for name in summary.texts if name.endswith(".html")), None)),
            }
            name = names.sweep_name(summary.sweep_id, summary.experiment)
            run_id, _ = self._run(found, name, summary.started_ms, tags)
            for artifact, text in {"plan.json": to_json(summary.plan, indent=2), **summary.texts}.items():
                self._client.log_text(run_id, printable(text), artifact)
            moment = summary.ended_ms or summary.started_ms
            self._log_points(run_id, [(names.key(metric), value, moment, 0) for metric, value in summary.metrics.items()
                                      if math.isfinite(value)])
            if summary.status == "running":
                self._client.update_run(run_id, status="RUNNING")
            else:
                status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[summary.status]
                self._client.set_terminated(run_id, status, summary.ended_ms)
                verdicts = self._source.verdicts().get(summary.sweep_id, {})
                view.install(self.location, self._client, self.experiment_id, summary.sweep_id, summary.plan, verdicts,
                             summary.started_ms)
            return run_id

    def supersede(self, run_ids: Sequence[str]) -> None:
        """Take trials that will be run again out of all readings; MLflow keeps them, tagged kind=superseded."""
        with store_errors(self.location, "setting failed trials aside"):
            for run_id in run_ids:
                self._client.set_tag(run_id, "kind", "superseded")

    def reap(self) -> int:
        """Close runs that a dead process of this machine left RUNNING, as interrupted. Returns how many."""
        count = 0
        with store_errors(self.location, "closing interrupted runs"):
            for run in self._source.runs({"host": self._owner()["host"]}, status="RUNNING", values=False):
                if run.tags.get("kind") in ("trial", "sweep") and is_dead(run.tags, run.started_ms):
                    self._client.set_tag(run.run_id, "verdict", "interrupted")
                    self._client.set_terminated(run.run_id, "KILLED", self._last_sign(run))
                    count += 1
        return count

    # What logging is made of

    def _folder(self, sweep_id: str) -> SweepFolder:
        return SweepFolder(self.location.records / SWEEPS / sweep_id)

    @property
    def _client(self) -> MlflowClient:
        if self._mlflow is None:
            raise StoreError(f"The store {self.location.shown} was opened for reading only: open it with write=True.")
        return self._mlflow

    @staticmethod
    def _owner() -> dict[str, str]:
        return owner_tags()

    def _run(self, found: Sequence[Run], name: str, started_ms: int, tags: Mapping[str, str]) -> tuple[str, str]:
        """A new run, or the one that is there with these tags: its id, and the address of its artifacts."""
        if not found:
            info = self._client.create_run(self.experiment_id, started_ms, names.tags_of(tags), name).info
            return str(info.run_id), str(info.artifact_uri)
        from mlflow.entities import RunTag

        run_id = found[0].run_id
        self._client.log_batch(run_id, tags=[RunTag(key, text) for key, text in names.tags_of(tags).items()])
        return run_id, found[0].artifact_uri

    def _keep(self, run_id: str, address: str, files: Sequence[Path]) -> None:
        """Files into the run's artifacts; copied where they lie on this machine's disk, since MLflow takes 50 ms."""
        folder = None if self.location.is_server else folder_of(address)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if folder is None:
                self._client.log_artifact(run_id, str(file))
            else:
                shutil.copyfile(file, folder / file.name)

    def _log_values(self, run_id: str, params: Mapping[str, str], points: Sequence[Point], status: str,
                    ended_ms: int) -> None:
        """All that was measured, and that the run is over."""
        # the digest comes with the params or after them: a run that has it has them all
        digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
        if self._rows is not None:
            rows.write(self._rows, run_id, params=params, points=points, tags={PARAMS_DIGEST: digest},
                       ended=(status, ended_ms))
            return
        from mlflow.entities import Param, RunTag

        self._client.log_batch(run_id, params=[Param(key, text) for key, text in params.items()],
                               tags=[RunTag(PARAMS_DIGEST, digest)])
        self._log_points(run_id, points)
        self._client.set_terminated(run_id, status, ended_ms)

    def _log_points(self, run_id: str, points: Sequence[Point]) -> None:
        if self._rows is not None:
            rows.write(self._rows, run_id, points=points)
            return
        from mlflow.entities import Metric

        for begin in range(0, len(points), _BATCH):
            self._client.log_batch(run_id, metrics=[Metric(*point) for point in points[begin:begin + _BATCH]])

    def _last_sign(self, run: Run) -> int:
        """When a dead run was last known to live: the end of its sweep's last trial, else its own start."""
        trials = self._source.runs({"kind": "trial", "sweep_id": run.tags.get("sweep_id", "")}, values=False)
        ends = [trial.ended_ms for trial in trials if trial.ended_ms]
        return max([run.started_ms, *(ends if run.tags["kind"] == "sweep" else [])])

    def _answers_again(self) -> None:
        """Ask shortly before logging, a server always and others after a failure: MLflow's own attempts take longer
        (20 s for a server that accepts and says nothing)."""
        if self._failed or self.location.is_server:
            check(self.location, write=True)

    def _catch_up(self) -> str | None:
        if not self._failed:
            return None
        synced = self.sync()
        self._failed = bool(synced.notes)
        return f"The store answers again: {synced.sent} waiting results were sent." if synced.sent else None


def _as_record(result: TrialResult) -> KeptTrial:
    document = json.loads(result.to_json())
    document["series"] = {}
    return KeptTrial.from_dict(document)


def kept_sweep(summary: SweepSummary) -> KeptSweep:
    """The record of it."""
    owner = owner_tags() if summary.status == "running" else {}
    return replace(KeptSweep.from_json(summary.to_json()), owner=owner, tags={**owner_tags(), **summary.tags})


def _params(result: TrialResult) -> dict[str, str]:
    """The config and the server settings as MLflow takes them."""
    values = {**result.params, **{SETTINGS + name: value for name, value in result.settings.items()}}
    if isinstance(values.get("tracking.uri"), str):
        values["tracking.uri"] = without_password(values["tracking.uri"])
    return names.params_of(values)


def _points(result: TrialResult) -> list[Point]:
    """Metrics at their turn, series at their time; MLflow's shown value is the one of the highest step."""
    points = [(names.key(name), float(value), result.ended_ms, turn) for name, turns in result.metrics.items()
              for turn, value in turns.items() if math.isfinite(value)]
    for name, series in result.series.items():
        key = names.key(TIMELINE + name.removeprefix(TIMELINE))
        points += [(key, float(value), result.started_ms + t_ms, t_ms) for t_ms, value in series
                   if math.isfinite(value)]
    return points


def open_store(tracking: Tracking, write: bool = True) -> Store:
    """The store that the config names, checked first; made if there is none (`write` only).

    Opening for writing closes the runs that dead processes of this machine left behind. Opening an SQLite store for
    reading imports no MLflow. Raises StoreError: unreachable, not writable, not MLflow's, of another schema; for a
    store that MLFLOW_TRACKING_URI names that is said, and the local one is opened."""
    location = locate(tracking)
    try:
        store = _open(location, tracking.experiment, write)
    except StoreError as error:
        if location.chosen_by != VARIABLE:
            raise
        store = _open(local(str(error)), tracking.experiment, write)
    _say_where(store.location)
    return store


def _open(location: Location, experiment: str, write: bool) -> Store:
    there = check(location, write)
    if not write:
        if not there:
            return Store(location, Nothing(), None, "")
        reader = SqlSource(location) if _has_reader(location) else ClientSource(location, make_client(location))
        return Store(location, reader, None, "")
    with first_use(location):
        client = make_client(location)
        experiment_id = _experiment(location, client, experiment)
    source = SqlSource(location) if _has_reader(location) else ClientSource(location, client)
    store = Store(location, source, client, experiment_id, experiment)
    store.spool.clean()
    store.reap()
    return store


@functools.cache
def _say_where(location: Location) -> None:
    """Once per process and store: what a variable of the environment decides stands in no command and no config."""
    if location.passed_over:
        said = _("{variable} cannot be used, and results stay in {store}: {why}").format(
            variable=VARIABLE, store=location.shown, why=location.passed_over)
    elif location.chosen_by == VARIABLE:
        said = _("results: {store} ({variable})").format(store=location.shown, variable=VARIABLE)
    else:
        return
    print(f"slackwater: {language.harmless(said)}", file=sys.stderr)


def _has_reader(location: Location) -> bool:
    # MySQL and SQL Server quote the column `key` differently; nobody has asked for them yet
    return location.database is not None or location.uri.startswith("postgresql")


def _experiment(location: Location, client: MlflowClient, name: str) -> str:
    """The id of the MLflow experiment, made if it is not there. Raises StoreError."""
    with store_errors(location, f"opening the MLflow experiment {name!r}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            place = None if location.artifacts is None else location.artifacts.as_uri()
            ours = {_OURS: "beside the database"} if location.database is not None else None
            return str(client.create_experiment(name, place, ours))
        if found.lifecycle_stage == "deleted":
            address = location.uri if location.database is not None else location.shown
            raise StoreError(f"The MLflow experiment {name!r} in {location.shown} was deleted. Restore it "
                             f"(MLFLOW_TRACKING_URI={shlex.quote(address)} mlflow experiments restore -x "
                             f"{found.experiment_id}), or choose another: tracking.experiment=NAME.")
        if not location.is_server and found.artifact_location.startswith("mlflow-artifacts:"):
            raise StoreError(f"The MLflow experiment {name!r} in {location.shown} was made through a server, which "
                             "keeps its artifacts. Name the server (tracking.uri=http://…), or another experiment "
                             "(tracking.experiment=NAME).")
        if location.database is not None and location.artifacts is not None and _OURS in found.tags:
            _relocate(location.database, found.artifact_location, location.artifacts.as_uri())
        return str(found.experiment_id)


def _relocate(database: Path, old: str, new: str) -> None:
    """A store that was moved or copied keeps its artifacts beside it, but MLflow has written down absolute paths."""
    if old == new:
        return
    with connect_sqlite(database, write=True) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                               f"WHERE {column} = :old OR {column} LIKE :old || '/%'", {"old": old, "new": new})
