"""A sweep's records into one MLflow store, with MLflow's public client alone, between trials.

The records are the truth: a store that is away costs a line, and gets later what it did not take. What was pushed where
stands beside the records (`pushed/`). How runs are named is names.py's, what a store is location.py's business.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import interrupt
from pipeline.config import Tracking
from pipeline.errors import MeterError, StoreError
from pipeline.language import _
from pipeline.meter.timeline import downsample, read_parquet
from pipeline.record.find import Sweeps
from pipeline.record.folder import EVERYTHING, SWEEP, TEXTS, SweepFolder, place_of
from pipeline.record.owner import is_dead
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.text import masked
from pipeline.track import names, view
from pipeline.track.check import check
from pipeline.track.client import hurry, make_client, one_at_a_time, store_errors
from pipeline.track.describe import dataset, describe_sweep, describe_trial
from pipeline.track.location import VARIABLE, Location, address_of, folder_of, local, locate, named, say_where
from pipeline.track.pull import Fetched, own_writes, state_of

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_OURS = "slackwater.artifacts"
"""Tag of an experiment whose artifacts lie beside the database."""
_BATCH = 1000
"""Points per call that MLflow takes."""
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Push:
    """One store, opened for writing. Not thread-safe."""

    def __init__(self, location: Location, client: MlflowClient, experiment_id: str) -> None:
        self.location, self.client, self.experiment_id = location, client, experiment_id
        self._away = False

    @classmethod
    def open(cls, tracking: Tracking) -> Push:
        """The store that the config names, checked first and made if there is none; runs that a dead process of this
        machine left running are closed.

        Raises StoreError: unreachable, not writable, not MLflow's, of another schema; for a store that
        MLFLOW_TRACKING_URI names that is said, and the local one is opened."""
        location = locate(tracking)
        try:
            push = cls._at(location, tracking.experiment)
        except StoreError as error:
            if location.chosen_by != VARIABLE:
                raise
            push = cls._at(local(str(error)), tracking.experiment)
        say_where(push.location)
        return push

    @classmethod
    def _at(cls, location: Location, experiment: str) -> Push:
        check(location, write=True)
        client = make_client(location)
        push = cls(location, client, _experiment(location, client, experiment))
        push._close_dead()
        if location.database is not None:
            Fetched(location, client=client).look_through()
        return push

    def sweep(self, folder: SweepFolder, sweep: SweepRecord) -> str | None:
        """The sweep's summary run, made or brought up to date, and what waited of its trials: a note for the user, if
        there is something to say."""
        try:
            self._answers()
            with own_writes(self.location):
                self._sweep(folder, sweep)
        except StoreError as error:
            self._away = True
            trials = sum(bool(name) for name in _waiting(folder, self.location.shown))
            return (f"{error} The sweep's summary and {trials} of its trials wait in {folder.path}; "
                    f"`slackwater sync{self.location.option}` sends them.")
        return self._catch_up(folder)

    def trial(self, folder: SweepFolder, trial: TrialRecord) -> str | None:
        """One flat run; the same trial is always the same run. Also what waited of this sweep if the store answers
        again. A note for the user: the first time that it does not answer."""
        try:
            self._answers()
            with own_writes(self.location):
                self._trial(folder, trial)
                if trial.attempt > 1:
                    self._kinds(folder)
        except StoreError as error:
            first, self._away = not self._away, True
            return (f"{error} The trial waits in {folder.path}; `slackwater sync{self.location.option}` sends it."
                    if first else None)
        return self._catch_up(folder) if self._away else None

    def add(self, folder: SweepFolder, trial: TrialRecord, file: Path) -> None:
        """One more file of a trial's run, if it was sent. Raises StoreError."""
        if (run_id := folder.pushed(self.location.shown).get(trial.name)) is not None:
            with store_errors(self.location, f"logging {file.name} of trial {trial.order}"):
                self._keep(self.client.get_run(run_id), [file])

    def pending(self, folder: SweepFolder) -> int:
        """How many of the sweep's runs this store does not have: trials, and the summary."""
        return len(_waiting(folder, self.location.shown))

    def lost(self, folder: SweepFolder) -> str | None:
        """Where this machine's folder is thrown away (the variable CI is set, as by all services that run CI jobs):
        why the run is to end with exit code 1, if something of the sweep was not pushed."""
        waiting = self.pending(folder)
        if not waiting or os.environ.get("CI", "").lower() in ("", "0", "false"):
            return None
        return _("{n} results of this sweep are not in {store}, and {home} is thrown away with this CI job: the run "
                 "counts as failed.").format(n=waiting, store=self.location.shown, home=self.location.records)

    def send(self, folder: SweepFolder) -> tuple[int, Sequence[str]]:
        """Push what was not pushed; how many runs that were, and why others still wait."""
        sent, notes = 0, []
        for name in _waiting(folder, self.location.shown):
            try:
                with own_writes(self.location):
                    if name:
                        self._trial(folder, folder.attempt(name))
                    else:
                        self._sweep(folder, folder.bare())
                sent += 1
            except StoreError as error:
                notes.append(str(error))
        if not notes:
            with own_writes(self.location):
                self._kinds(folder)
        return sent, notes

    def note_deleted(self, folders: Sequence[SweepFolder]) -> None:
        """Write down which pushed runs were deleted in MLflow since. Raises StoreError."""
        gone = {run.info.run_id for run in self._search("tags.kind != 'x'", deleted=True)}
        for folder in folders:
            kept = folder.push_note(self.location.shown)
            deleted = sorted(name for name, run in kept.get("runs", {}).items() if run in gone)
            if deleted != kept.get("deleted", []):
                folder.write_pushed(self.location.shown, folder.pushed(self.location.shown), deleted=deleted)

    # What pushing is made of

    def _trial(self, folder: SweepFolder, trial: TrialRecord) -> None:
        with store_errors(self.location, f"logging trial {trial.order}"):
            uuid = names.trial_uuid(trial)
            found = self._search(f"tags.trial_uuid = '{uuid}'", deleted=None)
            if found and found[0].info.lifecycle_stage == "deleted":
                self._noted(folder, trial.name, found[0], deleted=True)
                return
            sweep = folder.bare()
            tags = {
                **{key: sweep.tags[key] for key in ("host", "boot_id") if key in sweep.tags}, **trial.tags,
                "kind": "trial", "sweep_id": trial.sweep_id, "cell": trial.cell, "repetition": str(trial.repetition),
                "order": str(trial.order), "block": str(trial.block), "mode": trial.mode, "infer_os": trial.infer_os,
                "verdict": trial.verdict, "reasons": names.join_lines(list(trial.reasons)),
                "notes": names.join_lines(list(trial.notes)),
                "suspect_phases": names.join_groups(trial.suspect_phases),
                "method": str(trial.method), "trial_uuid": uuid, "mlflow.note.content": describe_trial(trial),
            }
            run = self._run(found, names.run_name(trial), trial.started_ms, tags)
            if found and run.info.status != "RUNNING":
                self._noted(folder, trial.name, run)
                return
            self._keep(run, [path for path in trial.folder.iterdir() if path.is_file()] if trial.folder else [])
            if (prompts := dataset(trial.params, trial.tags)) is not None:
                self.client.log_inputs(run.info.run_id, [prompts])
            self._values(run.info.run_id, _points(trial), names.shown_params(_params(trial)))
            status = {"interrupted": "KILLED", "failed": "FAILED"}.get(trial.verdict, "FINISHED")
            self.client.set_terminated(run.info.run_id, status, trial.ended_ms)
            self._noted(folder, trial.name, run)

    def _sweep(self, folder: SweepFolder, sweep: SweepRecord) -> None:
        with store_errors(self.location, "logging the sweep"):
            found = self._search(f"tags.kind = 'sweep' AND tags.sweep_id = '{sweep.sweep_id}'", deleted=None)
            if found and found[0].info.lifecycle_stage == "deleted":
                self._noted(folder, "", found[0], deleted=True)
                return
            files = [path for path in folder.path.iterdir() if path.name in (SWEEP, *TEXTS)
                     or path.name.startswith("plan")]
            tags = {
                **sweep.tags, **sweep.owner, "kind": "sweep", "sweep_id": sweep.sweep_id,
                "experiment": sweep.experiment, "question": sweep.question, "command": sweep.command,
                "planned_trials": str(sweep.planned_trials),
                # MLflow's own words for it, so that its columns Source and Version are not empty
                "mlflow.source.type": "LOCAL", "mlflow.source.name": "slackwater",
                "mlflow.source.git.commit": sweep.tags.get("revision", ""),
                "mlflow.note.content": describe_sweep(sweep, folder.text("summary.txt"), next(
                    (path.name for path in files if path.suffix == ".html"), None)),
            }
            run = self._run(found, names.sweep_name(sweep.sweep_id, sweep.experiment), sweep.started_ms, tags)
            self._keep(run, files)
            moment = sweep.ended_ms or sweep.started_ms
            self._values(run.info.run_id, [(names.key(metric), value, moment, 0)
                                           for metric, value in sweep.metrics.items() if math.isfinite(value)])
            if sweep.status == "running":
                self.client.update_run(run.info.run_id, "RUNNING")
            else:
                last_ms = max((trial.ended_ms for trial in folder.trials()), default=sweep.started_ms)
                self.client.set_terminated(run.info.run_id, _STATUS[sweep.status], sweep.ended_ms or last_ms)
            self._noted(folder, "", run, summary=state_of(sweep))
            verdicts = {} if sweep.status == "running" else folder.sweep().trials
            view.install(self.location, self.client, self.experiment_id, sweep.sweep_id, folder.plan(), verdicts,
                         sweep.started_ms)
        self._kinds(folder)

    def _kinds(self, folder: SweepFolder) -> None:
        """Runs of attempts that do not count are tagged kind=superseded, which the sweep's view leaves out."""
        kept = folder.push_note(self.location.shown)
        before, attempts = set(kept.get("superseded", ())), folder.names()
        if not before and not folder.deleted() and len({place_of(name)[0] for name in attempts}) == len(attempts):
            return
        runs = kept.get("runs", {})
        after = set(runs) - {""} if EVERYTHING in folder.deleted() else {
            trial.name for trial in folder.superseded() if trial.name in runs}
        with store_errors(self.location, "setting trials aside"):
            for name in before ^ after:
                self.client.set_tag(runs[name], "kind", "superseded" if name in after else "trial")
        if before != after:
            folder.write_pushed(self.location.shown, runs, superseded=sorted(after))

    def _run(self, found: Sequence[Run], name: str, started_ms: int, tags: Mapping[str, str]) -> Run:
        """A new run, or the one that is there, with these tags."""
        shown = names.shown_tags(tags)
        if not found:
            return self.client.create_run(self.experiment_id, started_ms, shown, name)
        from mlflow.entities import RunTag

        self.client.log_batch(found[0].info.run_id, tags=[RunTag(key, text) for key, text in shown.items()])
        return found[0]

    def _keep(self, run: Run, files: Sequence[Path]) -> None:
        """Files into the run's artifacts. Never as hard links: who logs a file again would write into the record."""
        folder = None if self.location.is_server else folder_of(str(run.info.artifact_uri))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if folder is None:
                self.client.log_artifact(run.info.run_id, str(file))
            else:  # MLflow takes 50 ms, and keeps the mode: it could not log a read-only file again
                shutil.copyfile(file, folder / file.name)

    def _values(self, run_id: str, points: Sequence[tuple[str, float, int, int]],
                params: Mapping[str, str] | None = None) -> None:
        from mlflow.entities import Metric, Param

        given = [Param(key, text) for key, text in (params or {}).items()]
        for begin in range(0, max(len(points), bool(given)), _BATCH):
            self.client.log_batch(run_id, [Metric(*point) for point in points[begin:begin + _BATCH]],
                                  given if begin == 0 else ())

    def _search(self, terms: str, deleted: bool | None = False) -> list[Run]:
        """Runs on this experiment's page; `deleted`: those alone, or (None) also those."""
        from mlflow.entities import ViewType

        which = {None: ViewType.ALL, True: ViewType.DELETED_ONLY, False: ViewType.ACTIVE_ONLY}[deleted]
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], terms, which, 1000, page_token=token)
            found += page
            if not (token := page.token):
                return sorted(found, key=lambda run: str(run.info.lifecycle_stage))  # active before deleted

    def _noted(self, folder: SweepFolder, name: str, run: Run, deleted: bool = False, **more: str) -> None:
        kept = folder.push_note(self.location.shown)
        gone = [*kept.get("deleted", ()), *([name] if deleted else ())]
        folder.write_pushed(self.location.shown, {**kept.get("runs", {}), name: str(run.info.run_id)},
                            experiment_id=self.experiment_id, deleted=sorted(set(gone)), **more)

    def _answers(self) -> None:
        """Ask shortly before logging, a server always and others after a failure: MLflow's own attempts take longer
        (20 s for a server that accepts and says nothing)."""
        if interrupt.came():
            hurry()
        if self._away or self.location.is_server:
            check(self.location, write=True)

    def _catch_up(self, folder: SweepFolder) -> str | None:
        if interrupt.came():
            return None  # the user wants to be gone: `sync`, or the sweep when it goes on, sends it
        sent, notes = self.send(folder)
        again, self._away = self._away and not notes, bool(notes)
        said = f"{sent} waiting results were sent."
        return (f"The store answers again: {said}" if again else said) if sent else None

    def _close_dead(self) -> None:
        """Summary runs that a dead process of this machine left running."""
        with store_errors(self.location, "closing interrupted runs"):
            for run in self._search("attributes.status = 'RUNNING' AND tags.kind = 'sweep'"):
                if is_dead(run.data.tags, run.info.start_time):
                    trials = self._search(f"tags.kind = 'trial' AND tags.sweep_id = '{run.data.tags['sweep_id']}'")
                    ended = max([run.info.start_time, *(trial.info.end_time or 0 for trial in trials)])
                    self.client.set_terminated(run.info.run_id, "KILLED", ended)


