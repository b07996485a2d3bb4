"""What lists, pages and forecasts ask of many records, kept beside them so that they need not all be read again.

One table; where it cannot be written it is done without. Nothing is known here that the records do not say.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.record.folder import EVERYTHING, TRIALS, SweepFolder, Tell, tally
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import FINAL, TrialRecord
from pipeline.text import to_json

FILE = ".index.db"
CELL_DIGEST = "cell_digest"
"""Tag of a trial: what its cell was resolved to, so that a later sweep finds what the same cell took and needed."""
_PEAK = "during_generation/tree_rss_peak_mib"
_VERSION = 3
_RACY_NS = 2_000_000_000
"""A folder changed this recently may change again within its clock's tick, and is looked at again."""
LATEST = 20
"""Trials per cell that a forecast is made from."""
MANY = 200
"""Trials of a sweep from which they are kept here too; fewer are read from their folders as fast."""


@dataclass(frozen=True)
class Earlier:
    """What a trial took and needed: `digest` says of which cell it was. `peak_mib` is None if it was not measured."""

    digest: str
    seconds: float
    peak_mib: float | None


@dataclass(frozen=True)
class Entry:
    """What is kept of a sweep."""

    sweep: SweepRecord
    """With what its trials came to."""
    earlier: Sequence[Earlier]
    is_deleted: bool


class Index:
    """Of the sweeps under a folder. Not thread-safe."""

    def __init__(self, folder: Path, tell: Tell | None = None) -> None:
        """`tell`: see SweepFolder."""
        self._folder, self._tell = folder, tell
        self._large: tuple[str, str, list[TrialRecord]] | None = None

    def entries(self) -> list[Entry]:
        """Of every sweep, in no order; damaged ones are left out."""
        paths = [path for path in self._folder.iterdir() if path.is_dir() and not path.name.startswith(".")] \
            if self._folder.is_dir() else []
        found = []
        with self._table() as table:
            kept = {name: (stamp, text) for name, stamp, text in _ask(table, "SELECT id, stamp, text FROM sweeps")}
            for path in paths:
                with contextlib.suppress(StoreError, OSError, ValueError, KeyError):
                    found.append(self._entry(table, path, kept.get(path.name)))
            gone = kept.keys() - {path.name for path in paths}
            _write(table, "DELETE FROM sweeps WHERE id = ?", [(name,) for name in gone])
        return found

    def entry(self, name: str) -> Entry:
        """Of one sweep. Raises StoreError for one that cannot be understood."""
        with self._table() as table:
            known = _ask(table, "SELECT stamp, text FROM sweeps WHERE id = ?", name)
            return self._entry(table, self._folder / name, known[0] if known else None)

    def trials(self, name: str, metrics: Collection[str]) -> list[TrialRecord]:
        """A sweep's trials that count, with at least these metrics. Raises StoreError."""
        path = self._folder / name
        stamp, settled = _stamp(path)
        with self._table() as table:
            known = _ask(table, "SELECT trials FROM sweeps WHERE id = ? AND stamp = ?", name, stamp)
            if known and known[0][0]:
                document = json.loads(zlib.decompress(known[0][0]))
                if set(metrics) <= set(document["metrics"]):
                    return _unpacked(path, document)
                metrics = {*metrics, *document["metrics"]}
            trials = self._read(path, stamp)
            if settled and len(trials) >= MANY:
                self._entry(table, path, None)
                packed = zlib.compress(to_json(_packed(trials, metrics)).encode(), 1)
                _write(table, "UPDATE sweeps SET trials = ? WHERE id = ?", [(packed, name)])
        return trials

    def _read(self, path: Path, stamp: str) -> list[TrialRecord]:
        """The trials that count; a large sweep's are remembered for the question that comes next."""
        if self._large is not None and self._large[:2] == (path.name, stamp):
            return self._large[2]
        trials = SweepFolder(path, self._tell).trials()
        if len(trials) >= MANY:
            self._large = path.name, stamp, trials
        return trials

    def _entry(self, table: sqlite3.Connection, path: Path, known: tuple[str, str] | None) -> Entry:
        stamp, settled = _stamp(path)
        folder = SweepFolder(path)
        document = json.loads(known[1]) if known is not None and known[0] == stamp else _document(
            folder, self._read(path, stamp))
        if settled and (known is None or known[0] != stamp):
            _write(table, "INSERT OR REPLACE INTO sweeps (id, stamp, text) VALUES (?, ?, ?)",
                   [(path.name, stamp, to_json(document))])
        sweep = folder.bare() if document["running"] else SweepRecord.from_json(document["sweep"])
        return Entry(sweep.at(path, document["trials"]), [Earlier(*each) for each in document["earlier"]],
                     document["deleted"])

    @contextlib.contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        """The table, or an empty one in memory where the file cannot be had."""
        for place in (str(self._folder / FILE), ":memory:"):
            try:
                connection = sqlite3.connect(place, timeout=1)
                if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                    connection.execute("DROP TABLE IF EXISTS sweeps")
                    connection.execute("CREATE TABLE sweeps (id TEXT PRIMARY KEY, stamp TEXT, text TEXT, trials BLOB)")
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
                    connection.commit()
                break
            except sqlite3.Error:
                continue
        try:
            yield connection
            with contextlib.suppress(sqlite3.Error):
                connection.commit()
        finally:
            connection.close()


