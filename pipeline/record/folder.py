"""The folder of a sweep, which is the truth about it. Written whole or not at all, never emptied or changed in place.

    <store>/sweeps/<sweep_id>/
        sweep.json            what was asked, status, end; replaced whole, by the sweep's owner alone
        plan.json, plan-2.json …   cells, order, settings; never changed
        trials/0001-<cell>-r1/     result.json, timeline.parquet, …; never changed (0444)
        trials/0001-<cell>-r1.2/   a further attempt of that trial
        notes.json            what a user said since: deleted trials, remarks
        pushed/<store>.json   which run of which MLflow store each trial is (0600, never exported)
        summary.json, summary.txt, report.html    made from the above, and made anew at will

Of several attempts of one trial the last one counts that is valid, suspect or a warm-up and not deleted; without such
a one the last. The orchestrator writes all but the trials' folders; a job writes its own trial's folder and nothing
else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.record import schema
from pipeline.record.owner import is_dead
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import ARTIFACTS, FINAL, RESULT, TrialRecord, safe, trial_name
from pipeline.text import masked, printable, to_json

SWEEPS = "sweeps"
SWEEP, PLAN, NOTES, TRIALS, PUSHED = "sweep.json", "plan.json", "notes.json", "trials", "pushed"
EVERYTHING = "*"
"""Among the deleted: the whole sweep."""
TEXTS = ("summary.json", "summary.txt", "report.html")
"""The files that are made from the others."""
_PARTIAL = ".partial-"
_TRIAL = re.compile(r"(\d+)-.*-r\d+(?:\.(\d+))?")


Tell = Callable[[int, int], None]


class SweepFolder:
    """One sweep on disk, or (for reading) inside an export's zip. Not thread-safe."""

    def __init__(self, path: Any, tell: Tell | None = None) -> None:
        """`path`: a Path, or a zipfile.Path. `tell`: hears how many trials of how many are read."""
        self.path, self._tell = path, tell

    @property
    def sweep_id(self) -> str:
        """By the folder's name."""
        return str(self.path.name)

    # Reading

    def sweep(self) -> SweepRecord:
        """The sweep with what its trials came to. Raises StoreError for a folder that cannot be understood."""
        return self.bare().at(self.path, tally(self.trials()))

    def bare(self) -> SweepRecord:
        """sweep.json alone; of one whose owner has died it says interrupted. Raises StoreError."""
        with _damage(self.path / SWEEP):
            sweep = replace(SweepRecord.from_json(_read(self.path / SWEEP)), folder=self.path)
        dead = sweep.status == "running" and is_dead(sweep.owner, sweep.started_ms)
        return replace(sweep, status="interrupted") if dead else sweep

    def plan(self) -> Mapping[str, Any]:
        """plan.json; empty where there is none, or it is damaged."""
        return _document(self.path / PLAN, schema.plan) or _document(
            self.path / SWEEP, lambda found: schema.plan(found.get("plan", {})))  # of an export of schema 1

    def plans(self) -> Sequence[Mapping[str, Any]]:
        """The plan and those of further blocks, in order."""
        return [self.plan(), *(_document(path, schema.plan) for path in sorted(
            (path for path in _listed(self.path) if re.fullmatch(r"plan-\d+\.json", path.name)),
            key=lambda path: int(re.findall(r"\d+", path.name)[0])))]

    def notes(self) -> Mapping[str, Any]:
        """notes.json: "deleted" (names of trial folders, or "*" for the sweep), "remarks"."""
        return _document(self.path / NOTES, schema.notes)

    def names(self) -> Sequence[str]:
        """Of the folders of all attempts, in the order they ran; those half-written left out."""
        found = [path.name for path in _listed(self.path / TRIALS) if _TRIAL.fullmatch(path.name)]
        return sorted(found, key=lambda name: (place_of(name), name))

    def attempts(self, names: Sequence[str] | None = None) -> list[TrialRecord]:
        """Every attempt of every trial, or of these. Raises StoreError for one that cannot be understood."""
        names = self.names() if names is None else names
        found = []
        for number, name in enumerate(names, start=1):
            found.append(self.attempt(name))
            if self._tell is not None:
                self._tell(number, len(names))
        return found

    def attempt(self, name: str) -> TrialRecord:
        """One attempt by its folder's name. Raises StoreError."""
        folder = self.path / TRIALS / name
        with _damage(folder / RESULT):
            record = TrialRecord.from_json(_read(folder / RESULT))
            return replace(record, attempt=place_of(name)[1]).at(folder)

    def trials(self) -> list[TrialRecord]:
        """One per place in the sweep, in the order they ran: the attempt that counts. Raises StoreError."""
        return counting(self.attempts(), self.deleted())[0]

    def superseded(self) -> list[TrialRecord]:
        """The other attempts, and those that a user deleted. Raises StoreError."""
        return counting(self.attempts(), self.deleted())[1]

    def deleted(self) -> frozenset[str]:
        """Names of the trial folders that a user marked as deleted."""
        return frozenset(map(str, self.notes().get("deleted", ())))

    def pushed(self, store: str) -> dict[str, str]:
        """Trial folder's name → MLflow's run in that store (as a user is shown it); "" is the sweep's own."""
        runs = self.push_note(store).get("runs", {})
        return {str(name): str(run) for name, run in runs.items()} if isinstance(runs, dict) else {}

    def push_note(self, store: str) -> Mapping[str, Any]:
        """What is known of that store: "runs" (see `pushed`), "experiment_id" (MLflow's page), and by trial folder's
        name "deleted" (runs that were deleted there) and "superseded" (runs marked as not counting)."""
        return _document(self.path / PUSHED / _store_file(store))

    def text(self, name: str) -> str | None:
        """One of TEXTS; None if there is none."""
        path = self.path / name
        if path.is_file():
            return str(path.read_text(encoding="utf-8"))
        return _document(self.path / SWEEP, schema.texts).get(name)  # of an export of schema 1

    # Writing

    def begin(self, sweep: SweepRecord, plan: Mapping[str, Any]) -> None:
        """A new sweep. Raises StoreError: there is one of that name, or the disk does not take it."""
        with _disk_errors(self.path):
            (self.path / TRIALS).mkdir(parents=True, exist_ok=False)
        self.write_once(PLAN, to_json({"schema_version": 1, **plan}, indent=1))
        self.write(sweep)

    def write(self, sweep: SweepRecord) -> None:
        """sweep.json, replaced whole. Raises StoreError."""
        self._replace(self.path / SWEEP, sweep.to_json())

    def write_once(self, name: str, text: str) -> None:
        """A file that is never changed afterwards. Raises StoreError."""
        self._replace(self.path / name, text, 0o444)

    def write_text(self, name: str, text: str) -> None:
        """One of TEXTS, replaced whole. Raises StoreError."""
        self._replace(self.path / name, printable(text))

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        """notes.json, replaced whole. Raises StoreError."""
        self._replace(self.path / NOTES, to_json({"schema_version": 1, **notes}, indent=1))

    def write_pushed(self, store: str, runs: Mapping[str, str], **more: Any) -> None:
        """Which runs of that store these are, and more of its `push_note`. `store` without a password. Raises
        StoreError."""
        path = self.path / PUSHED / _store_file(store)
        with _disk_errors(path):
            path.parent.mkdir(mode=0o700, exist_ok=True)
        note = {**self.push_note(store), "schema_version": 1, "store": store, "runs": dict(runs), **more}
        self._replace(path, to_json(note, indent=1), 0o600)

    def stage(self, order: int, cell: str, repetition: int) -> Path:
        """An empty folder for a running trial to write its files in; `put` makes it whole, else it is litter."""
        attempt = self._next(order)
        folder = Path(self.path / TRIALS / (_PARTIAL + trial_name(order, cell, repetition, attempt)))
        with _disk_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        return folder

    def put(self, record: TrialRecord, staged: Path | None = None) -> TrialRecord:
        """Make a trial durable, with what lies in `staged` (renamed if `stage` made it, else copied); returns it with
        its attempt and folder. Raises StoreError (disk full, …)."""
        record = replace(record, attempt=self._next(record.order))
        if isinstance(uri := record.params.get("tracking.uri"), str):
            record = replace(record, params={**record.params, "tracking.uri": masked(uri)})
        final = Path(self.path / TRIALS / record.name)
        with _disk_errors(final):
            folder = staged
            if folder is None or folder.parent != final.parent:
                folder = self.stage(record.order, record.cell, record.repetition)
                if staged is not None:
                    shutil.copytree(staged, folder, dirs_exist_ok=True,
                                    ignore=lambda _folder, found: set(found) - set(ARTIFACTS))
            _write(folder / RESULT, record.to_json())
            for file in (path for path in folder.iterdir() if path.is_file()):
                file.chmod(0o444)
                _sync(file)
            _sync(folder)
            folder.rename(final)
            _sync(final.parent)
        return record.at(final)

    def move(self, path: Path) -> None:
        """A sweep that was made aside comes to its place, whole. Raises StoreError."""
        with _disk_errors(path):
            self.path.rename(path)
            _sync(path.parent)
        self.path = path

    def sweep_up(self) -> None:
        """Remove what a killed process left half-written; only for the sweep's owner. Raises StoreError."""
        for path in _listed(self.path / TRIALS):
            if path.name.startswith(_PARTIAL):
                with _disk_errors(path):
                    shutil.rmtree(path)

    def _next(self, order: int) -> int:
        taken = [place_of(name)[1] for name in self.names() if place_of(name)[0] == order]
        return max(taken, default=0) + 1

    def _replace(self, path: Path, text: str, mode: int = 0o644) -> None:
        with _disk_errors(path):
            beside = path.with_name(f".{path.name}.part")
            beside.unlink(missing_ok=True)
            _write(beside, text, mode)
            beside.replace(path)
            _sync(path.parent)