@dataclass(frozen=True)
class Synced:
    """What `sync` did. `notes`: why something still waits."""

    sent: int
    notes: Sequence[str]


def sync(uri: str | None = None) -> Synced:
    """Push what was not pushed, each sweep to the store and experiment it was measured for; idempotent.

    `uri`: only to this store; needed for one whose address holds a password, since that is not kept. A store that does
    not answer is a note, and the others get theirs. Sweeps that run are left to whoever runs them."""
    place = locate(Tracking() if uri is None else named(uri))
    sent, notes = 0, []
    if place.database is not None:
        known = Fetched(place)
        try:
            for sweep in known.all():
                if not sweep.fetched:
                    known.fetch(sweep)
        except StoreError as error:
            notes.append(str(error))
    groups: dict[tuple[str, str], list[SweepFolder]] = {}
    for sweep_id in Sweeps(place.records, place.shown).ids():
        folder = SweepFolder(place.records / "sweeps" / sweep_id)
        try:
            sweep = folder.bare()
        except StoreError:
            continue
        if sweep.status != "running" and sweep.origin != "pulled":
            meant = sweep.tags.get("tracking_uri", place.shown), sweep.tags.get(
                "tracking_experiment", Tracking.experiment)
            groups.setdefault(meant, []).append(folder)
    for (shown, experiment), folders in sorted(groups.items()):
        count = sum(len(_waiting(folder, shown)) for folder in folders)
        if (uri is not None and shown != place.shown) or (not count and shown != place.shown):
            continue
        address = uri if uri is not None else address_of(shown)
        if address is None:
            notes.append(_("{n} waiting for {store}, whose password is not kept: name it, slackwater sync --store "
                           "URI.").format(n=count, store=shown))
            continue
        try:
            push = Push.open(replace(named(address), experiment=experiment))
            with one_at_a_time():
                for folder in folders:
                    done, why = push.send(folder)
                    sent, notes = sent + done, [*notes, *why]
                push.note_deleted(folders)
        except StoreError as error:
            notes.append(_("{n} waiting: {error}").format(n=count, error=error))
    return Synced(sent, list(dict.fromkeys(notes)))


