"""The sweeps of a store whose records are not all here yet: listed by their summary runs, fetched when they are named.

Such are a server, a database of others, and a store that an earlier version has written (a marker says up to which
state it has been looked through, so that MLflow is not imported without need).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.language import _
from pipeline.record.find import Sweeps
from pipeline.record.folder import PLAN, SWEEP, SWEEPS, TEXTS, SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import safe
from pipeline.track import takeover
from pipeline.track.check import check
from pipeline.track.client import make_client, one_at_a_time, store_errors
from pipeline.track.location import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_MARKER = ".looked-through.json"
Progress = Callable[[str, int, int], None]
"""Sweep, trials that are there, of how many."""


def say_progress(sweep_id: str, done: int, of: int) -> None:
    """On a terminal, in one line; else nothing."""
    if sys.stderr.isatty():
        said = _("{sweep}: {n} of {of} trials fetched").format(sweep=sweep_id, n=done, of=of)
        print(f"\r\033[K{said}", end="\n" if done == of else "", file=sys.stderr, flush=True)


class Fetched(Sweeps):
    """Sweeps that come when they are named. Methods raise StoreError as well."""

    def __init__(self, location: Location, progress: Progress = say_progress,
                 client: MlflowClient | None = None) -> None:
        self.location, self.progress, self._client, self._listed = location, progress, client, False
        self.is_local = location.database is not None
        super().__init__(location.records if self.is_local else _cache(location), location.shown, location.option,
                         location.setting)

    def all(self) -> list[SweepRecord]:
        """Every sweep, the oldest first; of those that were not named yet the trials are not known."""
        self.look_through()
        return super().all()

    def sweep(self, name: str = "last") -> SweepRecord:
        """By id, unambiguous prefix or `last`, fetched. Raises ConfigError that lists the candidates."""
        self.look_through()
        found = super().sweep(name)
        if found.fetched:
            return found
        self.fetch(found)
        return super().sweep(found.sweep_id)

    def run(self, run_id: str) -> tuple[SweepFolder, str] | None:
        """The sweep and the trial folder's name ("": the sweep itself) that are this run."""
        self.look_through()
        found = super().run(run_id)
        if found is None and not all(sweep.fetched for sweep in super().all()):
            with contextlib.suppress(StoreError), store_errors(self.location, f"looking for {run_id}"):
                sweep_id = self.client.get_run(run_id).data.tags.get("sweep_id", "")
                if sweep_id in self.ids():
                    self.sweep(sweep_id)
                    return super().run(run_id)
        return found

    def look_through(self) -> None:
        """Know every sweep of the store by its summary run; of a local one only if others have written there."""
        if self.is_local:
            takeover.take_waiting(self.location)
        if self._listed or (self.is_local and is_looked_through(self.location)):
            return
        self._listed = True
        check(self.location, write=False)
        state = _state(self.location)
        with store_errors(self.location, "being read"):
            for sweep, run in self._runs.sweeps():
                if self.is_local or not self._link(sweep):
                    self._know(sweep, run.info.run_id, run.info.experiment_id)
        if self.is_local:
            mark(self.location, state)

    def fetch(self, sweep: SweepRecord) -> None:
        """The trials that are not here yet, plan and texts. To be called again if it was interrupted."""
        folder = self.folder(sweep.sweep_id)
        note = folder.push_note(self.shown)
        if not check(self.location, write=False):
            raise StoreError(f"The trials of {sweep.sweep_id} are in {self.shown}, which is not there any more.")
        with one_at_a_time(), store_errors(self.location, f"fetching {sweep.sweep_id}"):
            known = {(trial.order, trial.started_ms): trial.name for trial in folder.attempts()}
            runs, aside = dict(note.get("runs", {})), []
            found = self._runs.trials(sweep.sweep_id, note["experiment_id"]) if "experiment_id" in note else []
            for done, run in enumerate(found):
                self.progress(sweep.sweep_id, done, len(found))
                if run.info.run_id not in runs.values():
                    with tempfile.TemporaryDirectory(prefix="slackwater-") as here:
                        trial = self._runs.record(run, Path(here))
                        place = trial.order, trial.started_ms
                        if place not in known:
                            known[place] = folder.put(replace(trial, sweep_id=sweep.sweep_id), Path(here)).name
                    runs[known[place]] = run.info.run_id
                    folder.write_pushed(self.shown, runs)
                if run.data.tags["kind"] == "superseded":
                    aside += [name for name, each in runs.items() if each == run.info.run_id]
            self.progress(sweep.sweep_id, len(found), len(found))
            if not folder.notes() and (deleted := [t.name for t in folder.trials() if t.name in aside]):
                folder.write_notes({"deleted": deleted})
            plan = None
            if "" in runs:
                with tempfile.TemporaryDirectory(prefix="slackwater-") as here:
                    self._runs.files(self.client.get_run(runs[""]), Path(here))
                    plan, sweep = _beside(folder, Path(here), sweep)
            takeover.put_sweep(folder, replace(sweep, fetched=True), plan)

    @property
    def client(self) -> MlflowClient:
        """MLflow's, made when it is needed."""
        if self._client is None:
            self._client = make_client(self.location)
        return self._client

    @property
    def _runs(self) -> takeover.Runs:
        return takeover.Runs(self.location, self.client, "taken over" if _is_own(self.location) else "pulled")

    def _know(self, sweep: SweepRecord, run_id: str, experiment_id: str) -> None:
        folder = self.folder(sweep.sweep_id)
        if (folder.path / SWEEP).is_file():
            there = folder.bare()
            newer = (sweep.ended_ms or 0) > (there.ended_ms or 0) or there.status == "running" or not there.command
            if not there.origin or not newer:
                return
        takeover.put_sweep(folder, sweep, None)
        folder.write_pushed(self.shown, {**folder.pushed(self.shown), "": run_id}, experiment_id=experiment_id,
                            summary=state_of(sweep))

    def _link(self, sweep: SweepRecord) -> bool:
        """A sweep of the server that this machine has measured itself is not fetched: its record is here."""
        own, place = self.location.home / SWEEPS / sweep.sweep_id, self.path / sweep.sweep_id
        if not place.exists() and (own / SWEEP).is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(own, place.parent))
        return place.is_symlink()