def tally(trials: Sequence[TrialRecord]) -> dict[str, int]:
    """Verdict → number of trials."""
    return dict(Counter(trial.verdict for trial in trials))


def counting(attempts: Sequence[TrialRecord], deleted: frozenset[str] = frozenset(),
             ) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Those that count, one per place, and the others; both in order."""
    by_order: dict[int, TrialRecord] = {}
    for trial in sorted(attempts, key=lambda trial: (trial.order, trial.attempt)):
        known = by_order.get(trial.order)
        if trial.name in deleted:
            continue
        if known is None or trial.verdict in (*FINAL, "warm-up") or known.verdict not in (*FINAL, "warm-up"):
            by_order[trial.order] = trial
    chosen = {id(trial) for trial in by_order.values()}
    return ([by_order[order] for order in sorted(by_order)],
            [trial for trial in attempts if id(trial) not in chosen])


def place_of(name: str) -> tuple[int, int]:
    """Order and attempt of a trial's folder."""
    found = _TRIAL.fullmatch(name)
    return (int(found[1]), int(found[2] or 1)) if found else (0, 1)


def _store_file(store: str) -> str:
    return f"{safe(store)[-60:].lstrip('.')}-{sha256(store.encode(errors='surrogatepass')).hexdigest()[:8]}.json"


def _listed(folder: Any) -> list[Any]:
    try:
        return list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror or error}.") from error


def _read(path: Any) -> bytes:
    return bytes(path.read_bytes())


def _document(path: Any, check: Callable[[Any], dict[str, Any]] = dict) -> dict[str, Any]:
    try:
        return check(schema.parsed(_read(path))) if path.is_file() else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _damage(path: Any) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"There is no {path}.") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}. It was written by another version of slackwater or "
                         "damaged; it stays where it is.") from error


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise StoreError(f"{path} already exists.") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}. Free space on the disk and make the "
                         "folder writable; what was measured before is kept.") from error