def _waiting(folder: SweepFolder, store: str) -> list[str]:
    """Names of the trial folders that this store does not have, then "" if it has not the summary as it is now."""
    note, pushed, deleted = folder.push_note(store), folder.pushed(store), folder.deleted()
    if EVERYTHING in deleted:
        return []
    found = [name for name in folder.names() if name not in pushed and name not in deleted]
    known = "" in note.get("deleted", ()) or note.get("summary") == state_of(folder.bare())
    return found if known else [*found, ""]


def _params(trial: TrialRecord) -> dict[str, Any]:
    """The config, and the server settings that the cell resolved to."""
    values = {**trial.params, **{f"settings.{name}": value for name, value in trial.settings.items()}}
    if isinstance(values.get("tracking.uri"), str):
        values["tracking.uri"] = masked(values["tracking.uri"])
    return values


def _points(trial: TrialRecord) -> list[tuple[str, float, int, int]]:
    """Metrics at their turn, the timeline at its times; MLflow's shown value is the one of the highest step."""
    points = [(names.key(name), float(value), trial.ended_ms, turn) for name, turns in trial.turns.items()
              for turn, value in turns.items() if math.isfinite(value)]
    for name, series in _timeline(trial).items():
        points += [(f"timeline/{name}", value, trial.started_ms + t_ms, t_ms) for t_ms, value in series]
    return points


