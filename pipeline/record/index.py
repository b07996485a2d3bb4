"""What the list of sweeps and the forecast ask of many records, kept beside them so that they need not all be read.

One table; where it cannot be written it is done without. Nothing is known here that the records do not say.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.record.folder import TRIALS, SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import FINAL, TrialRecord

FILE = ".index.db"
CELL_DIGEST = "cell_digest"
"""Tag of a trial: what its cell was resolved to, so that a later sweep finds what the same cell took and needed."""
_PEAK = "during_generation/tree_rss_peak_mib"
_VERSION = "1"
_RACY_NS = 2_000_000_000
"""A folder changed this recently may change again within its clock's tick, and is looked at again."""
_LATEST = 20
"""Trials per cell that a forecast is made from."""


@dataclass(frozen=True)
class Earlier:
    """What a trial took and needed: `digest` says of which cell it was. `peak_mib` is None if it was not measured."""

    digest: str
    seconds: float
    peak_mib: float | None


def summaries(folder: Path) -> list[SweepRecord]:
    """Every sweep under `folder` with what its trials came to, in no order; damaged ones are left out."""
    return [sweep for sweep, _ in _all(folder)]


def earlier(folder: Path, digests: Collection[str], host: str) -> Sequence[Earlier]:
    """What the latest trials of these cells that this host has measured took, failed ones left out."""
    found = [Earlier(digest, seconds, peak) for sweep, known in _all(folder) if sweep.tags.get("host") == host
             for digest, seconds, peak in known if digest in set(digests)]
    return found[-_LATEST * max(1, len(digests)):]


Known = list[tuple[str, float, float | None]]


def _all(folder: Path) -> Iterator[tuple[SweepRecord, Known]]:
    paths = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")] \
        if folder.is_dir() else []
    with _table(folder / FILE) as table:
        kept: dict[str, tuple[str, str]] = {}
        with contextlib.suppress(sqlite3.Error):
            kept = {name: (stamp, text) for name, stamp, text in table.execute("SELECT id, stamp, text FROM sweeps")}
        made: list[tuple[str, str, str]] = []
        for path in paths:
            stamp, settled = _stamp(path)
            known = kept.get(path.name, ("", ""))
            try:
                document = json.loads(known[1]) if known[0] == stamp else _document(SweepFolder(path))
                sweep = SweepFolder(path).bare() if document["running"] else SweepRecord.from_json(document["sweep"])
            except (StoreError, ValueError, KeyError):
                continue
            if known[0] != stamp and settled:
                made.append((path.name, stamp, json.dumps(document)))
            yield sweep.at(path, document["trials"]), [tuple(each) for each in document["earlier"]]
        with contextlib.suppress(sqlite3.Error):  # another process writes the same just now, or the disk is full
            table.executemany("INSERT OR REPLACE INTO sweeps VALUES (?, ?, ?)", made)
            gone = kept.keys() - {path.name for path in paths}
            table.executemany("DELETE FROM sweeps WHERE id = ?", [(name,) for name in gone])
            table.commit()


def _document(folder: SweepFolder) -> dict[str, Any]:
    trials = folder.trials()
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.verdict] = counts.get(trial.verdict, 0) + 1
    sweep = folder.bare()
    return {"sweep": sweep.to_json(), "running": sweep.status == "running", "trials": counts,
            "earlier": list(_took(trials))}


def _took(trials: Iterable[TrialRecord]) -> Iterator[tuple[str, float, float | None]]:
    by_cell: Mapping[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.verdict in FINAL and (digest := trial.tags.get(CELL_DIGEST)):
            by_cell.setdefault(digest, []).append(trial)  # type: ignore[attr-defined]
    for digest, same in by_cell.items():
        for trial in same[-_LATEST:]:
            yield digest, (trial.ended_ms - trial.started_ms) / 1000, trial.value(_PEAK)


def _stamp(path: Path) -> tuple[str, bool]:
    """What changes whenever a trial or a file of the sweep is added or replaced; and whether that was long ago."""
    times = [folder.stat().st_mtime_ns for folder in (path, path / TRIALS) if folder.is_dir()]
    return "-".join(map(str, times)), time.time_ns() - max(times, default=0) > _RACY_NS


@contextlib.contextmanager
def _table(file: Path) -> Iterator[sqlite3.Connection]:
    """The table, or an empty one in memory where the file cannot be had."""
    for place in (str(file), ":memory:"):
        try:
            connection = sqlite3.connect(place, timeout=1)
            if connection.execute("PRAGMA user_version").fetchone()[0] != int(_VERSION):
                connection.execute("DROP TABLE IF EXISTS sweeps")
                connection.execute("CREATE TABLE sweeps (id TEXT PRIMARY KEY, stamp TEXT, text TEXT)")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.commit()
            break
        except sqlite3.Error:
            continue
    try:
        yield connection
    finally:
        connection.close()
