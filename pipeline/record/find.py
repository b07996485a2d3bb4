"""What a user names on the command line: a sweep, a cell of one, a run, or an exported file. Found, not judged."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.record import archive
from pipeline.record.folder import SWEEP, SWEEPS, SweepFolder, counting
from pipeline.record.index import LATEST, Earlier, Index
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord

DATE = re.compile(r"\d{6}-\d{6}")
RUN_ID = re.compile(r"[0-9a-f]{32}")
_MANY = 1000
"""Trials, from which on reading them takes seconds."""


@dataclass(frozen=True)
class Subject:
    """Trials that were named together."""

    name: str
    """As it was typed."""
    sweep: SweepRecord
    """The sweep they belong to."""
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
    """The store or file it was found in, for a user."""
    option: str = ""
    """What a command needs behind a sweep's id to mean that store."""


def say_reading(done: int, of: int) -> None:
    """On a terminal, in one line that goes again, where there are many; else nothing."""
    if of >= _MANY and (done % 100 == 0 or done == of) and sys.stderr.isatty():
        said = "" if done == of else _("trials read: {n} of {of}").format(n=done, of=of)
        print(f"\r\033[K{said}", end="", file=sys.stderr, flush=True)


class Sweeps:
    """The records of one store."""

    def __init__(self, home: Path, shown: str, option: str = "", setting: str = "") -> None:
        """`home`: the folder with sweeps/ in it. `shown`: the store as a user knows it, whose push notes name runs;
        `option` and `setting`: what stands behind a verb, and behind `run`, so that it means this store."""
        self.path, self.shown, self.option, self.setting = home / SWEEPS, shown, option, setting
        self._index = Index(home / SWEEPS, say_reading)

    def ids(self) -> list[str]:
        """Of all sweeps, from the folders' names alone; the newest first, by the date in them."""
        found = [path.name for path in os.scandir(self.path) if not path.name.startswith(".") and path.is_dir()] \
            if self.path.is_dir() else []
        return sorted(found, key=lambda name: (DATE.findall(name)[-1:], name), reverse=True)

    def folder(self, sweep_id: str) -> SweepFolder:
        """Where that sweep lies or would lie."""
        return SweepFolder(self.path / sweep_id, say_reading)

    def all(self) -> list[SweepRecord]:
        """Every sweep that the user did not delete, the oldest first, with the verdicts of its trials."""
        found = [self._with_run(entry.sweep) for entry in self._index.entries() if not entry.is_deleted]
        return sorted(found, key=lambda sweep: (sweep.started_ms, sweep.sweep_id))

    def earlier(self, digests: Collection[str], host: str) -> Sequence[Earlier]:
        """What the latest trials of these cells that this host has measured took, failed ones left out."""
        wanted = set(digests)
        found = [one for entry in sorted(self._index.entries(), key=lambda entry: entry.sweep.started_ms)
                 if entry.sweep.tags.get("host") == host and not entry.is_deleted
                 for one in entry.earlier if one.digest in wanted]
        return found[-LATEST * max(1, len(wanted)):]

    def sweep(self, name: str = "last") -> SweepRecord:
        """By id, unambiguous prefix or `last`; one that was deleted by its whole id alone.

        Raises ConfigError that lists the candidates, and StoreError."""
        if "/" not in name and (self.path / name / SWEEP).is_file():
            return self._with_run(self._index.entry(name).sweep)
        known = self.all()
        if not known:
            raise ConfigError(f"There is no sweep in {self.shown} yet. "
                              f"`slackwater run experiment=mode_gap{self.setting}` makes one.")
        if name == "last":
            return known[-1]
        found = [sweep for sweep in known if sweep.sweep_id.startswith(name)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ConfigError(_("No sweep in {store} has an id that begins with '{name}'. The latest are:\n{listed}\n"
                                "`slackwater runs{option}` lists all; `last` is the latest.").format(
                                    store=self.shown, name=name, listed=_listing(known), option=self.option))
        raise ConfigError(f"{name!r} is the beginning of {len(found)} sweep ids. Give more of the id:\n"
                          f"{_listing(found)}")

    def trials(self, sweep_id: str) -> list[TrialRecord]:
        """Those that count, in the order they ran, with their runs in this store. Raises StoreError."""
        return self._with_runs(self.folder(sweep_id), self.folder(sweep_id).trials())

    def summary(self, sweep_id: str, metrics: Collection[str]) -> list[TrialRecord]:
        """The same with at least these metrics: of a large sweep from the index. Raises StoreError."""
        return self._with_runs(self.folder(sweep_id), self._index.trials(sweep_id, metrics))

    def attempts(self, sweep_id: str) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Those that count, and the other attempts with those that the user deleted. Raises StoreError."""
        folder = self.folder(sweep_id)
        counted, others = counting(folder.attempts(), folder.deleted())
        return self._with_runs(folder, counted), self._with_runs(folder, others)

    def run(self, run_id: str) -> tuple[SweepFolder, str] | None:
        """The sweep and the trial folder's name ("": the sweep itself) that were pushed as this run."""
        for sweep_id in self.ids():
            for name, run in self.folder(sweep_id).pushed(self.shown).items():
                if run == run_id:
                    return self.folder(sweep_id), name
        return None

    def subject(self, name: str) -> Subject:
        """SWEEP, SWEEP:CELL or RUN, where SWEEP is an id, a prefix or `last` and RUN an MLflow run id.

        Raises ConfigError (nothing of that name, no trial in it) and StoreError."""
        trial, cell = "", ""
        if RUN_ID.fullmatch(name):
            found = self.run(name)
            if found is None:
                raise ConfigError(f"There is no slackwater run {name} in {self.shown}. "
                                  f"`slackwater runs{self.option}` lists the sweeps.")
            (folder, trial), sweep = found, self.sweep(found[0].sweep_id)
        else:
            sweep_name, _colon, cell = name.partition(":")
            sweep = self.sweep(sweep_name)
            folder = self.folder(sweep.sweep_id)
        trials = self._with_runs(folder, folder.trials())
        if trial:
            one = self._with_runs(folder, [folder.attempt(trial)])
            return Subject(name, sweep, one, trials, folder.plan(), one[0].cell, name, self.shown, self.option)
        return replace(of_sweep(name, sweep, trials, folder.plan(), cell, self.shown), option=self.option)

    def _with_run(self, sweep: SweepRecord) -> SweepRecord:
        return replace(sweep, run_id=self.folder(sweep.sweep_id).pushed(self.shown).get("", ""))

    def _with_runs(self, folder: SweepFolder, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        runs = folder.pushed(self.shown)
        return [replace(trial, run_id=runs.get(trial.folder.name, "")) for trial in trials] if runs else list(trials)


def in_file(name: str) -> Subject | None:
    """FILE or FILE:CELL of an export, read where it lies; None if no such file is there.

    Raises ConfigError: the file is damaged, or what only a file can be called is not there."""
    for part, cell in [(name, ""), *((name[:at], name[at + 1:]) for at, sign in enumerate(name) if sign == ":")]:
        if Path(part).is_file():
            folder = archive.opened(Path(part))
            sweep = replace(folder.sweep(), origin="imported")
            return of_sweep(name, sweep, folder.trials(), folder.plan(), cell, part)
    if "/" in name.partition("=")[0]:
        raise ConfigError(f"There is no file {name}. Expected a sweep, SWEEP:CELL, a run id, or a file that "
                          "`slackwater export` wrote.")
    return None


def of_sweep(name: str, sweep: SweepRecord, trials: Sequence[TrialRecord], plan: Mapping[str, Any], cell: str,
             source: str) -> Subject:
    """The whole sweep, or one cell of it by its name or the beginning of it. Raises ConfigError."""
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


def _listing(sweeps: Sequence[SweepRecord], limit: int = 8) -> str:
    lines = [f"  {sweep.sweep_id}  {datetime.fromtimestamp(sweep.started_ms / 1000):%Y-%m-%d %H:%M}  "
             f"{sweep.experiment or sweep.question}".rstrip() for sweep in sweeps[::-1][:limit]]
    return "\n".join(lines + ([f"  and {len(sweeps) - limit} more"] if len(sweeps) > limit else []))