def _timeline(trial: TrialRecord) -> Mapping[str, Sequence[tuple[int, float]]]:
    """What a chart needs of timeline.parquet; nothing of one that is not there or cannot be read."""
    count = int(trial.params.get("tracking.timeline_points", Tracking.timeline_points))
    path = trial.folder / "timeline.parquet" if trial.folder else None
    if not count or path is None or not path.is_file():
        return {}
    try:
        timeline, marks, _processes = read_parquet(path)
    except MeterError:
        return {}
    if not len(timeline.t_ns):
        return {}
    return downsample(timeline, min((mark.t_ns for mark in marks), default=int(timeline.t_ns[0])), count)


def _experiment(location: Location, client: MlflowClient, name: str) -> str:
    """The id of the MLflow experiment, made if it is not there. Raises StoreError."""
    with store_errors(location, f"opening the MLflow experiment {name!r}"):
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            address = location.uri if location.database is not None else location.shown
            raise StoreError(f"The MLflow experiment {name!r} in {location.shown} was deleted. Restore it "
                             f"(MLFLOW_TRACKING_URI={shlex.quote(address)} mlflow experiments restore -x "
                             f"{found.experiment_id}), or choose another: tracking.experiment=NAME.")
        if found is not None and not location.is_server and found.artifact_location.startswith("mlflow-artifacts:"):
            raise StoreError(f"The MLflow experiment {name!r} in {location.shown} was made through a server, which "
                             "keeps its artifacts. Name the server (tracking.uri=http://…), or another experiment "
                             "(tracking.experiment=NAME).")
        place = None if location.artifacts is None else location.artifacts.as_uri()
        ours = {_OURS: "beside the database"} if location.database is not None else None
        if found is not None and ours and _OURS in found.tags and found.artifact_location != place:
            # the store was moved or copied, and MLflow has written down where the files of its runs were
            client.rename_experiment(found.experiment_id, f"{name}, until it left {found.artifact_location}")
            found = None
        if found is None:
            from mlflow.exceptions import MlflowException

            try:
                return str(client.create_experiment(name, place, ours))
            except MlflowException:
                found = client.get_experiment_by_name(name)  # made by another process in this moment
                if found is None:
                    raise
        return str(found.experiment_id)
