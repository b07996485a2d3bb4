"""Results wait on this machine's disk until the store has them: written whole or not at all, removed last.

`<spool>/<sweep_id>/<order>-<cell>-r<rep>/` holds result.json and the artifacts, `<spool>/<sweep_id>/sweep.json`
the sweep's summary, owner.txt the store they are meant for (without its password) and the process that works here.
Sending them is store.py's and sync.py's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline import lock
from pipeline.errors import StoreError
from pipeline.record.owner import is_alive, owner_tags
from pipeline.result import TrialResult
from pipeline.track.summary import SweepSummary

_RESULT = "result.json"
_SWEEP = "sweep.json"
_OWNER = "owner.txt"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Pending:
    """Something that a store does not have yet: a trial's folder or a sweep's summary file."""

    path: Path
    sweep_id: str
    store: str
    """The store it was measured for, as `Location.shown`."""
    is_trial: bool
    experiment: str = ""
    """MLflow's experiment there (`tracking.experiment`); "" if it was not kept."""


class Spool:
    """The spool of this machine, as used on behalf of one store."""

    def __init__(self, root: Path, store: str, experiment: str = "") -> None:
        self.root = root
        self.store = store
        self.experiment = experiment

    def stage(self, sweep_id: str, order: int, cell: str, repetition: int) -> Path:
        """An empty folder for a running trial to write its artifacts in; `put` makes it whole, else it is litter."""
        folder = self._sweep(sweep_id) / (_PARTIAL + _trial_name(order, cell, repetition))
        with _disk_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            self._claim(folder.parent)
        return folder

    def put(self, result: TrialResult) -> TrialResult:
        """Make the result durable; returns it with the folder it now has. Raises StoreError (disk full, …).

        A result whose folder is in the spool is renamed, another is copied."""
        sweep = self._sweep(result.sweep_id)
        final = sweep / _trial_name(result.order, result.cell, result.repetition)
        with _disk_errors(final):
            sweep.mkdir(parents=True, exist_ok=True)
            self._claim(sweep)
            folder = result.path
            if folder.parent != sweep:
                folder = self.stage(result.sweep_id, result.order, result.cell, result.repetition)
                shutil.copytree(result.path, folder, dirs_exist_ok=True)
            kept = dataclasses.replace(result, folder=str(final))
            for file in folder.iterdir():
                if file.is_file():
                    _sync(file)
            _write_whole(folder / _RESULT, kept.to_json())
            if folder != final:
                if final.exists():
                    # a trial that was run again; the earlier one is still here because no store took it
                    final.rename(final.with_name(f"{final.name}.{final.stat().st_mtime_ns}"))
                folder.rename(final)
            _sync(sweep)
        return kept

    def put_sweep(self, summary: SweepSummary) -> Path:
        """Make a sweep's summary durable; a later one takes the place of an earlier one. Raises StoreError."""
        sweep = self._sweep(summary.sweep_id)
        path = sweep / _SWEEP
        with _disk_errors(path):
            sweep.mkdir(parents=True, exist_ok=True)
            self._claim(sweep)
            _write_whole(path, summary.to_json())
        return path

    def pending(self) -> list[Pending]:
        """What waits, of all stores, sweep by sweep in the order of the trials; summaries after their trials."""
        found: list[Pending] = []
        for sweep in sorted(path for path in _listed(self.root) if path.is_dir()):
            store, _, _, experiment = _owner(sweep)
            found += [Pending(path, sweep.name, store, True, experiment) for path in sorted(_listed(sweep))
                      if not path.name.startswith(".") and (path / _RESULT).exists()]
            if (sweep / _SWEEP).exists():
                found.append(Pending(sweep / _SWEEP, sweep.name, store, False, experiment))
        return found

    def take(self, pending: Pending) -> TrialResult:
        """The trial as it was measured. Raises StoreError if the file cannot be understood; it is left where it is."""
        return dataclasses.replace(_parse(pending.path / _RESULT, TrialResult.from_json), folder=str(pending.path))

    def take_sweep(self, pending: Pending) -> SweepSummary:
        """The summary as it was written. Raises StoreError if the file cannot be understood."""
        return _parse(pending.path, SweepSummary.from_json)

    def remove(self, path: Path) -> None:
        """Forget what the store has. Whole or not at all: a folder without result.json is litter, not a trial."""
        with _disk_errors(path):
            if path.is_dir():
                (path / _RESULT).unlink()
                shutil.rmtree(path)
            else:
                path.unlink()

    def discard(self, sweep_id: str) -> None:
        """Remove the sweep's folder if nothing in it waits for a store and no other process works in it."""
        sweep = self._sweep(sweep_id)
        if not any(pending.sweep_id == sweep.name for pending in self.pending()) and sweep.is_dir():
            mine = owner_tags()
            _, pid, ticks, _ = _owner(sweep)
            if (pid, ticks) == (mine["pid"], mine["pid_start"]) or _is_left(sweep):
                with _disk_errors(sweep):
                    shutil.rmtree(sweep)

    def clean(self) -> None:
        """Remove what killed processes left half-written."""
        waiting = {pending.sweep_id for pending in self.pending()}
        for sweep in _listed(self.root):
            if not sweep.is_dir() or not _is_left(sweep):
                continue
            litter = [sweep] if sweep.name not in waiting else [
                path for path in _listed(sweep) if path.name.startswith(_PARTIAL)]
            for path in litter:
                with _disk_errors(path):
                    shutil.rmtree(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time sends from the spool: two would log one trial twice."""
        with lock.on_file(self.root.parent / ".spool.lock", StoreError):
            yield

    def _sweep(self, sweep_id: str) -> Path:
        return self.root / _safe(sweep_id)

    def _claim(self, sweep: Path) -> None:
        mine = owner_tags()
        text = "\n".join((self.store, mine["pid"], mine["pid_start"], self.experiment))
        path = sweep / _OWNER
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            _write_whole(path, text)


def _owner(sweep: Path) -> tuple[str, str, str, str]:
    """Store, pid and start time of the process that works here, MLflow's experiment; empty if none has."""
    path = sweep / _OWNER
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    # three lines: written before the experiment was kept
    return (lines[0], lines[1], lines[2], lines[3] if len(lines) > 3 else "") if len(lines) >= 3 else ("", "", "", "")


def _is_left(sweep: Path) -> bool:
    """Did a process work here that is gone? A folder nobody has claimed is not ours to judge."""
    _, pid, ticks, _ = _owner(sweep)
    return pid.isdigit() and not is_alive(int(pid), ticks)


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _trial_name(order: int, cell: str, repetition: int) -> str:
    return f"{order:04d}-{_safe(cell)}-r{repetition}"


def _safe(text: str) -> str:
    """A file name; 80 characters leave room for what is put around it (255 is the limit)."""
    return re.sub(r"[^\w.\-+]", "_", text, flags=re.ASCII)[:80].lstrip(".") or "_"


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    _sync(beside)
    beside.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Parsed = TypeVar("Parsed")


def _parse(path: Path, from_json: Callable[[str], Parsed]) -> Parsed:
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path} in the spool cannot be read: {error}. It was written by another version of "
                         "slackwater or damaged; it stays where it is.") from error


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} in the spool cannot be written: {error.strerror or error}. Free space on the disk "
                         "and make the folder writable; what was measured before is kept.") from error