def _ask(table: sqlite3.Connection, query: str, *values: str) -> list[Any]:
    with contextlib.suppress(sqlite3.Error):
        return table.execute(query, values).fetchall()
    return []


def _write(table: sqlite3.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """Another process may write the same just now, or the disk be full: then it is not kept."""
    with contextlib.suppress(sqlite3.Error):
        table.executemany(statement, rows)


def _document(folder: SweepFolder, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    sweep = folder.bare()
    return {"sweep": sweep.to_json(), "running": sweep.status == "running", "trials": tally(trials),
            "deleted": EVERYTHING in folder.deleted(), "earlier": list(_took(trials))}


def _took(trials: Iterable[TrialRecord]) -> Iterator[tuple[str, float, float | None]]:
    by_cell: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.verdict in FINAL and (digest := trial.tags.get(CELL_DIGEST)):
            by_cell.setdefault(digest, []).append(trial)
    for digest, same in by_cell.items():
        for trial in same[-LATEST:]:
            peak = max(trial.turns.get(_PEAK, {}).values(), default=None)
            yield digest, (trial.ended_ms - trial.started_ms) / 1000, peak


def _packed(trials: Sequence[TrialRecord], metrics: Collection[str]) -> dict[str, Any]:
    """Trials of one cell share their config, and all of them most tags: that is most of what is kept of a trial."""
    shared: dict[str, int] = {}

    def part(values: Any) -> int:
        return shared.setdefault(to_json(values), len(shared))

    tags = dict(set.intersection(*(set(trial.tags.items()) for trial in trials)))
    rows = []
    for trial in trials:
        row = trial.to_dict()
        row["metrics"] = {name: turns for name, turns in row["metrics"].items() if name in metrics}
        row["tags"] = {name: text for name, text in trial.tags.items() if name not in tags}
        rows.append([trial.folder.name, part(row.pop("params")), part(row.pop("settings")), row])
    return {"metrics": sorted(metrics), "tags": tags, "trials": rows, "shared": [json.loads(text) for text in shared]}


def _unpacked(path: Path, document: Mapping[str, Any]) -> list[TrialRecord]:
    shared, tags = document["shared"], document["tags"]
    return [TrialRecord.from_dict(row | {
        "params": shared[params], "settings": shared[settings], "tags": tags | row["tags"]}).at(path / TRIALS / name)
        for name, params, settings, row in document["trials"]]


def _stamp(path: Path) -> tuple[str, bool]:
    """What changes whenever a trial or a file of the sweep is added or replaced; and whether that was long ago."""
    times = [folder.stat().st_mtime_ns for folder in (path, path / TRIALS) if folder.is_dir()]
    return "-".join(map(str, times)), time.time_ns() - max(times, default=0) > _RACY_NS