def _beside(folder: SweepFolder, files: Path, sweep: SweepRecord) -> tuple[dict[str, object], SweepRecord]:
    """The texts come into the folder; the plan, and the sweep as whoever measured it has it."""
    for path in sorted(files.iterdir()):
        if path.name in TEXTS:
            folder.write_text(path.name, path.read_text(encoding="utf-8"))
        elif path.name.startswith("plan-") and not (folder.path / path.name).exists():
            folder.write_once(path.name, path.read_text(encoding="utf-8"))
    try:
        plan = json.loads((files / PLAN).read_bytes())
    except (OSError, ValueError):
        plan = {}
    try:
        theirs = SweepRecord.from_json((files / SWEEP).read_bytes())
    except (OSError, ValueError):
        return plan, sweep
    return plan, replace(theirs, origin=sweep.origin, status=sweep.status, ended_ms=sweep.ended_ms, owner=sweep.owner)


def state_of(sweep: SweepRecord) -> str:
    """What of a sweep changes, by which a store's summary of it is known to be the latest."""
    return f"{sweep.status} {sweep.ended_ms} {sha256(sweep.answer.encode(errors='replace')).hexdigest()[:8]}"


def _is_own(location: Location) -> bool:
    """Is it a database of this user's? What stands in another's is data of others."""
    try:
        return location.database is not None and location.database.stat().st_uid == os.getuid()
    except OSError:
        return False


def is_looked_through(location: Location) -> bool:
    """Is the local database as it was when its sweeps were last listed, or as we ourselves have left it?"""
    state = _state(location)
    try:
        return state is None or bool(json.loads((location.records / SWEEPS / _MARKER).read_bytes()) == state)
    except (OSError, ValueError):
        return False


def mark(location: Location, state: list[int] | None = None) -> None:
    """The local database holds nothing that is not among the records."""
    marker = location.records / SWEEPS / _MARKER
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(state or _state(location)), encoding="utf-8")
    except OSError:
        return  # another user's store: it is looked through again


@contextlib.contextmanager
def own_writes(location: Location) -> Iterator[None]:
    """What is written into the local database meanwhile is nothing to be looked through."""
    was = is_looked_through(location)
    try:
        yield
    finally:
        if was and location.database is not None:
            mark(location)


def _state(location: Location) -> list[int] | None:
    try:
        found = location.database.stat() if location.database is not None else None
    except OSError:
        found = None
    return [found.st_mtime_ns, found.st_size] if found and found.st_size else None


def _cache(location: Location) -> Path:
    digest = sha256(location.shown.encode()).hexdigest()[:8]
    return location.home / "pulled" / f"{safe(location.shown)[-60:].lstrip('.')}-{digest}"
